"""A trace's file, read and checked as a whole: whoever sends one, what comes out of here is a trace.

Two steps: the schema (`trace.schema.json`: names, types, ranges), and that the lists fit each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError, InputError, SettingError, described
from . import schema
from .schema import SchemaError, shown
from .tokens import Modality

FORMAT, VERSION = "omnidrop.trace", 1
MAX_BYTES = 1 << 28  # of a file; Python needs up to 20 times as much to hold what is in it
SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "trace.schema.json").read_text(encoding="utf-8"))


def write(path: str | os.PathLike[str], document: Any) -> None:
    """Raises `FileError` where the file cannot be written."""
    place, text = _checked(path), json.dumps(document, allow_nan=False)
    try:
        place.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FileError.of(f"the trace cannot be written to {path}", error) from error


def read(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Any:
    """The JSON document of a file; not yet checked.

    Raises `FileError` where the file cannot be read, `InputError` for what is no such document.
    """
    place = _checked(path)
    try:
        with place.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise FileError.of(f"the trace {path} cannot be read", error) from error
    if len(content) > max_bytes:
        raise InputError(
            f"{path} has more than {max_bytes} bytes; Trace.load(path, max_bytes=...) takes a larger trace"
        )
    try:
        return json.loads(content.decode(), parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError as error:
        raise InputError(f"{path} is not a trace: it is nested too deeply") from error
    except ValueError as error:  # no UTF-8, no JSON, an integer of thousands of digits
        raise InputError(f"{path} is not a trace: {error}") from error


def _checked(path: str | os.PathLike[str]) -> Path:
    """Raises `SettingError` for what is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise SettingError(f"the path of a trace is {described(path)}; give the name of a file as str or Path")
    return Path(path)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def check(document: Any) -> None:
    """Raise `InputError` where a document, or one in its history, is no trace of this version."""
    if not isinstance(document, Mapping) or any(
        type(document.get(name)) is not type(wanted) or document[name] != wanted
        for name, wanted in (("format", FORMAT), ("version", VERSION))
    ):
        raise InputError(f"not a trace of version {VERSION}: {_heading(document)}; save it again with this version")
    _check_one(document, "")
    for place, earlier in enumerate(document["history"]):
        where = f"history[{place}]: "
        _check_one(earlier, where)
        if earlier["history"]:
            raise InputError(f"not a trace: {where}a prompt of the history has a history of its own")


def _heading(document: Any) -> str:
    if not isinstance(document, Mapping):
        return shown(document)
    return f"format {shown(document.get('format'))}, version {shown(document.get('version'))}"


def _check_one(document: Mapping[str, Any], where: str) -> None:
    try:
        schema.check(document, SCHEMA)
        valid, prunable = _check_layout(document["layout"], document["prunable"])
        kept = _check_kept(document, valid)
        if len(remarks := document.get("extrapolated", [])) not in (0, len(valid)):
            raise SchemaError(f"extrapolated has {len(remarks)} rows; the layout has {len(valid)}")
        if len(first := document.get("first_token", [])) not in (0, len(valid)):
            raise SchemaError(f"first_token has {len(first)} rows; the layout has {len(valid)}")
        for name in ("questions", "answers", "media"):
            if len(said := document.get("origin", {}).get(name, [])) not in (0, len(valid)):
                raise SchemaError(f"origin.{name} has {len(said)} entries; the layout has {len(valid)} rows")
        if "encoded" in document:
            _check_encoded(document["encoded"], torch.tensor(document["layout"]["modality"]), kept[0])
        if "scores" in document:
            _check_scores(document["scores"], kept, prunable)
    except SchemaError as error:
        raise InputError(f"not a trace: {where}{error}") from error


