"""What the families of sound alone share: a text decoder with plain positions, prompts without pictures, and Whisper's
encoder.

Whisper's encoder reads rows of equal length (30 s as 3,000 mel frames, 1,500 frames in its layers), padding included.
Every row is one attention window; what is padding is hidden from it, or (Voxtral) is sound like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.tokens import MediaSizes, Vocabulary
from ..errors import InputError
from .base import Adapter, AudioEncoder, Decoder, PromptFormat, as_long
from .side_inputs import along, counted, left_out


class TextDecoder(Decoder):
    """Qwen2 and Llama: one rotary axis, no norms of queries and keys."""

    position_axes = 1
    side_inputs = MappingProxyType({"position_ids": counted})
    layer_side_inputs = MappingProxyType({"position_embeddings": along(-2), "position_ids": left_out})

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_proj

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_proj


class RowsOfFeatures(AudioEncoder):
    """An encoder of rows (rows, bins, frames), each of which it encodes for itself. `sizes`: mel frames of each row."""

    packed = False
    item_dim = None

    def sizes_of(self, call: Callable[[str], Any], thinker: Callable[[str], Any]) -> Tensor:
        """Raises `InputError` where generation has put the rows out of the order of their prompts."""
        check_order(call("input_features"), thinker("input_ids"))
        return self.mel_frames(call, thinker)

    def mel_frames(self, call: Callable[[str], Any], thinker: Callable[[str], Any]) -> Tensor:
        """(rows,) long, padding left out where the encoder does so."""
        return call(self.sizes_parameter).sum(-1).long()


class Whisper(RowsOfFeatures):
    """Mel frames / 2 by convolution, one window a row, / 2 by the mean of two frames. `sizes`: mel frames of each row.

    The attention has no rotary and is given no bounds of windows.
    """

    sizes_parameter = "input_features"
    attention_parameters = ()
    frames_per_token = 2

    @staticmethod
    def mel_window(audio: Any) -> int:
        return 2 * audio.max_source_positions

    @property
    def row_frames(self) -> int:
        """Frames of a row in the encoder's layers, padding included."""
        return self.config.audio_config.max_source_positions

    def frame_counts(self, mel_frames: Tensor) -> list[int]:
        return ((as_long(mel_frames) - 1) // 2 + 1).tolist()

    def token_counts(self, mel_frames: Tensor) -> list[int]:
        return [frames // self.frames_per_token for frames in self.frame_counts(mel_frames)]

    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Of all rows (rows, frames, heads * width), one after another."""
        return super().queries_keys({name: given[name].flatten(0, 1) for name in ("queries", "keys")})

    def spans(self, sizes: Tensor, span: str | None) -> list[int]:
        """Row by row its sound, then its padding, which attention keeps apart. A recording of one row is its window."""
        return [part for frames in self.frame_counts(sizes) for part in (frames, self.row_frames - frames)]

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        rows, each = received.view(-1, self.row_frames), self.frames_per_token
        parts = zip(rows, self.token_counts(sizes), strict=True)
        return torch.cat([row[: tokens * each].view(-1, each).mean(1) for row, tokens in parts])


class AudioPrompt(PromptFormat):
    """Sound and text."""

    token_fields = ("audio_token_id",)
    mask_parameter: ClassVar[str] = "input_features_mask"  # the input that says which mel frames are no padding
    tokens_per_second: ClassVar[float] = 25.0
    in_windows: ClassVar[bool] = False  # whether a recording may be several rows of features
    closed: ClassVar[bool] = False  # as in `Vocabulary`: configs have no id for the marks around sound
    asks_before: ClassVar[bool] = False

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return replace(super().vocabulary, closed=self.closed, asks_before=self.asks_before)

    def missing(self, argument: Callable[[str], Any]) -> str | None:
        """Positions simply count: nothing is lost without a mask."""
        return None

    def sizes(
        self,
        *,
        image_grid: Tensor | None = None,
        video_grid: Tensor | None = None,
        mel_frames: Tensor | None,
        seconds_per_grid: Sequence[float] | Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> MediaSizes:
        """Mel frames of each row of features -> tokens of each recording.

        With `input_ids` (B, L), rows are joined that belong to one recording. Without, each is a recording of its own.
        """
        assert self.audio is not None
        tokens = [] if mel_frames is None else self.audio.token_counts(mel_frames)
        if self.in_windows and input_ids is not None:
            tokens = joined(tokens, runs(input_ids, self.config.audio_token_id), self.audio.window_tokens)
        return MediaSizes(audio_tokens=tokens, audio_tokens_per_second=self.tokens_per_second)

    def mel_frames(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Mel frames of each row of features in a processor's output."""
        mask = inputs.get(self.mask_parameter)
        return None if mask is None else mask.sum(-1)

    def sizes_of(self, inputs: Mapping[str, Any]) -> MediaSizes:
        return self.sizes(mel_frames=self.mel_frames(inputs), input_ids=inputs["input_ids"])


class AudioOnly(Adapter):
    """A thinker `model.language_model` + `model.audio_tower` + `lm_head`."""

    task = "transcribe"
    decoder_class = TextDecoder
    prompt_class = AudioPrompt


def whole_rows(features: Tensor) -> Tensor:
    """(rows,) long: mel frames of each of (rows, bins, frames), padding included."""
    return torch.full((features.shape[0],), features.shape[-1])


def check_order(features: Tensor, input_ids: Tensor | None) -> None:
    """Raise `InputError` where prompts were repeated one after another, but their rows of features each by itself.

    `generate` does so for beams and return sequences: rows a, b of one prompt come as a, a, b, b for its two copies.
    """
    if input_ids is None or not 1 < input_ids.shape[0] < features.shape[0]:
        return
    copies = input_ids.shape[0] // input_ids.unique_consecutive(dim=0).shape[0]
    if copies > 1 and features.shape[0] % copies == 0:
        groups = features.unflatten(0, (-1, copies))
        if torch.equal(groups, groups[:, :1].expand_as(groups)):
            raise InputError(
                "several rows of sound belong to one prompt, and beams or several return sequences put them out of "
                "order in transformers, also without omnidrop: ask for one sequence without beams"
            )


def runs(input_ids: Tensor, token: int) -> list[list[int]]:
    """Per row of (B, L), the lengths of its runs of `token`, in order."""
    found = []
    for row in (input_ids == token).cpu():
        edges = torch.nn.functional.pad(row.long(), (1, 1)).diff()
        starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        found.append((ends - starts).tolist())
    return found


def joined(tokens: Sequence[int], rows: Sequence[Sequence[int]], window: int) -> list[int]:
    """Tokens of each row of features -> tokens of each recording: the rows of features that fill one run.

    `rows`: per prompt the lengths of its runs. Inside a run a recording ends with a row that is shorter than `window`;
    of two adjacent recordings the first of which fills its last row, nothing tells, and they count as one.
    Raises `InputError` where the rows do not fill the runs.
    """
    have, given = sum(map(sum, rows)), sum(tokens)
    copies = have // given if given else 1  # prompts that generation repeated without their features
    if given == 0 or have != given * copies:
        return list(tokens)  # the layout says what does not fit
    recordings, left = [], iter(tokens)
    for run in (run for row in rows[::copies] for run in row):
        filled, ended = 0, True
        while filled < run:
            size = next(left, None)
            if size is None or filled + size > run:
                raise InputError(
                    f"a run of {run} audio placeholders is not filled by whole windows of sound, {list(tokens)} tokens "
                    "each: the rows of features do not come in the order of their prompts (beams and several return "
                    "sequences reorder a recording of several windows; ask for one)"
                )
            if ended:
                recordings.append(0)
            recordings[-1] += size
            filled, ended = filled + size, size < window
    return recordings
