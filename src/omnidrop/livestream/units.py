"""Units of a live clip: encoded once, held as features, and joined to one clip whenever a question comes.

A unit is a stretch of the stream that no encoder attention leaves: whole pictures, whole windows of sound. Held units
become one video (or recording) of the prompt, as if the stretches between them had not been there; only the positions
in time tell how far apart they are. Where nothing is missing these are the model's own positions.

Shapes: S media tokens of a unit, L prompt tokens, P text before the media.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.tokens import Modality, TokenLayout
from ..engine.given import encode, given_outputs, given_positions, tokens_in
from ..engine.reuse import Encoded
from ..methods import Method
from ..models import Adapter, adapt, layout
from ..streaming import RESERVED
from ..streaming.place import local, split


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """A stretch of the stream after the encoders."""

    start: float  # seconds since the stream began
    seconds: float
    ids: Tensor  # (S,) its audio and video placeholders, in order
    modality: Tensor  # (S,) of each, a `Modality`
    grid: Tensor | None  # (1, 3) time, height, width in patches; None without pictures
    second_per_grid: Tensor | None  # (1,)
    mel_frames: int  # 0 without sound
    outputs: dict[str, Encoded]  # by the encoder's name

    @property
    def end(self) -> float:
        return self.start + self.seconds

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        small = self.ids.nbytes + self.modality.nbytes
        return small + sum(item.nbytes for item in self.outputs.values())

    def __repr__(self) -> str:
        return f"Unit({self.start:g} to {self.end:g} s, {self.tokens} tokens, {self.nbytes} bytes)"


def encode_unit(
    model: nn.Module, method: Method, inputs: Mapping[str, Any], start: float, seconds: float, device: Any = None
) -> Unit:
    """Run the encoders over a stretch. `inputs`: those of a prompt with this stretch as its one clip."""
    tokens: TokenLayout = layout(model, inputs)
    first, end = split(tokens)
    mask = inputs.get("feature_attention_mask")
    there = adapt(model).thinker.device
    moved = {name: value.to(there) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return Unit(
        start=start,
        seconds=seconds,
        ids=inputs["input_ids"][0, first:end].cpu(),
        modality=tokens.modality[0, first:end],
        grid=inputs.get("video_grid_thw"),
        second_per_grid=inputs.get("video_second_per_grid"),
        mel_frames=0 if mask is None else int(mask.sum()),
        outputs=encode(model, method, moved, device),
    )


def joined_inputs(units: Sequence[Unit]) -> dict[str, Any]:
    """The encoders' inputs of one clip made of `units`: sizes, and zeros of no width in place of the media."""
    inputs: dict[str, Any] = {}
    grids = [unit.grid for unit in units if unit.grid is not None]
    if grids:
        time = torch.cat(grids)[:, :1].sum(0, keepdim=True)
        inputs["video_grid_thw"] = torch.cat([time, grids[0][:, 1:]], 1)
        inputs["pixel_values_videos"] = torch.zeros(int(inputs["video_grid_thw"].prod()), 1)
        inputs["video_second_per_grid"] = next(u.second_per_grid for u in units if u.second_per_grid is not None)
    if frames := sum(unit.mel_frames for unit in units):
        inputs["input_features"] = torch.zeros(1, 1, frames)
        inputs["feature_attention_mask"] = torch.ones(1, frames, dtype=torch.long)
    if grids and frames:
        inputs["use_audio_in_video"] = True
    return inputs


def positions(adapter: Adapter, inputs: Mapping[str, Any], units: Sequence[Unit], first: int) -> Tensor:
    """(3, 1, L) positions of a prompt whose clip, from token `first` on, is `units`: each at its own time.

    The model's own positions for the clip, as if it had no gaps, and every unit moved on by the gaps before it, as
    `streaming.place` moves segments. Gaps that would leave the model's range are shortened, all by one factor.
    """
    natural = local(adapter, inputs)
    moves = gaps(adapter, units)
    if not any(moves):
        return natural
    moved, place = natural.clone(), first
    for unit, move in zip(units, moves, strict=True):
        timed = torch.zeros(3, unit.tokens, dtype=torch.bool)
        timed[0] = True  # time; sound has its time on all three axes
        timed[:, unit.modality == Modality.AUDIO] = True
        moved[:, 0, place : place + unit.tokens] += timed * move
        place += unit.tokens
    clip = slice(first, place)
    moved[..., place:] += moved[..., clip].max() - natural[..., clip].max()
    return moved


def gaps(adapter: Adapter, units: Sequence[Unit]) -> list[int]:
    """How many positions each unit moves on, for what is missing between the first unit and it."""
    rate = adapter.config.position_id_per_seconds
    missing, end = [0.0], units[0].end
    for unit in units[1:]:
        missing.append(missing[-1] + (unit.start - end) * rate)
        end = unit.end
    held = sum(unit.seconds for unit in units) * rate
    room = adapter.decoder.config.max_position_embeddings - RESERVED - held
    factor = 1.0 if missing[-1] <= room else max(room, 0.0) / missing[-1]
    return [math.floor(each * factor + 1e-6) for each in missing]


@contextmanager
def answering(adapter: Adapter, units: Sequence[Unit], at: Tensor) -> Iterator[None]:
    """For the length of the `with` a prompt of `joined_inputs(units)` is answered: features given, positions `at`."""
    names = [encoder.name for encoder in adapter.encoders]
    parts = {name: [unit.outputs[name] for unit in units if name in unit.outputs] for name in names}
    with ExitStack() as stack:
        stack.enter_context(given_outputs(adapter, parts))
        stack.enter_context(given_positions(adapter, at))
        yield


def summaries(adapter: Adapter, unit: Unit) -> dict[str, Tensor]:
    """What units are compared by, per encoder: (N, D) float32 rows of length 1, see `distance`.

    Pictures are compared place by place, by the features of all tokens; sound by its mean, since the same sound begins
    at any time.
    """
    found = {}
    for encoder in adapter.encoders:
        kinds = torch.tensor([int(kind) for kind in encoder.modalities])
        count = int(torch.isin(unit.modality, kinds).sum())
        if encoder.name not in unit.outputs or count == 0:
            continue
        features = tokens_in(unit.outputs[encoder.name], count).float()
        if Modality.AUDIO in encoder.modalities:
            features = features.mean(0, keepdim=True)
        found[encoder.name] = torch.nn.functional.normalize(features, dim=-1, eps=1e-12)
    return found


def distance(one: Tensor, other: Tensor) -> float:
    """1 - mean cosine of rows (N, D) and (N', D) at the same places, in [0, 2]."""
    rows = min(len(one), len(other))
    return 1.0 - float((one[:rows] * other[:rows]).sum()) / rows
