"""The server's settings, `--additional-config '{"omnidrop": {...}}'`, and those of one request (`vllm_xargs`).

The entry holds a method as `Method.from_json` reads it, with its name under "method"; only `mode` and the default of
`stages` are the server's own. Nothing of vLLM is imported: `config.py` checks the entry against the engine's options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from omnidrop import methods
from omnidrop.core.tokens import Modality
from omnidrop.errors import SettingError
from omnidrop.methods import Method

from .registry import ENTRY

MODES = ("compute-only", "kv-groups")
DEFAULTS: dict[str, Any] = {"keep": 0.3, "stages": 4}  # where the method has such a field and the entry does not say

SWITCH, KEEP = "omnidrop", "omnidrop_keep"  # the keys of a request's vllm_xargs

HEARD = (Modality.AUDIO,)  # encoders whose attention travels with the embeddings (`saliency.py`)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the server does with a request that asks for nothing else."""

    method: Method
    mode: str  # one of `MODES`: are only rows saved, or also the cache of the later stages?

    @property
    def stages(self) -> int:
        """Runs of decoder layers that each see one number of tokens; 1: all is dropped before layer 0."""
        return getattr(self.method, "stages", 1)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        """Modalities whose saliency some request may need: it may ask for less where the server keeps everything."""
        try:
            less = for_request(self, {KEEP: 0.5})
        except SettingError:  # its method takes no other keep
            less = None
        return (less or self.method).saliency


def read(additional_config: Mapping[str, Any] | None) -> Settings | None:
    """The settings in vLLM's `additional_config`; None where it has no "omnidrop" entry, or false or null there.

    `true` and `{}` are the defaults: keep 0.3, 4 stages, mode "kv-groups", method "omnidrop". Raises `SettingError`
    for a name, a value or a method that a server cannot take.
    """
    entry = additional_config.get(ENTRY) if isinstance(additional_config, Mapping) else None
    if entry is None or entry is False:
        return None
    if entry is True:
        entry = {}
    if not isinstance(entry, Mapping):
        raise SettingError(
            f"{ENTRY!r} of --additional-config is {entry!r}; it must be an object such as "
            '{"keep": 0.3, "stages": 4}, or false'
        )
    asked = dict(entry)
    name, mode = asked.pop("method", "omnidrop"), asked.pop("mode", "kv-groups")
    if mode not in MODES:
        raise SettingError(f"mode is {mode!r}; choose one of {', '.join(map(repr, MODES))}")
    try:
        kind = methods.find(str(name))
    except SettingError as error:
        raise SettingError(f"method is {name!r}; choose one of {', '.join(map(repr, _servable()))}") from error
    return Settings(method=_make(kind, name, asked), mode=mode)


def for_request(settings: Settings, extra_args: Mapping[str, Any] | None) -> Method | None:
    """The method for one request: `settings.method` unless its `vllm_xargs` ask otherwise; None is no pruning.

    `{"omnidrop": "off"}` leaves the request alone, `{"omnidrop_keep": 0.5}` is the same method at that keep. Raises
    `SettingError` for anything else under a key that begins with "omnidrop".
    """
    mine = {key: value for key, value in (extra_args or {}).items() if str(key).startswith(ENTRY)}
    unknown = sorted(mine.keys() - {SWITCH, KEEP})
    if unknown:
        raise SettingError(
            f"vllm_xargs has {', '.join(map(repr, unknown))}; a request can set {SWITCH!r} ('on' or 'off') and {KEEP!r}"
        )
    switch = mine.get(SWITCH, "on")
    if switch not in ("on", "off", True, False):  # the server's protocol makes 1 and 0 of true and false
        raise SettingError(f"{SWITCH!r} of vllm_xargs is {switch!r}; choose 'on' or 'off'")
    off = switch in ("off", False)
    if KEEP not in mine:
        return None if off else settings.method
    if off:
        raise SettingError(f"vllm_xargs has {SWITCH!r} 'off' and {KEEP!r} {mine[KEEP]!r}; leave one out")
    keep, name = mine[KEEP], type(settings.method).__name__
    if "keep" not in _fields(type(settings.method)):
        raise SettingError(f"{KEEP!r} of vllm_xargs does not apply to {name}, which has no such setting; leave it out")
    if keep is None:
        raise SettingError(f"{KEEP!r} of vllm_xargs is None; it must be a number in (0, 1]")
    return _checked(replace(settings.method, keep=keep))  # type: ignore[call-arg]


def _make(kind: type[Method], name: str, asked: dict[str, Any]) -> Method:
    """The method with the fields that were asked for. Raises `SettingError`."""
    known = _fields(kind)
    if "stages" not in known and not _before_decoder(kind):
        _refuse(kind, "it drops after single layers, and has no `stages`")
    if "stages" not in known and "stages" in asked:
        raise SettingError(f"stages does not apply to the method {name}, which acts before the decoder; leave it out")
    unknown = sorted(asked.keys() - known)
    if unknown:
        legal = ", ".join(sorted({"method", "mode"} | known))
        raise SettingError(f"{', '.join(map(repr, unknown))} is no setting of {name} in a server; choose from {legal}")
    if "stages" in known and type(asked.get("stages", 1)) is not int:  # null, after every layer, is not for servers
        raise SettingError(f"stages is {asked['stages']!r}; it must be a whole number, 1 or more")
    scheduled = asked.keys() & {"p_init", "p_final"}  # an explicit schedule stands in place of `keep`
    defaults = {"keep": None if scheduled else DEFAULTS["keep"], "stages": DEFAULTS["stages"]}
    defaults = {field: value for field, value in defaults.items() if field in known}
    method = _checked(Method.from_json({**defaults, **asked, "name": name}))
    if method.query.startswith("speech"):
        raise SettingError(
            f"query is {method.query!r}, which few requests of a server could follow; choose 'after_media' or "
            "'question': a recording without text beside it then asks by itself"
        )
    return method


def _before_decoder(kind: type[Method]) -> bool:
    """Whether a method can act once, before the decoder: with one number of tokens for all layers."""
    return kind.stage == "input"


def _fields(kind: type[Method]) -> set[str]:
    return {field.name for field in fields(kind)}


def _checked(method: Method) -> Method:
    obstacle = _obstacle(method)
    if obstacle:
        _refuse(type(method), obstacle)
    return method


def _refuse(kind: type[Method], obstacle: str) -> NoReturn:
    raise SettingError(
        f"the method {kind.__name__} cannot be served: {obstacle}; choose one of {', '.join(_servable())}"
    )


def _obstacle(method: Method) -> str | None:
    """Why a server cannot run a method with these settings, in words; None if it can."""
    if method.in_layers and "stages" not in _fields(type(method)):
        return "with these settings it drops inside the decoder, and has no `stages`"
    if method.evict:
        return "evict=True lets layers forget after the prefill, and pages of a server's cache do not shrink"
    if method.before_encoder:
        return "pixels leaves out parts of a video before the vision encoder, which runs whole in a server"
    unheard = [kind.name.lower() for kind in method.saliency if kind not in HEARD]
    if unheard:
        return f"it reads the attention inside the {unheard[0]} encoder, which does not leave the encoder here"
    return None


def _servable() -> list[str]:
    """Names of the methods that can be served with their default settings."""
    names = []
    for name, kind in sorted(methods.available().items()):
        if "stages" not in _fields(kind) and not _before_decoder(kind):
            continue
        try:
            servable = _obstacle(kind()) is None
        except TypeError:  # it has no default settings
            continue
        if servable:
            names.append(name)
    return names
