"""The vision encoder embeds its patches by one matrix product, which is what its convolution is.

Each patch comes as a row of its own numbers, and kernel and stride are the patch: nothing overlaps, so the convolution
over (patches, channels, time, height, width) is a linear map of rows. Libraries run it as a general convolution of
thousands of tiny volumes, several times slower than the product.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ...models import Adapter
from ..hooks import temporary_attribute
from .reads import WHAT


def attach(stack: ExitStack, adapter: Adapter) -> None:
    """Multiply instead of convolving until `stack` closes."""
    if adapter.vision is None or "patches" not in adapter.vision.lean:
        return
    embed: Any = adapter.vision.module.patch_embed
    convolve, kernel = embed.forward, embed.proj

    def forward(patches: Tensor) -> Tensor:
        if kernel.weight.device.type == "meta":
            return convolve(patches)  # the weights are moved in when the convolution itself is called
        weight = kernel.weight.flatten(1)  # (width, numbers of a patch)
        return nn.functional.linear(patches.reshape(-1, weight.shape[1]).to(weight.dtype), weight, kernel.bias)

    if type(kernel) is nn.Conv3d and kernel.kernel_size == kernel.stride:
        stack.enter_context(temporary_attribute(embed, "forward", forward, WHAT))
