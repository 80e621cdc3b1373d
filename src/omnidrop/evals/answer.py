"""Items become one padded batch, and the model's greedy answers to it, with what they cost.

What it is: the batch (`collate`) and the answers (`answer`). What it is not: it scores nothing and catches nothing; an
error is the runner's to record.

The one idea: everything that the model sees is made by `media.read` and `prompt.build`, item by item (`reading`), and
joined here by padding alone; so a batch of four is four batches of one, and each equals what transformers' own
processor makes of the clip.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..bench.stages import Stages
from ..measure import FirstToken
from ..memory import Memory
from ..methods import Method
from ..models import adapt, layout
from ..needle.ask import budgets
from ..runtime import prune
from ..tokens import Modality, TokenLayout
from .reading import Reader as Reader
from .reading import Ready as Ready


def collate(processor: Any, some: Sequence[Ready]) -> dict[str, Any]:
    """One batch of items of one kind: ids padded on the left, media joined in order, sounds padded behind their end."""
    all_inputs = [each.inputs for each in some]
    length = max(inputs["input_ids"].shape[1] for inputs in all_inputs)
    batch: dict[str, Any] = {}
    for name, value in all_inputs[0].items():
        parts = [inputs[name] for inputs in all_inputs]
        if not isinstance(value, Tensor):
            batch[name] = value
        elif name in ("input_ids", "attention_mask"):
            fill = processor.tokenizer.pad_token_id if name == "input_ids" else 0
            batch[name] = torch.cat([_padded(part, left=length - part.shape[1], value=fill) for part in parts])
        elif name in ("input_features", "feature_attention_mask"):
            longest = max(part.shape[-1] for part in parts)
            batch[name] = torch.cat([_padded(part, right=longest - part.shape[-1]) for part in parts])
        else:
            batch[name] = torch.cat(parts)
    return batch


def _padded(tensor: Tensor, *, left: int = 0, right: int = 0, value: int = 0) -> Tensor:
    return torch.nn.functional.pad(tensor, (left, right), value=value)


def answer(
    model: Any, processor: Any, some: Sequence[Ready], method: Method | None, max_new_tokens: int
) -> list[dict[str, Any]]:
    """Greedy answers to a batch, and what each cost, as fields of its row.

    Seconds are those of the batch divided by its rows; the peak memory is the batch's. Stages are timed in the same way
    with and without a method.
    """
    inputs = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in collate(processor, some).items()
    }
    adapter = adapt(model)
    clock, memory, stages = FirstToken(), Memory(model.device), Stages(adapter)
    with torch.inference_mode(), prune(model, method) if method is not None else nullcontext() as trace:
        memory.start()
        start = time.perf_counter()
        with stages, _any_length(adapter.decoder.config) as limit:
            out = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                streamer=clock,
                return_dict_in_generate=True,
            )
        end = time.perf_counter()
        peak = memory.peak()
    spoken = out.sequences[:, inputs["input_ids"].shape[1] :]
    del out  # the cache
    who = layout(model, inputs) if trace is None else trace.layout
    shape = adapter.shape
    everything = [valid.nonzero()[:, 0] for valid in who.valid]
    entered = [everything] * shape.layers if trace is None else trace.kept
    seconds = {**stages.seconds, "first_token": clock.at - start, "answer": end - start}
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    facts = []
    for row, (each, tokens) in enumerate(zip(some, spoken.tolist(), strict=True)):
        new = next((at for at, token in enumerate(tokens, 1) if token in ends), None)
        mine = [layer[row] for layer in entered]
        modality = who.modality[row]
        facts.append(
            {
                "text": processor.tokenizer.decode(tokens[:new], skip_special_tokens=True).strip(),
                "new_tokens": new or len(tokens),
                "ended": new is not None,
                "beyond_positions": _last_position(model, who, row) >= limit,
                "tokens_in": who.count(row),
                "tokens_entering": {
                    kind.name.lower(): [int((modality[layer] == kind).sum()) for layer in mine]
                    for kind in (Modality.AUDIO, Modality.VIDEO)
                },
                "budgets": budgets(who, row, mine, shape, evict=method is not None and method.evict),
                "seconds": {**each.seconds, **{name: value / len(some) for name, value in seconds.items()}},
                "batch": len(some),
                "peak_memory_bytes": peak,
            }
        )
    return facts


@contextmanager
def _any_length(config: Any) -> Iterator[int]:
    """Prompts longer than the model's positions run, as they do in stock transformers; the limit comes out.

    `prune` refuses them, and the model with all tokens does not. Benchmarks with videos of an hour are published with
    them (25 positions a second pass 32,768 after 22 minutes), so both must be asked: the row says that it was so.
    """
    limit = config.max_position_embeddings
    config.max_position_embeddings = sys.maxsize
    try:
        yield limit
    finally:
        config.max_position_embeddings = limit


def _last_position(model: Any, who: TokenLayout, row: int) -> float:
    """Of the media, nearly: positions of audio and video follow their seconds."""
    return float(who.second[row].nan_to_num(0).max()) * model.config.position_id_per_seconds
