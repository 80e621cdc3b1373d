"""The self-test: the shipped model and clip, each feature against its reference in transformers.

| feature | reference |
|---|---|
| `prune` | the same model, nothing removed: layer l's mask hides what did not enter it (dropped equals masked) |
| `lean` | the stock model: logits, tokens, length of each layer's cache |
| `stream`, nothing pruned, two segments | stock `generate` on the whole clip, without and with its sound |

All compare `STEPS` greedy tokens and the logits of each; the largest difference of a logit must stay below `TOLERANCE`.
With sound a segment's spectrogram ends where it was cut, and so its last frames differ by a little: `SOUND_TOLERANCE`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .finding import Finding

STEPS = 4
KEEP = 0.3
TOLERANCE = 1e-3  # float32; logits of the shipped model are of order 10
SOUND_TOLERANCE = 1e-2
SEGMENT = 8.0  # seconds; the clip has 16
NEEDED = ("torch", "transformers", "numpy")


class SeamError(Exception):
    """A seam does not hold; the text says which number is wrong."""


def run(device: str | None, broken: Sequence[str]) -> list[Finding]:
    """A finding for each feature; one, skipped or failed, where the model cannot be loaded at all."""
    if absent := [name for name in broken if name in NEEDED]:
        return [Finding("self-test", "all", "skipped", f"needs {', '.join(absent)} as above")]
    try:
        import av  # noqa: F401
        import PIL  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        text = f"reading the clip needs pip install av pillow torchvision ({error})"
        return [Finding("self-test", "all", "skipped", text)]
    with _one_thread():
        return [
            _tested(name, device, attention, test)
            for name, attention, test in (
                ("prune, sdpa", "sdpa", _prune),
                ("prune, eager", "eager", _prune),
                ("lean", "sdpa", _lean),
                ("stream", "sdpa", _stream),
            )
        ]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The model is too small to share among threads, which then only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tested(name: str, device: str | None, attention: str, test: Test) -> Finding:
    try:
        text, details = test(_Bench(device, attention))
    except Exception as error:  # whatever a foreign release breaks shall be reported, not end the report
        text = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        kind = "" if isinstance(error, SeamError) else f"{type(error).__name__}: "
        return Finding("self-test", name, "failed", f"{kind}{text}")
    return Finding("self-test", name, "ok", text, details)


class _Bench:
    """The shipped model with one kind of attention, its clip, a question, and what stock `generate` makes of them."""

    def __init__(self, device: str | None, attention: str) -> None:
        from .. import loading, media, prompt
        from ..models import adapt

        self.model, self.processor = loading.load(device=device, attn_implementation=attention)
        self.layers = adapt(self.model).decoder.layers
        self.clip = loading.TINY.parent / "demo.mp4"
        content = json.loads((loading.TINY.parent / "demo.json").read_text(encoding="utf-8"))
        self.question = content["questions"][0]["text"]
        self.inputs = prompt.build(self.processor, media.read(self.clip), self.question).to(self.model.device)

    def generate(self) -> Any:
        return _greedy(self.model, **self.inputs)


Test = Callable[[_Bench], tuple[str, dict[str, Any]]]


def _greedy(model: Any, **given: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model.generate(
            **given,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )


def _prune(bench: _Bench) -> tuple[str, dict[str, Any]]:
    from ..engine.session import prune
    from ..methods import OmniDrop

    with prune(bench.model, OmniDrop(keep=KEEP)) as trace:
        pruned = bench.generate()
    if abs(trace.keep - KEEP) > 0.02:
        raise SeamError(f"the trace says that {trace.keep:.3f} of the tokens were kept, and {KEEP} was asked for")
    kept = [layer[0] for layer in trace.kept]
    _same_lengths(pruned, [len(positions) + STEPS - 1 for positions in kept])
    with _masked(bench.layers, kept, bench.inputs["input_ids"].shape[1]):
        masked = bench.generate()
    text, details = _same(pruned, masked, "dropped equals masked")
    return f"{text}; keep {trace.keep:.3f}", details | {"keep": trace.keep}


def _lean(bench: _Bench) -> tuple[str, dict[str, Any]]:
    from ..engine.lossless import lean

    stock = bench.generate()
    with lean(bench.model):
        ours = bench.generate()
    _same_lengths(ours, [bench.inputs["input_ids"].shape[1] + STEPS - 1] * len(bench.layers))
    return _same(ours, stock, "equals the stock model")


def _stream(bench: _Bench) -> tuple[str, dict[str, Any]]:
    from .. import media, prompt

    silent = prompt.build(bench.processor, media.read(bench.clip, sound=False), bench.question)
    text, details = _same(_streamed(bench, sound=False), _greedy(bench.model, **silent.to(bench.model.device)), WHOLE)
    heard, sound = _same(_streamed(bench, sound=None), bench.generate(), f"{WHOLE} with sound", SOUND_TOLERANCE)
    return f"{text}; with sound {heard.rpartition(', ')[2]}", {**details, "with_sound": sound}


WHOLE = "two segments equal the whole clip"


def _streamed(bench: _Bench, sound: bool | None) -> Any:
    from ..methods import OmniDrop
    from ..streaming import stream

    method = OmniDrop(keep=1.0)
    return _greedy(
        stream(bench.model, bench.processor, bench.clip, bench.question, method=method, segment=SEGMENT, sound=sound)
    )


def _same(ours: Any, reference: Any, claim: str, tolerance: float = TOLERANCE) -> tuple[str, dict[str, Any]]:
    """The claim with its numbers. Raises `SeamError` where it does not hold."""
    new = [out.sequences[0, -STEPS:].tolist() for out in (ours, reference)]
    apart = [float((a.float() - b.float()).abs().max()) for a, b in zip(ours.logits, reference.logits, strict=True)]
    details = {"logit_difference": apart, "tokens": new[0], "reference_tokens": new[1], "tolerance": tolerance}
    if max(apart) > tolerance or new[0] != new[1]:
        step = next((at for at, value in enumerate(apart) if value > tolerance), 0)
        raise SeamError(
            f"not so: {claim}; at step {step} a logit differs by {apart[step]:.2g}, tokens {new[0]}, reference {new[1]}"
        )
    return f"{claim}: {STEPS} tokens, logits to {max(apart):.0e}", details


def _same_lengths(out: Any, expected: Sequence[int]) -> None:
    """Raise `SeamError` unless each layer's cache has the expected number of entries."""
    lengths = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
    for index, (length, wanted) in enumerate(zip(lengths, expected, strict=True)):
        if length != wanted:
            raise SeamError(f"the cache of layer {index} has {length} entries, not {wanted}")