def _check_layout(layout: Mapping[str, Any], prunable: list[int]) -> tuple[Tensor, Tensor]:
    """(B, L) bool: the valid positions, and those that may be dropped."""
    rows, length = len(layout["modality"]), len(layout["modality"][0])
    for name, lists in layout.items():
        if len(lists) != rows or any(len(row) != length for row in lists):
            raise SchemaError(f"layout.{name} is not {rows} by {length} as layout.modality is")
    modality, valid = torch.tensor(layout["modality"]), torch.tensor(layout["valid"])
    media, seen = modality != Modality.TEXT, modality == Modality.VIDEO
    if not valid.any(1).all() or (media & ~valid).any():
        raise SchemaError("layout.valid leaves a row without a token, or media on padding")
    known = torch.tensor([[value is not None for value in row] for row in layout["second"]])
    said = {name: torch.tensor(layout[name]) >= 0 for name in ("item", "chunk", "frame")} | {"second": known}
    for name, where in said.items():
        wanted = seen if name == "frame" else media
        if not torch.equal(where, wanted):
            b, at = (where != wanted).nonzero()[0].tolist()
            kind = Modality(int(modality[b, at])).name.lower()
            raise SchemaError(f"layout.{name}[{b}][{at}] does not go with a token of {kind}")
    for name in ("item", "frame"):
        if int(torch.tensor(layout[name]).max()) >= length:
            raise SchemaError(f"layout.{name} counts beyond the {length} tokens that there are")
    asking = torch.tensor(layout["query"])
    return valid, valid & ~asking & torch.isin(modality, torch.tensor(prunable, dtype=torch.long))


def _check_shape(shape: Mapping[str, Any]) -> None:
    layers, each, after = shape["layers"], shape.get("each", []), shape.get("drops_after") or []
    if each and len(each) < layers:
        raise SchemaError(f"shape.each has {len(each)} layers; shape.layers is {layers}")
    for number, layer in enumerate(each):
        owner = layer.get("owner")
        if (owner is None) is not (number < layers) or (owner is not None and owner >= layers):
            raise SchemaError(f"shape.each[{number}].owner is {owner}; shape.layers, those with keys, is {layers}")
    if any(b <= a for a, b in pairwise(after)) or (after and after[-1] >= layers - 1):
        raise SchemaError(f"shape.drops_after is {shown(after)}: not ascending below the last of {layers} layers")


def _check_kept(document: Mapping[str, Any], valid: Tensor) -> list[list[Tensor]]:
    _check_shape(document["shape"])
    layers, (rows, length) = document["shape"]["layers"], valid.shape
    if len(document["kept"]) != layers:
        raise SchemaError(f"kept has {len(document['kept'])} layers; shape.layers is {layers}")
    kept = [[torch.tensor(row, dtype=torch.long) for row in layer] for layer in document["kept"]]
    before = valid
    for number, layer in enumerate(kept):
        if len(layer) != rows:
            raise SchemaError(f"kept[{number}] has {len(layer)} rows; the layout has {rows}")
        here = torch.zeros_like(valid)
        for b, positions in enumerate(layer):
            if len(positions) and (int(positions.max()) >= length or bool((positions.diff() <= 0).any())):
                raise SchemaError(f"kept[{number}][{b}] is no ascending list of positions below {length}")
            here[b, positions] = True
        if bool((here & ~before).any()):
            raise SchemaError(f"kept[{number}] holds a position that did not reach this layer")
        before = here
    return kept


def _check_encoded(encoded: list[list[int]], modality: Tensor, entered: list[Tensor]) -> None:
    """modality (B, L), entered[b]: what entered the first layer of row b."""
    if len(encoded) != len(modality):
        raise SchemaError(f"encoded has {len(encoded)} rows; the layout has {len(modality)}")
    for b, (row, here) in enumerate(zip(encoded, entered, strict=True)):
        made = torch.zeros(modality.shape[1], dtype=torch.bool)
        if any(later <= earlier for earlier, later in pairwise(row)) or (row and row[-1] >= len(made)):
            raise SchemaError(f"encoded[{b}] is no ascending list of positions below {len(made)}")
        made[row] = True
        video = modality[b] == Modality.VIDEO
        if bool((made & ~video).any()) or bool((video & ~made)[here].any()):
            raise SchemaError(f"encoded[{b}] holds what is no video token, or not one that entered the decoder")


def _check_scores(scores: list[Any], kept: list[list[Tensor]], prunable: Tensor) -> None:
    if [len(layer) for layer in scores] != [len(layer) for layer in kept]:
        raise SchemaError("scores has other layers or rows than kept")
    for number, (layer, positions) in enumerate(zip(scores, kept, strict=True)):
        for b, (row, here) in enumerate(zip(layer, positions, strict=True)):
            if len(row) != int(prunable[b, here].sum()):
                raise SchemaError(f"scores[{number}][{b}] has {len(row)} numbers for other tokens than kept")
