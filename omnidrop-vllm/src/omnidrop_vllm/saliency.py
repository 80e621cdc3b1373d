"""What each audio token received in its encoder's last attention, carried along with its embedding.

Hooks around one run of the audio tower, and extra columns behind the embeddings. Pooling is the adapter's, arithmetic
`omnidrop.score`'s.

vLLM runs encoders apart from the decoder, perhaps steps earlier, and keeps one tensor per media item until
the prompt is due. A number per token that must arrive together with that tensor travels inside it: its float32 bits,
seen in the embeddings' own dtype, are columns like any others. They survive caching and slicing; nothing is rounded.

Shapes: n tokens of one item, D width of the decoder, c extra columns (1 in float32, 2 in bfloat16 and float16), T rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from omnidrop.core.tokens import RECORDING
from omnidrop.engine.probes import AttentionProbe
from omnidrop.models.base import Adapter, split_heads

TAG = "modality"  # the attribute in which vLLM's runner notes what a gathered embedding is; its merge reads it


class AudioProbe:
    """The last self-attention of an audio tower, while it ran.

    `mean`: averages a tensor over the devices between which the tower's heads are split (tensor parallel), to the same
    numbers on each of them; where every device runs the whole tower it changes nothing.
    """

    def __init__(self, tower: Any, adapter: Adapter, mean: Callable[[Tensor], Tensor] | None = None) -> None:
        assert adapter.audio is not None, "a tower of audio belongs to a model with an audio encoder"
        self._audio, self._mean = adapter.audio, mean
        attention = tower.layers[-1].self_attn
        if hasattr(attention, "qkv_proj"):  # vLLM's own towers project all three at once
            projections = {"joint": attention.qkv_proj}
        else:
            projections = {"queries": attention.q_proj, "keys": attention.k_proj}
        self.probe = AttentionProbe(attention=attention, projections=projections)

    def received(self, mel_frames: Tensor, span: str | None = None) -> Tensor:
        """(tokens,) float32 over all recordings that the tower has just read.

        mel_frames (recordings,): the length of each, as the tower was told; span: as in `methods.base.Method.spans`.
        """
        lengths = self._audio.frame_counts(mel_frames) if span == RECORDING else None
        frames = self.probe.received(self.probe.calls.pop(), self._split, lengths)
        tokens = self._audio.pool(frames, mel_frames)
        return tokens if self._mean is None else self._mean(tokens)

    def _split(self, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys (heads, frames, width) of a pass."""
        width = self.probe.attention.head_dim
        if "joint" in given:
            queries, keys, _ = given["joint"].chunk(3, dim=-1)
        else:
            queries, keys = given["queries"], given["keys"]
        return split_heads(queries, width), split_heads(keys, width)


@contextmanager
def listening(
    tower: nn.Module, adapter: Adapter, mean: Callable[[Tensor], Tensor] | None = None
) -> Iterator[AudioProbe]:
    """Note the last self-attention of `tower` while it runs; `received` then gives what each token got.

        with listening(model.audio_tower, adapter) as audio:
            items = model.run_the_tower(...)
        values = audio.received(mel_frames)

    Leaving, also by an exception, removes the hooks.
    """
    audio = AudioProbe(tower, adapter, mean)
    probe = audio.probe
    probe.open()
    handles = [probe.attention.register_forward_pre_hook(partial(_begin, probe), with_kwargs=True)]
    for name, projection in probe.projections.items():
        handles.append(projection.register_forward_hook(partial(_note, probe, name)))
    try:
        yield audio
    finally:
        for handle in handles:
            handle.remove()


def _begin(probe: AttentionProbe, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    probe.begin(kwargs["cu_seqlens"] if "cu_seqlens" in kwargs else args[1])


def _note(probe: AttentionProbe, name: str, module: nn.Module, args: tuple, output: Any) -> None:
    probe.note(name, output[0] if isinstance(output, tuple) else output)  # vLLM's layers return (output, bias)


def columns(dtype: torch.dtype) -> int:
    """How many columns of `dtype` hold one float32."""
    return torch.float32.itemsize // dtype.itemsize


def attach(embeds: Tensor, saliency: Tensor) -> Tensor:
    """(n, D) and (n,) -> (n, D + c): the float32 bits of `saliency` behind the embeddings, in their dtype."""
    bits = saliency.to(embeds.device, torch.float32)[:, None].contiguous().view(embeds.dtype)
    return torch.cat([embeds, bits], dim=1)


def detach(tensors: Sequence[Tensor], width: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """Inverse of `attach`, for slices of items too: embeddings as vLLM expects them, and (n,) float32 each.

    tensors: (n, D + c) where something was attached; any other width (a picture, with Qwen3-Omni's DeepStack levels
    behind it) is given back as it is, with None. width: D. vLLM's note of the modality goes along.
    """
    embeds, saliency = list[Tensor](), list[Tensor | None]()
    for tensor in tensors:
        if tensor.shape[1] != width + columns(tensor.dtype):
            embeds.append(tensor)
            saliency.append(None)
            continue
        own = tensor[:, :width]
        if hasattr(tensor, TAG):
            setattr(own, TAG, getattr(tensor, TAG))
        embeds.append(own)
        # a copy, even of a single row: inside the item a float may start at an odd place
        bits = tensor[:, width:].clone(memory_format=torch.contiguous_format)
        saliency.append(bits.view(torch.float32)[:, 0])
    return embeds, saliency


def spread(saliency: Sequence[Tensor | None], hears: Tensor) -> Tensor:
    """One number a row of an engine step: what an audio row's token received, 0 elsewhere.

    saliency: from `detach`, in the order of the step's rows; hears (T,) bool, the rows that take an audio embedding.
    Returns (T,) float32 on the device of `hears`. The device is not waited for.
    """
    rows = torch.zeros(hears.shape, dtype=torch.float32, device=hears.device)
    found = [values for values in saliency if values is not None]
    return rows.masked_scatter_(hears, torch.cat(found)) if found else rows
