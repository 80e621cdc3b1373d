"""Encoders apart from the decoder: run them alone on a prompt, and later answer with what they made.

`encode` runs a prompt up to its decoder, so that the encoders see what they see in `generate`. `given_outputs` lets
them return stored outputs for the length of a `with`, part after part in the order of a longer clip: no attention of
the encoders reaches across parts that are whole windows of sound and whole pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import Method
from ..models import Adapter, adapt
from ..models.base import Encoder
from .hooks import Owned, temporary_attribute
from .lossless.encoder_rows import joined
from .probes import LISTENING
from .reuse import Encoded, mapped, tensors_in
from .session import prune
from .upstream import POSITIONS, Signature, names_of

WHAT = "omnidrop.live"  # for messages about these hooks


class _EncodedError(Exception):
    """The encoders have run, and the decoder is not wanted."""


def encode(model: nn.Module, method: Method, inputs: Mapping[str, Any], device: Any = None) -> dict[str, Encoded]:
    """What each encoder makes of a prompt, by its name, with the attention that `method` ranks by.

    `inputs`: as for `generate`. `device`: where to keep the outputs; None for where they were made. Raises as `prune`.
    """
    adapter, found = adapt(model), dict[str, Encoded]()

    def stop(*_: Any) -> None:
        raise _EncodedError

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(adapter.decoder.module.register_forward_pre_hook(Owned(stop, WHAT)))
        for encoder in adapter.encoders:
            forward = _recording(encoder, names_of(adapter).encoders[encoder.name], found, device)
            stack.enter_context(temporary_attribute(encoder.module, "forward", forward, WHAT))
        stack.enter_context(prune(model, method, history=0))
        with suppress(_EncodedError):
            adapter.thinker(**inputs, use_cache=False)
    return found


def _recording(encoder: Encoder, signature: Signature, found: dict[str, Encoded], device: Any) -> Callable[..., Any]:
    """The encoder's forward, which notes what it makes, as far as the decoder reads it: one row a token.

    (Beside its merged tokens a vision encoder returns the patches before they are merged, which are larger.)
    """
    whole = encoder.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        tokens = sum(encoder.item_tokens(signature.read(args, kwargs, encoder.sizes_parameter)))
        read = mapped(output, lambda tensor: tensor if len(tensor) == tokens else tensor[:0].clone())
        probe = LISTENING.get(encoder.module)
        item = Encoded(output=read, attended=tuple(probe.calls[-1]) if probe else None)
        found[encoder.name] = mapped(item, lambda tensor: tensor.to(device or tensor.device))
        return output

    return forward


@contextmanager
def given_outputs(adapter: Adapter, parts: Mapping[str, Sequence[Encoded]]) -> Iterator[None]:
    """Let each encoder return its `parts`, joined in order, whatever it is called with."""
    with ExitStack() as stack:
        for encoder in adapter.encoders:
            forward = _giving(encoder, parts.get(encoder.name, ()))
            stack.enter_context(temporary_attribute(encoder.module, "forward", forward, WHAT))
        yield


def _giving(encoder: Encoder, parts: Sequence[Encoded]) -> Callable[..., Any]:
    """A forward that returns what is given."""
    device = next(encoder.module.parameters()).device

    def forward(*args: Any, **kwargs: Any) -> Any:
        items = [mapped(part, lambda tensor: tensor.to(device)) for part in parts]
        if probe := LISTENING.get(encoder.module):
            probe.calls[-1].extend(each for item in items for each in item.attended or ())
        return joined([item.output for item in items])

    return forward


@contextmanager
def given_positions(adapter: Adapter, positions: Tensor) -> Iterator[None]:
    """Let the model number its prompt's tokens by `positions` (3, 1, L), and go on behind the last."""
    delta = (positions.max() + 1 - positions.shape[-1]).view(1, 1)

    def numbered(input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return positions.to(input_ids.device), delta.to(input_ids.device)

    with ExitStack() as stack:
        for module in dict.fromkeys([adapter.thinker, adapter.backbone]):  # `generate` asks the one, `forward` another
            if hasattr(module, POSITIONS):
                stack.enter_context(temporary_attribute(module, POSITIONS, numbered, WHAT))
        yield


def tokens_in(item: Encoded, tokens: int) -> Tensor:
    """(tokens, D): the features among an encoder's outputs that enter the decoder, one row a token."""
    return next(tensor for tensor in tensors_in(item.output) if tensor.dim() == 2 and len(tensor) == tokens)
