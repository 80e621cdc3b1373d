"""The base classes of pruning methods: a method is a frozen, keyword-only dataclass with three functions on one sample.

A method uses `omnidrop.core` (schedule, score, select, ...) and knows no hook, model or cache: the engine shows it one
sample at a time through a view, and applies what it returns. `with omnidrop.prune(model, method)` applies it.

`Method` is the contract. `Budgeted` adds `keep` and `budget`, the target that every method shares; `InputMethod` is a
Budgeted method that acts once, before the decoder, and writes one function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from importlib.metadata import entry_points
from inspect import isabstract
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ..core.budget import TokenCounts, check_budget
from ..core.schema import shown
from ..core.select import quota
from ..core.tokens import Modality, Runs
from ..errors import SettingError
from .checks import check_flag as check_flag
from .checks import check_keep as check_keep
from .checks import check_pixels as check_pixels
from .checks import check_query as check_query
from .checks import check_range as check_range
from .checks import check_sizes as check_sizes
from .checks import check_stages as check_stages
from .checks import check_types
from .checks import check_whole as check_whole


@dataclass(frozen=True, kw_only=True)
class PixelView:
    """One video before the vision encoder: its F temporal grids of P units, each of which would become a token.

    Neither the question nor the other media of the prompt are known there: `generate` encodes ahead of the prompt.
    """

    units: Tensor  # (F, P, D), the pixel values of a unit, as the encoder is given them
    budget: TokenCounts  # of a prompt with this video and nothing else

    @property
    def runs(self) -> Runs:
        """`InputView.runs` of such a prompt."""
        frames, places = self.units.shape[:2]
        return [(int(Modality.VIDEO), 0, frames * places, frames)]


@dataclass(frozen=True, kw_only=True)
class InputView:
    """One sample's N prunable tokens after the encoders, before the decoder; in order of position."""

    modality: Tensor  # (N,) long
    item: Tensor  # (N,) long, which video, audio or image
    frame: Tensor  # (N,) long, temporal grid of a video token; -1 elsewhere
    chunk: Tensor  # (N,) long, 2 s chunk, counted on over all clips
    features: Tensor  # (N, D), the encoders' outputs as the decoder would read them
    question: Tensor  # (Q, D), the embeddings of the rows that ask
    prompt_hash: int  # of the prompt's token ids, the same in every batch
    runs: Runs  # (modality, item, tokens, frames) of every clip, known on the host
    budget: TokenCounts  # the sample's counts; `input_count` is still `total`
    max_chunk: int  # highest chunk index of the whole prompt
    saliency: Tensor | None = None  # (N,) float32, attention got in the encoder's last layer; 0 where not asked for,
    # and None where nothing was, or the model has no encoder (`Method.needs_encoders`)
    audio_window: int = 0  # audio tokens of a full attention window of the encoder; 0: of any length
    encoded: tuple[Tensor | None, ...] = ()  # per run, which of its tokens the encoder made, ascending; None: all.
    # Empty: all of all clips. The features of the others are zeros, and they may not enter (`Method.at_pixels`)

    def encoded_of(self, run: int) -> Tensor | None:
        """(n,) long: which of the tokens of `runs[run]` were encoded; None: all."""
        return self.encoded[run] if self.encoded else None

    def all_encoded(self) -> Tensor | None:
        """Where the tokens that were encoded are among the N, ascending; None: all were."""
        if all(some is None for some in self.encoded):
            return None
        places = [self.places(modality, item, tokens) for modality, item, tokens, _ in self.runs]
        parts = zip(places, self.encoded, strict=True)
        return torch.cat([mine if some is None else mine[some] for mine, some in parts]).sort().values

    def places(self, modality: int, item: int, tokens: int) -> Tensor:
        """Where the tokens of one clip (a run) are among the N: (tokens,) ascending; their number is known, no sync."""
        return quota.where((self.modality == modality) & (self.item == item), tokens)

    def tail(self, tokens: int) -> int:
        """How many of a recording's tokens are in a last encoder window that is shorter than those before it."""
        return tokens % self.audio_window if 0 < self.audio_window < tokens else 0


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One sample's n media tokens that entered a decoder layer, once that layer has run."""

    layer: int
    layers: int  # depth of the decoder
    prompt_hash: int  # as in `InputView`
    max_chunk: int  # highest chunk index of the whole prompt
    fact: Callable[[str], Tensor]  # "modality", "item", "frame" or "chunk" of the n tokens; pay only if you call
    head_attention: Callable[[], Tensor]  # (H, n) float32, mean over the asking rows; pay only if you call
    hidden: Callable[[], Tensor]  # (n, D), the states that leave the layer
    question_hidden: Callable[[], Tensor]  # (Q, D), those of the rows that ask

    @cached_property
    def modality(self) -> Tensor:
        """(n,) long, a `Modality`."""
        return self.fact("modality")

    @cached_property
    def item(self) -> Tensor:
        """(n,) long, which video, audio or image."""
        return self.fact("item")

    @cached_property
    def frame(self) -> Tensor:
        """(n,) long, temporal grid of a video token; -1 elsewhere."""
        return self.fact("frame")

    @cached_property
    def chunk(self) -> Tensor:
        """(n,) long, 2 s chunk, counted on over all clips."""
        return self.fact("chunk")

    @cached_property
    def scores(self) -> Tensor:
        """S of eq. 5: mean attention from the asking rows, (n,) float32."""
        return self.head_attention().mean(0)


