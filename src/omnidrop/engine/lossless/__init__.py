"""`omnidrop.lean(model)` drops no tokens. It skips unused computation and bounds what is held or looped over at once.

One switch per saving, one file each; the results equal the stock model's to rounding. `lean` and `prune` are
independent and nest in either order: both use PyTorch's hooks, and where a hook is not enough, `lean` gives a submodule
a temporary instance attribute `forward` that calls the same submodules.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from weakref import WeakSet, finalize

from torch import nn

from ...errors import ModelError, SettingError
from ...models import Adapter, adapt
from ..hooks import refuse_compiled
from ..upstream import names_of
from . import encoder_patches, encoder_rows, encoder_windows, last_layer, last_logits, mlp_rows, positions
from .reads import Reads

_lean: WeakSet[nn.Module] = WeakSet()  # thinkers inside a `with` right now


def lean(
    model: nn.Module,
    *,
    last_logits: bool = True,
    last_layer: bool | None = None,
    mlp_rows: int | None = None,
    encoder_windows: bool = True,
    encoder_patches: bool = True,
    encoder_rows: int | None = None,
    positions: bool = True,
) -> Lean:
    """Make `model` cheaper for the length of the `with`; its answers stay the same.

        with omnidrop.lean(model), omnidrop.prune(model, method) as trace:
            output = model.generate(**inputs)

    `model`: an unmodified model of transformers, of a family that docs/models.md names. The switches, each of which is
    left out by itself where it does not apply:

    `last_logits`: the head computes the newest position only; a prompt's `logits` are (B, 1, V), not (B, L, V). A call
        with `labels` gets all. Assisted decoding, which reads several positions, is refused.
    `last_layer`: the last decoder layer computes keys and values of all positions, the rest of the newest only. None
        follows `last_logits`. Off in calls with `labels`, hidden states (speech asks for them), attentions or router
        logits.
    `mlp_rows`: the decoder's MLPs run at most that many positions at once. 0 is off, None chooses from the sizes.
    `encoder_windows`: the encoders attend to all windows of one length in one call, instead of one call per window.
        For attention "sdpa"; FlashAttention does it already, and eager attention is left as it is.
    `encoder_patches`: the vision encoder embeds patches by one matrix product, which is what its convolution is.
    `encoder_rows`: the encoders run at most about that many patches or mel frames at once, cut where no attention
        reaches across: between pictures, between windows of sound. 0 is off, None is 1,024 on a CPU, else 8,192.
    `positions`: the host numbers the tokens of a video with sound (Qwen2.5-Omni) from plain numbers.

    Rows of a batch are expected as generation needs them, padded on the left. Leaving, also by an exception, restores
    the model exactly. Raises `ModelError` for an unsupported model or way of decoding, `SettingError` for wrong
    settings.
    """
    return Lean(
        _adapter=adapt(model),
        last_logits=last_logits,
        last_layer=last_logits if last_layer is None else last_layer,
        mlp_rows=mlp_rows,
        encoder_windows=encoder_windows,
        encoder_patches=encoder_patches,
        encoder_rows=encoder_rows,
        positions=positions,
    )


@dataclass(frozen=True, kw_only=True)
class Lean:
    """What `lean` gives: a context manager, to be entered as often as wanted, one `with` after another."""

    last_logits: bool
    last_layer: bool
    mlp_rows: int | None
    encoder_windows: bool
    encoder_patches: bool
    encoder_rows: int | None
    positions: bool
    _adapter: Adapter = field(repr=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def __post_init__(self) -> None:
        names_of(self._adapter)  # a release that calls things otherwise is refused here
        for name in ("last_logits", "last_layer", "encoder_windows", "encoder_patches", "positions"):
            if not isinstance(value := getattr(self, name), bool):
                raise SettingError(f"{name} is {value!r}; it must be True or False")
        for name in ("mlp_rows", "encoder_rows"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise SettingError(f"{name} is {value!r}; it must be a number of rows, 0 (off) or None (chosen)")
        if self.last_layer and not self.last_logits:
            raise SettingError(
                "last_layer=True with last_logits=False: a last layer that computes the newest position only has no "
                "other logits to give; leave out last_layer, or set last_logits=True"
            )

    def __enter__(self) -> Lean:
        adapter = self._adapter
        if any(part in _lean for part in adapter.parts):
            raise ModelError(
                "this model, or one that shares its decoder or encoders, is lean already: leave the other "
                "`with omnidrop.lean(...)` first"
            )
        refuse_compiled([*adapter.parts, *adapter.decoder.layers])
        with ExitStack() as stack:  # undoes what was done when something fails on the way
            _lean.update(adapter.parts)
            stack.callback(_lean.difference_update, adapter.parts)
            reads = Reads()
            reads.attach(stack, adapter)
            if self.last_logits:
                last_logits.attach(stack, adapter, reads)
            if self.last_layer:
                last_layer.attach(stack, adapter, reads)
            if self.mlp_rows != 0:
                mlp_rows.attach(stack, adapter, self.mlp_rows)
            if self.encoder_windows:
                encoder_windows.attach(stack, adapter)
            if self.encoder_patches:
                encoder_patches.attach(stack, adapter)
            if self.encoder_rows != 0:
                encoder_rows.attach(stack, adapter, self.encoder_rows)
            if self.positions:
                positions.attach(stack, adapter)
            undo = stack.pop_all()
        self._stack.callback(undo.close)
        lost = finalize(self, _switch_off, undo)
        lost.atexit = False
        self._stack.callback(lost.detach)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _switch_off(undo: ExitStack) -> None:
    undo.close()
    warnings.warn(
        "the object that omnidrop.lean(...) returned was lost before its `with` was left: the model is as it was "
        "before; keep it, or use `with omnidrop.lean(model):`",
        RuntimeWarning,
        stacklevel=2,
    )