@contextlib.contextmanager
def _masked(layers: Sequence[Any], kept: Sequence[Any], length: int) -> Iterator[None]:
    """Inside, layer l attends only to `kept[l]` of a prompt of `length` tokens, and to all later tokens."""
    handles = [
        layer.register_forward_pre_hook(_hiding(positions, length), with_kwargs=True)
        for layer, positions in zip(layers, kept, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hiding(positions: Any, length: int) -> Callable[[Any, tuple, dict], tuple[tuple, dict]]:
    """A hook that replaces a layer's attention mask: causal, and the prompt's keys outside `positions` hidden."""
    import torch

    visible = torch.zeros(length, dtype=torch.bool)
    visible[positions] = True
    seen = 0

    def hook(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        nonlocal seen
        if "attention_mask" not in kwargs:
            raise SeamError("decoder layers are no longer called with attention_mask, which the reference needs")
        states = args[0] if args else kwargs["hidden_states"]
        rows, total = states.shape[1], seen + states.shape[1]
        key, query = torch.arange(total), torch.arange(seen, total)[:, None]
        shown = torch.ones(total, dtype=torch.bool)
        shown[:length] = visible[:total]
        allowed = (key <= query) & (shown | (key == query))  # a hidden row needs one key; nobody reads its output
        mask = torch.zeros(1, 1, rows, total, dtype=states.dtype, device=states.device)
        mask.masked_fill_(~allowed.to(states.device), torch.finfo(states.dtype).min)
        seen = total
        return args, kwargs | {"attention_mask": mask}

    return hook