class Merged(NamedTuple):
    """Survivors that took something over from dropped tokens."""

    kept: Tensor  # (K,) long, ascending
    features: Tensor  # (K, D) in place of the survivors' own: embeddings at the input, hidden states in a layer


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of every method. Subclasses are frozen keyword-only dataclasses; their fields are their settings.

    The class's docstring explains every field, also the inherited ones, in a section "Fields:".
    """

    stage: ClassVar[str] = "layers"  # where it acts by default: "input", "layers" or "input + layers"
    reference: ClassVar[str] = ""  # the paper, with its arXiv number
    spans: ClassVar[Mapping[Modality, str]] = MappingProxyType({})  # see `saliency`
    needs_encoders: ClassVar[bool] = True  # False: it ranks otherwise where a model has no encoder for its `saliency`
    query = "after_media"  # which rows ask, one of `core.query.QUERIES`; a method that lets users choose has a field
    evict = False  # whether layers forget, after the prefill, what later layers dropped

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # else `dataclass` makes one that shows every field
            cls.__repr__ = Method.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """`keep`, and the settings that differ from their defaults."""
        shown = [
            f"{spec.name}={getattr(self, spec.name)!r}"
            for spec in fields(self)
            if spec.name == "keep" or getattr(self, spec.name) != spec.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def prunable(self) -> tuple[Modality, ...]:
        """Modalities whose tokens may be dropped; `keep` counts over these."""
        return (Modality.AUDIO, Modality.VIDEO)

    @property
    def in_layers(self) -> bool:
        """Whether it drops tokens after decoder layers, with these settings."""
        return self.stage != "input"

    @property
    def saliency(self) -> tuple[Modality, ...]:
        """Modalities for which `at_input` reads `InputView.saliency`; their encoders are watched only then.

        Attention is that inside the encoder's own windows. `spans` asks for another soft-max: `tokens.RECORDING` over
        the whole recording of an audio token, `tokens.TWO_GRIDS` over two temporal grids of a video.
        """
        return ()

    @property
    def before_encoder(self) -> bool:
        """Whether it drops parts of a video before the vision encoder (`at_pixels`), with these settings."""
        return False

    def at_pixels(self, view: PixelView) -> Tensor | None:
        """Which of a video's F * P units are encoded: ascending indices, or None for all.

        Asked of every clip with more than one temporal grid, where `before_encoder` says so. The placeholders of the
        others leave with those that `at_input` drops, and count in `keep` as they do.
        """
        return None

    def at_input(self, view: InputView) -> Tensor | Merged | None:
        """Which of the N tokens enter the decoder: ascending indices, or None for all that were encoded."""
        return None

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
        """How many tokens `at_input` lets in, from counts alone: a serving engine asks before any feature exists.

        `runs` and `budget` as in `InputView`, with at least one token that may be dropped. Raises `SettingError` for a
        method whose input stage does not say it.
        """
        if type(self).at_input is not Method.at_input:
            raise SettingError(
                f"{type(self).__name__} cannot be planned ahead: it has an input stage, but no `input_count`; "
                "choose another method, or write it"
            )
        return budget.total

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        """Where this prompt's target leaves what the method's paper defines: the settings used and the paper's. Or "".

        `runs` and `budget` as in `InputView`; `budget.input_count` is what `at_input` let in. Asked only where tokens
        are dropped. The trace shows it, and tables mark it.
        """
        return ""

    @abstractmethod
    def plan(self, budget: TokenCounts) -> list[int]:
        """k_l for each of the L layers: how many tokens the output of layer l loses. The last must be 0."""

    @abstractmethod
    def at_layer(self, view: LayerView, k: int) -> Tensor | Merged:
        """Which n - k of the n tokens go on to the next layer: ascending indices."""

    def for_task(self, task: str) -> Method:
        """The method as it is used with a model that is made for `task` ("answer", "transcribe"): itself, unless a
        setting is left to the model.
        """
        return self

    def to_json(self) -> dict[str, Any]:
        """{"name": the class's name, setting: value, ...}: a method in traces, results and configurations."""
        return {"name": type(self).__name__, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; settings that are left out have their defaults.

        Raises `SettingError` for an unknown name, a method that is no `cls`, an unknown or missing setting, and a value
        of the wrong type or out of range.
        """
        if not isinstance(document, Mapping) or not isinstance(document.get("name"), str):
            raise SettingError(
                f'{shown(document)} is no method; write an object such as {{"name": "OmniDrop", "keep": 0.3}}'
            )
        settings = {str(field): value for field, value in document.items() if field != "name"}
        name, kind = document["name"], find(document["name"])
        if not issubclass(kind, cls):
            raise SettingError(
                f"{name} is no {cls.__name__}; read it with {kind.__name__}.from_json or Method.from_json"
            )
        known = {spec.name for spec in fields(kind)}
        unknown = sorted(settings.keys() - known)
        if unknown:
            raise SettingError(
                f"{', '.join(map(repr, unknown))} is no setting of {name}; choose from {', '.join(sorted(known))}"
            )
        missing = [spec.name for spec in fields(kind) if spec.default is MISSING and spec.name not in settings]
        if missing:
            raise SettingError(f"{name} has no default for {', '.join(missing)}; write {name}:{missing[0]}=VALUE")
        check_types(kind, settings)
        return kind(**settings)


@dataclass(frozen=True, kw_only=True)
class Budgeted(Method):
    """A method with a target: the share `keep` remains, counted as `budget` says. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
    """

    keep: float = 0.3
    budget: str = "layers"

    def __post_init__(self) -> None:
        check_sizes(self)
        check_keep(self.keep)
        check_budget(self.budget)


@dataclass(frozen=True, kw_only=True)
class InputMethod(Budgeted):
    """A method that acts once, between encoders and decoder: it implements `choose`."""

    stage: ClassVar[str] = "input"

    @abstractmethod
    def choose(self, view: InputView, n: int) -> Tensor | Merged:
        """Exactly n of the N tokens, 1 <= n < N: ascending indices."""

    def least(self, runs: Runs, budget: TokenCounts) -> int:
        """The fewest tokens it can keep of this prompt; `runs` and `budget` as in `InputView`."""
        return 1

    def most(self, runs: Runs, budget: TokenCounts) -> int:
        """The most tokens it can keep of this prompt, if it drops any."""
        return budget.total

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
        least, most = self.least(runs, budget), self.most(runs, budget)
        return budget.count(self.keep, self.budget, least=least, most=most, what=type(self).__name__)

    def at_input(self, view: InputView) -> Tensor | Merged | None:
        n = self.input_count(view.runs, view.budget)
        return None if n == view.budget.total else self.choose(view, n)

    def plan(self, budget: TokenCounts) -> list[int]:
        return [0] * budget.layers

    def at_layer(self, view: LayerView, k: int) -> Tensor | Merged:
        raise AssertionError(f"{type(self).__name__} plans no drop inside the decoder")


METHODS: dict[str, type[Method]] = {}  # the library's own, by name in lower case; `omnidrop.methods` enters them
GROUP = "omnidrop.methods"  # entry points with which other packages add methods


def available() -> dict[str, type[Method]]:
    """Every method by its name in lower case: the library's own, then those of installed packages.

    Raises `SettingError` when an installed package's entry point cannot be loaded, is no method, or takes the name of
    another.
    """
    found = dict(METHODS)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        origin = f"the entry point {entry.name!r} ({entry.value}) of {entry.dist.name if entry.dist else 'a package'}"
        try:
            kind = entry.load()
        except Exception as error:
            raise SettingError(f"{origin} cannot be loaded: {error!r}; repair or uninstall the package") from error
        if not (isinstance(kind, type) and issubclass(kind, Method) and not isabstract(kind)):
            raise SettingError(f"{origin} is no omnidrop.Method; it must name a complete subclass")
        if entry.name in found:
            raise SettingError(f"{origin} takes a name that is in use; rename it there")
        found[entry.name] = kind
    return found


def find(name: str) -> type[Method]:
    """The method of that name: its class's, or the one under which a package entered it; upper or lower case.

    Other packages are loaded only for names that are not the library's own. Raises `SettingError` for an unknown name.
    """
    own = METHODS.get(name.lower())
    if own is not None:
        return own
    kinds = available()
    by_class = {kind.__name__.lower(): kind for kind in kinds.values()}
    kind = kinds.get(name) or by_class.get(name.lower())
    if kind is None:
        raise SettingError(f"there is no method {name!r}; choose one of {', '.join(sorted(kinds))}")
    return kind
