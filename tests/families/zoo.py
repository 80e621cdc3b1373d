"""The families of the shared contract: a tiny random model of each, and prompts as its own processor would make them.

A family's file (`qwen2_5_omni.py`, ...) gives one `Member`. Nothing of omnidrop is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version


@dataclass(frozen=True, kw_only=True)
class Member:
    """One family.

    build(attn_implementation, dtype): a tiny random model, weights sharpened so that scores differ by more than
        rounding does, at least 4 layers of which at least one drops.
    prompts: name -> seed -> the inputs of `generate`, batch 1, no padding. Together they show all that the family's
        processor can make (several clips, images, text alone).
    batch: several of these, as (name, seed), in one batch, padded on the left (`pad_left` helps).
    maskable: whether hiding keys shows what dropping does (False: recurrent layers).
    window: of sliding layers, in positions; prompts are longer.
    owners: per layer, whose keys and values it reads; empty where each has its own.
    """

    build: Callable[..., Any]
    prompts: Mapping[str, Callable[[int], dict[str, Any]]]
    batch: Callable[[list[tuple[str, int]]], dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of OmniDrop where its defaults do not suit the family
    maskable: bool = True
    alone: Sequence[str] = ()  # names of prompts that cannot be in one batch with the others
    since: str = "0"  # the first transformers release that has the family as it is pruned
    window: int | None = None
    owners: Sequence[int] = ()


def member(name: str) -> Member:
    return import_module(name).MEMBER


def pad_left(prompts: list[dict[str, Any]], fills: Mapping[str, int]) -> dict[str, Any]:
    """Batches of prompts: names in `fills` are (1, L) and padded on the left; the rest is joined along the batch."""
    length = max(prompt["input_ids"].shape[1] for prompt in prompts)
    names = dict.fromkeys(name for prompt in prompts for name in prompt)
    joined: dict[str, Any] = {}
    for name in names:
        values = [prompt[name] for prompt in prompts if name in prompt]
        if name in fills:
            rows = [torch.nn.functional.pad(v, (length - v.shape[1], 0), value=fills[name]) for v in values]
            joined[name] = torch.cat(rows)
        elif isinstance(values[0], torch.Tensor):
            joined[name] = torch.cat(values)
        else:
            joined[name] = [item for value in values for item in value] if isinstance(values[0], list) else values[0]
    return joined


def __getattr__(name: str) -> list[str]:
    """`NAMES`: the families that the installed release has as they are pruned; `LATER`: the others, which are refused.

    Found when asked for: the families' files import this one.
    """
    if name not in ("NAMES", "LATER"):
        raise AttributeError(name)
    every = sorted(path.stem for path in Path(__file__).parent.glob("family_*.py"))
    here = Version(transformers.__version__)
    return [each for each in every if (here >= Version(member(each).since)) == (name == "NAMES")]
