"""Scores reported by papers (percent right), each with its paper's definition of retention; none was measured here.

"20 %" has three meanings in the literature, so a retention always comes with its definition, and a score with the
all-tokens score of the same paper. Scores of two papers are not comparable: their harnesses differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# What a paper's retention counts -> the corresponding budget of `omnidrop` (`--budget`).
DEFINITIONS = {
    "input": "share of the audio and video tokens that enter the decoder, the same in all layers",
    "layers": "mean over the decoder's layers of the share that enters each",
    "flops": "tier of the decoder's prefill FLOPs",
    "other": "counted in the paper's own way (in steps, or calibrated per layer): none of the above",
}

PAPERS = {
    "OmniDrop": "arXiv 2605.14458",
    "OmniZip": "arXiv 2511.14582",
    "DASH": "arXiv 2603.15685",
    "SEATS": "arXiv 2605.20035",
    "A-PACK": "arXiv 2608.08794",
    "OmniScope": "arXiv 2607.23193v2",
    "OmniDelta": "arXiv 2607.25669",
    "OmniRefine": "arXiv 2605.12056",
    "Omni-Prune": "arXiv 2607.23445",
    "OmniPack": "arXiv 2608.03812 (15 %: enters; half of it leaves at layer 18)",
    "EchoingPixels": "arXiv 2512.10324 (trained)",
    "OmniSIFT": "arXiv 2602.04804 (trained; its all-tokens model is fine-tuned too)",
    "OmniFit": "OpenReview 8RY20mLzup (calibrated)",
}

BENCHMARKS = ("worldsense", "videomme", "avut", "dailyomni", "omnivideobench", "lvomnibench")
NONE = "-"

# paper | model | method | retention % | definition | scores in the order of BENCHMARKS, "-" where the paper has none. A
# retention of 100 is the paper's own all-tokens model; it stands before the paper's other lines of that size.
TABLE = """
OmniDrop      | 7B  | all tokens   | 100 | -      | 46.85 64.67 65.17 -    -    -
OmniDrop      | 7B  | OmniDrop     | 30  | layers | 46.60 66.52 64.01 -    -    -
OmniDrop      | 7B  | OmniDrop     | 20  | layers | 46.50 66.44 63.67 -    -    -
OmniDrop      | 7B  | OmniZip      | 30  | input  | 45.55 65.85 61.76 -    -    -
OmniDrop      | 7B  | OmniZip      | 20  | input  | 44.10 64.85 61.07 -    -    -
OmniDrop      | 7B  | DASH         | 30  | input  | 45.87 65.67 60.96 -    -    -
OmniDrop      | 7B  | DASH         | 20  | input  | 44.61 64.96 60.09 -    -    -
OmniDrop      | 7B  | stage 0 only | 45  | input  | 46.50 -     64.19 -    -    -
OmniDrop      | 7B  | stage 0 only | 30  | input  | 44.33 -     59.34 -    -    -
OmniDrop      | 3B  | all tokens   | 100 | -      | 46.63 62.51 62.40 -    -    -
OmniDrop      | 3B  | OmniDrop     | 30  | layers | 46.78 63.07 61.53 -    -    -
OmniDrop      | 3B  | OmniDrop     | 20  | layers | 46.19 63.07 60.55 -    -    -
OmniDrop      | 3B  | OmniZip      | 30  | input  | 45.71 62.52 60.27 -    -    -
OmniDrop      | 3B  | OmniZip      | 20  | input  | 44.99 61.59 59.28 -    -    -
SEATS         | 7B  | all tokens   | 100 | -      | 46.7  65.3  -     64.0 34.1 33.3
SEATS         | 7B  | SEATS        | 35  | layers | 46.2  66.8  -     62.1 35.0 36.2
SEATS         | 7B  | SEATS        | 25  | layers | 45.3  66.5  -     60.9 34.7 35.7
SEATS         | 7B  | SEATS        | 15  | layers | 44.1  66.0  -     58.7 33.7 34.6
SEATS         | 7B  | SEATS        | 10  | layers | 43.5  64.6  -     57.8 33.6 35.1
SEATS         | 7B  | OmniZip      | 35  | input  | 45.2  66.3  -     60.4 34.5 34.7
SEATS         | 7B  | OmniZip      | 25  | input  | 42.7  66.0  -     55.5 32.2 34.0
SEATS         | 7B  | DivPrune-omni| 35  | input  | 45.4  66.3  -     59.7 34.7 35.4
SEATS         | 7B  | DivPrune-omni| 25  | input  | 44.5  66.2  -     59.2 34.5 35.4
SEATS         | 7B  | VisionZip-omni| 35 | input  | 45.2  66.3  -     60.2 34.6 35.4
SEATS         | 7B  | VisionZip-omni| 25 | input  | 44.4  65.4  -     58.3 33.7 34.7
SEATS         | 7B  | random       | 35  | input  | 44.6  65.0  -     59.7 34.1 34.9
SEATS         | 7B  | random       | 25  | input  | 43.0  64.2  -     57.3 33.5 34.6
SEATS         | 30B | all tokens   | 100 | -      | 54.3  73.1  -     71.8 40.3 38.0
SEATS         | 30B | SEATS        | 35  | layers | 54.1  72.7  -     71.9 39.8 38.5
SEATS         | 30B | SEATS        | 25  | layers | 53.6  71.8  -     71.2 39.9 37.0
SEATS         | 30B | SEATS        | 10  | layers | 51.5  69.7  -     68.1 40.1 35.7
SEATS         | 30B | OmniZip      | 35  | input  | 53.8  71.6  -     70.9 40.1 36.8
SEATS         | 30B | OmniZip      | 25  | input  | 50.7  70.1  -     66.0 39.4 36.0
SEATS         | 30B | VisionZip-omni| 25 | input  | 51.8  71.2  -     69.8 39.8 36.4
SEATS         | 30B | random       | 25  | input  | 51.3  70.4  -     68.1 39.0 35.6
A-PACK        | 7B  | all tokens   | 100 | -      | 46.8  66.0  64.5  63.0 -    -
A-PACK        | 7B  | A-PACK       | 35  | flops  | 46.1  66.7  64.0  60.8 -    -
A-PACK        | 7B  | A-PACK       | 25  | flops  | 45.3  66.2  62.2  59.5 -    -
A-PACK        | 7B  | OmniZip      | 35  | input  | 45.3  66.6  62.4  58.9 -    -
A-PACK        | 7B  | OmniZip      | 25  | input  | 42.7  65.6  59.3  55.9 -    -
A-PACK        | 7B  | random       | 35  | input  | 43.2  65.6  60.7  56.4 -    -
A-PACK        | 7B  | random       | 25  | input  | 41.6  65.6  58.0  53.3 -    -
A-PACK        | 3B  | all tokens   | 100 | -      | 46.2  62.6  62.5  61.6 -    -
A-PACK        | 3B  | A-PACK       | 35  | flops  | 45.3  62.5  60.7  57.8 -    -
A-PACK        | 3B  | A-PACK       | 25  | flops  | 44.0  61.9  59.3  57.3 -    -
A-PACK        | 3B  | OmniZip      | 25  | input  | 42.1  61.8  57.0  54.2 -    -
DASH          | 7B  | all tokens   | 100 | -      | 46.8  66.0  64.5  -    -    -
DASH          | 7B  | DASH         | 35  | input  | -     66.7  61.5  -    -    -
DASH          | 7B  | DASH         | 25  | input  | 44.9  66.0  60.9  -    -    -
DASH          | 3B  | all tokens   | 100 | -      | -     62.6  62.2  -    -    -
DASH          | 3B  | DASH         | 35  | input  | -     62.6  59.9  -    -    -
DASH          | 3B  | DASH         | 25  | input  | 44.6  61.7  58.8  -    -    -
OmniScope     | 7B  | all tokens   | 100 | -      | 46.0  63.3  -     62.0 34.1 -
OmniScope     | 7B  | OmniScope    | 45  | input  | 46.3  64.3  -     60.5 35.5 -
OmniScope     | 7B  | OmniScope    | 25  | input  | 45.7  63.7  -     58.8 35.8 -
OmniScope     | 7B  | OmniZip      | 45  | input  | 45.7  63.3  -     60.0 35.6 -
OmniScope     | 7B  | OmniZip      | 25  | input  | 44.8  62.9  -     57.8 33.7 -
OmniScope     | 7B  | FastV        | 25  | input  | 44.7  63.4  -     58.4 35.6 -
OmniScope     | 7B  | random       | 25  | input  | 44.9  62.4  -     56.9 34.9 -
OmniScope     | 3B  | all tokens   | 100 | -      | 46.1  61.1  -     60.7 32.7 -
OmniScope     | 3B  | OmniScope    | 25  | input  | 44.5  60.1  -     56.9 33.1 -
OmniScope     | 3B  | OmniZip      | 25  | input  | 44.0  59.4  -     56.6 33.1 -
OmniDelta     | 7B  | all tokens   | 100 | -      | 46.8  67.3  63.8  62.7 -    -
OmniDelta     | 7B  | OmniDelta    | 25  | input  | 44.2  66.4  61.1  58.5 -    -
OmniDelta     | 7B  | OmniDelta    | 20  | input  | 43.0  65.7  59.9  57.0 -    -
OmniDelta     | 7B  | OmniZip      | 25  | input  | 43.2  66.3  60.7  57.1 -    -
OmniDelta     | 7B  | OmniZip      | 20  | input  | 42.7  65.3  59.9  56.0 -    -
OmniDelta     | 3B  | all tokens   | 100 | -      | 46.2  63.9  61.6  60.2 -    -
OmniDelta     | 3B  | OmniDelta    | 25  | input  | 44.7  62.4  58.8  56.1 -    -
OmniDelta     | 3B  | OmniDelta    | 20  | input  | 43.2  61.4  57.0  55.1 -    -
OmniDelta     | 3B  | OmniZip      | 25  | input  | 44.1  61.9  58.9  55.2 -    -
OmniRefine    | 7B  | all tokens   | 100 | -      | 46.8  66.0  64.5  -    -    -
OmniRefine    | 7B  | OmniRefine   | 44  | input  | 46.7  66.4  63.5  -    -    -
OmniRefine    | 7B  | OmniRefine   | 30  | input  | 46.4  -     -     -    -    -
Omni-Prune    | 7B  | all tokens   | 100 | -      | 46.8  66.0  -     62.5 33.8 -
Omni-Prune    | 7B  | Omni-Prune   | 45  | input  | 46.4  66.4  -     60.3 33.8 -
Omni-Prune    | 7B  | Omni-Prune   | 35  | input  | 46.2  66.3  -     60.4 34.3 -
Omni-Prune    | 7B  | OmniZip      | 35  | input  | 45.3  66.1  -     58.8 34.3 -
OmniSIFT      | 7B  | all tokens   | 100 | -      | 49.7  67.6  -     72.2 35.6 -
OmniSIFT      | 7B  | OmniSIFT     | 35  | input  | 50.0  68.3  -     73.2 35.6 -
OmniSIFT      | 7B  | OmniSIFT     | 25  | input  | 49.9  68.2  -     72.5 35.4 -
EchoingPixels | 3B  | all tokens   | 100 | -      | 45.4  63.1  -     59.65 -   -
EchoingPixels | 3B  | EchoingPixels| 20  | input  | 45.0  60.7  -     60.65 -   -
EchoingPixels | 3B  | OmniZip      | 20  | input  | 39.5  57.9  -     50.63 -   -
OmniZip       | 7B  | OmniZip      | 45  | input  | 45.9  -     -     -    -    -
OmniZip       | 7B  | OmniZip      | 35  | input  | 45.3  -     -     -    -    -
OmniPack      | 7B  | OmniPack     | 15  | other  | 44.6  -     58.1  58.2 -    -
OmniFit       | 3B  | all tokens   | 100 | -      | 46.0  62.8  62.5  59.8 -    -
OmniFit       | 3B  | OmniFit      | 20  | other  | 45.1  62.0  61.5  59.8 -    -
OmniFit       | 3B  | OmniZip      | 20  | input  | 41.6  60.5  57.2  57.5 -    -
"""


@dataclass(frozen=True)
class Score:
    """One published number."""

    paper: str
    source: str
    benchmark: str  # a task of `omnidrop eval`
    model: str  # "7B" and "3B": Qwen2.5-Omni; "30B": Qwen3-Omni-30B-A3B
    method: str
    retention: float  # share, 0 to 1
    definition: str  # a key of DEFINITIONS; "-" for all tokens
    percent: float  # right answers
    all_tokens_percent: float | None  # of the same paper, model and benchmark

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)


def scores(benchmark: str, model: str) -> list[Score]:
    """What was published for a task ("worldsense") and a size ("7B", "3B", "30B"), most retention first."""
    found = [score for score in _all() if (score.benchmark, score.model) == (benchmark, model)]
    return sorted(found, key=lambda score: -score.retention)  # stable: papers keep their order


def size(model: str | None) -> str | None:
    """ "7B", "3B" or "30B" where a model's name or path says so; None for others."""
    name = (model or "").lower()
    return next((word.upper() for word in ("30b", "7b", "3b") if f"-{word}" in name), None)


def _all() -> Iterator[Score]:
    lines = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
    full: dict[tuple[str, str, str], float] = {}
    for paper, model, method, retention, definition, row in lines:
        for benchmark, cell in zip(BENCHMARKS, row.split(), strict=True):
            if cell == NONE:
                continue
            key = (paper, model, benchmark)
            if retention == "100":
                full[key] = float(cell)
            yield Score(
                paper, PAPERS[paper], benchmark, model, method, int(retention) / 100, definition, float(cell),
                full.get(key),
            )  # fmt: skip
