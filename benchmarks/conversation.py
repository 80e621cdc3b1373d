r"""Several questions about one clip on the needle benchmark: whole prompt, first cache, and a conversation.

    python benchmarks/conversation.py --split test --clips 30 --methods omnidrop:keep=0.3 \
        > benchmarks/results/conversation_test.json

Each clip gets three questions with different evidence and one-word answers, in an order that its number draws. The
second and third are asked
  stock         as the whole dialogue, all tokens
  first cache   on the cache that was pruned for the first question, as further text turns
  conversation  by `omnidrop.Conversation`: media encoded once, pruned for each question
and, for models that were not trained on dialogues, each alone
  all tokens, pruned for itself, and on the tokens that were kept for the first question
Accuracy in %, with 95 % intervals by resampling clips.
Seconds are medians of the second and third questions' first tokens. Progress on standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import omnidrop_lab
import torch
from omnidrop_lab.kit.stats import Bootstrap
from omnidrop_lab.needle import ask, clip, questions, task

import omnidrop
from omnidrop import Modality, loading, measure
from omnidrop.core.budget import drops_of
from omnidrop.engine.upstream import cache_of, names_of
from omnidrop.methods import Method, parse
from omnidrop.models import adapt
from omnidrop.provenance import made, model_checksum, source_checksum, versions

PER_CLIP = 3
NEW_TOKENS = 2  # a word and the end


def three(made_clip: task.Clip, index: int) -> list[task.Question]:
    """Questions with one-word answers about different chunks."""
    drawn = [q for draw in range(4) for q in questions(made_clip, seed=draw) if q.evidence and len(q.words) == 1]
    order = np.random.default_rng([20261128, index]).permutation(len(drawn))
    chosen: list[task.Question] = []
    for question in (drawn[i] for i in order):
        if not any(set(question.evidence) & set(other.evidence) for other in chosen):
            chosen.append(question)
    return chosen[:PER_CLIP]


def on_the_first_cache(model: Any, processor: Any, chat: omnidrop.Conversation, texts: list[str]) -> list[str]:
    """Answers to all `texts`, the later ones as text turns on the cache of the first, which was pruned for it."""
    keyword, answers = names_of(adapt(model)).cache, list[str]()
    mine = omnidrop.Conversation(model, processor, chat.method)
    mine.add(*chat.waiting)
    with omnidrop.prune(model, mine.method), torch.inference_mode():
        cache: Any = None
        for text in texts:
            inputs = mine.inputs(text)
            given = dict(inputs)
            if cache is not None:
                given = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {keyword: cache}
            output = model.generate(
                **given, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, num_beams=1
            )
            cache = cache_of(output)
            length = inputs["input_ids"].shape[1]
            answer = processor.tokenizer.decode(output.sequences[0, length:], skip_special_tokens=True).strip()
            answers.append(answer)
            held = cache.get_seq_length()
            expected = mine_ids(mine, text, answer)[:held]
            if output.sequences[0, :held].tolist() != expected:
                raise RuntimeError("the dialogue does not begin with what the cache holds")
            turn = omnidrop.conversation.Answered(question=text, answer=answer, media=tuple(mine.waiting))
            mine.turns.append(turn)
            mine.waiting = []
    return answers


@dataclass(frozen=True, kw_only=True)
class Repeated(Method):
    """Keeps what an earlier prompt on the same media kept.

    Fields:
        kept: media tokens that enter each layer, counted from the first of the prompt
    """

    kept: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, trace: Any) -> Repeated:
        media = trace.layout.among([Modality(kind) for kind in trace.record.prunable])[0].nonzero()[:, 0]
        layers = [torch.isin(media, layer[0]).nonzero()[:, 0].tolist() for layer in trace.kept]
        return cls(kept=tuple(map(tuple, layers)))

    def at_input(self, view: Any) -> torch.Tensor:
        return torch.tensor(self.kept[0])

    def plan(self, budget: Any) -> list[int]:
        return drops_of([len(layer) for layer in self.kept])

    def at_layer(self, view: Any, k: int) -> torch.Tensor:
        entered, left = (torch.tensor(self.kept[view.layer + further]) for further in (0, 1))
        return torch.isin(entered, left).nonzero()[:, 0]


def kept_for_the_first(model: Any, processor: Any, clip_: Any, texts: list[str], method: Method) -> list[str]:
    """Each question alone, the later ones on the tokens that were kept for the first: media do not see questions, so
    this is what a cache gives from which the first question and its answer were taken.
    """
    answers, now = list[str](), method
    for text in texts:
        chat = omnidrop.Conversation(model, processor)
        chat.add(clip_)
        done = measure.answer(model, processor, chat.inputs(text), now, NEW_TOKENS)
        answers.append(done.answer)
        now = Repeated.of(done.trace) if now is method else now
    return answers


def mine_ids(chat: omnidrop.Conversation, text: str, answer: str) -> list[int]:
    """Token ids of the dialogue once `answer` is in it."""
    copy = omnidrop.Conversation(chat.model, chat.processor, chat.method)
    copy.turns = [*chat.turns, omnidrop.conversation.Answered(question=text, answer=answer, media=tuple(chat.waiting))]
    return copy.inputs("x")["input_ids"][0].tolist()


def whole(
    model: Any, processor: Any, clip_: Any, texts: list[str], method: Method | None
) -> tuple[list[str], list[float]]:
    """Answers of the stock dialogue (every prompt whole, encoders run each time), and seconds to each first token."""
    chat = omnidrop.Conversation(model, processor)
    chat.add(clip_)
    answers, seconds = list[str](), list[float]()
    for text in texts:
        done = measure.answer(model, processor, chat.inputs(text), method, NEW_TOKENS)
        answers.append(done.answer)
        seconds.append(done.first_token_seconds)
        turn = omnidrop.conversation.Answered(question=text, answer=done.answer, media=tuple(chat.waiting))
        chat.turns.append(turn)
        chat.waiting = []
    return answers, seconds


def conversation(
    model: Any, processor: Any, clip_: Any, texts: list[str], method: Method
) -> tuple[list[str], list[float], int]:
    """The same by `Conversation`, and how many items were encoded."""
    chat = omnidrop.Conversation(model, processor, method, lossless=False)
    chat.add(clip_)
    answers, seconds = list[str](), list[float]()
    for text in texts:
        times: list[float] = []
        start = time.perf_counter()
        note = lambda _, times=times: times.append(time.perf_counter())  # noqa: E731
        answers.append(chat.ask(text, max_new_tokens=NEW_TOKENS, on_text=note))
        seconds.append((times[0] if times else time.perf_counter()) - start)
    return answers, seconds, chat.encoded.encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["omnidrop:keep=0.3", "tuned:keep=0.3"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = loading.load(device="cpu")
    methods = {text: parse(text) for text in options.methods}
    right: dict[str, list[list[bool]]] = {}
    seconds: dict[str, list[float]] = {}
    encoded: list[int] = []
    for index in range(options.clips):
        made_clip = clip(options.split, index)
        asked = three(made_clip, index)
        if len(asked) < PER_CLIP:
            continue
        texts, media = [q.text for q in asked], ask.in_memory(made_clip, 84)

        def note(arm: str, answers: list[str], times: list[float] = (), asked: Any = asked) -> None:  # type: ignore[assignment]
            right.setdefault(arm, []).append([a == q.answer for a, q in zip(answers, asked, strict=True)])
            seconds.setdefault(arm, []).extend(times[1:])

        note("stock", *whole(model, processor, media, texts, None))
        note("stock, each alone", [whole(model, processor, media, [text], None)[0][0] for text in texts])
        for name, method in methods.items():
            note(f"{name}, each alone", [whole(model, processor, media, [text], method)[0][0] for text in texts])
            note(f"{name}, kept for the first", kept_for_the_first(model, processor, media, texts, method))
            chat = omnidrop.Conversation(model, processor, method)
            chat.add(media)
            note(f"{name}, first cache", on_the_first_cache(model, processor, chat, texts))
            answers, times, items = conversation(model, processor, media, texts, method)
            note(f"{name}, conversation", answers, times)
            encoded.append(items)
        print(f"{index + 1} of {options.clips}", file=sys.stderr)
    clips = len(right["stock"])
    bootstrap, weight = Bootstrap.make(clips), np.full(clips, float(PER_CLIP - 1))
    later = {arm: np.array(rows, float)[:, 1:].sum(1) for arm, rows in right.items()}

    def percent(interval: Any) -> dict[str, float]:
        names = ("value", "low", "high")
        return {key: round(100 * float(value), 1) for key, value in zip(names, interval, strict=True)}

    arms: dict[str, dict[str, Any]] = {}
    for arm, values in later.items():
        method, _, way = arm.rpartition(", ")
        arms[arm] = {
            "second and third question": percent(bootstrap.mean(values, weight)),
            "first question": round(100 * float(np.mean([row[0] for row in right[arm]])), 1),
            "first token, median seconds": round(statistics.median(seconds[arm]), 4) if seconds.get(arm) else None,
        }
        compared = {
            "conversation": ("stock", f"{method}, first cache"),
            "each alone": (f"{method}, kept for the first",),
        }
        if others := [other for other in compared.get(way, ()) if other in later]:
            arms[arm] |= {
                f"minus {other.rpartition(', ')[2]}": percent(bootstrap.difference(values, later[other], weight))
                for other in others
            }
    json.dump(
        {
            "setup": made("", model)
            | {"command": " ".join(["python", *sys.argv]), "versions": versions()}
            | {"model": model_checksum(loading.TINY), "code": source_checksum(omnidrop, omnidrop_lab)},
            "split": options.split,
            "clips": clips,
            "questions": PER_CLIP,
            "items encoded per conversation": sorted(set(encoded)),
            "arms": arms,
        },
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
