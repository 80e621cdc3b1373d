"""One form of a method: `to_json` and `from_json` are inverse, and text and presets go through the same checks."""

from __future__ import annotations

import json
import types
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnidrop import OmniDrop, SettingError, Uniform, methods
from omnidrop.methods import Method

pytestmark = pytest.mark.slow

WORDS = {  # settings that are one of a few words
    "budget": ["layers", "input", "flops", "kv", "total"], "query": ["after_media", "question", "last"],
    "images": ["keep", "prune"], "where": ["input", "layers"], "task": ["answer", "transcribe"],
    "pixels": ["temporal", "novelty", "run_length", "diversity"],
}  # fmt: skip
BY_KIND = {
    bool: st.booleans(),
    int: st.integers(0, 40),
    float: st.floats(0.01, 1.0),
    types.NoneType: st.none(),
}


def settings_of(kind: type[Method]) -> st.SearchStrategy[dict[str, Any]]:
    hints = get_type_hints(kind)
    found, required = {}, {}
    for field in fields(kind):
        kinds = get_args(hints[field.name]) or (hints[field.name],)
        if field.name in WORDS:
            values = st.sampled_from(WORDS[field.name])
        elif set(kinds) <= BY_KIND.keys():
            values = st.one_of(*(BY_KIND[each] for each in kinds))
        else:
            continue
        (required if field.default is MISSING else found)[field.name] = values
    return st.fixed_dictionaries(required, optional=found)


@pytest.mark.parametrize("name", methods.METHODS)
@settings(deadline=None)  # a busy machine is no failure
@given(data=st.data())
def test_from_json_is_the_inverse_of_to_json(name: str, data: st.DataObject) -> None:
    kind = methods.METHODS[name]
    settings = data.draw(settings_of(kind))
    try:
        method = kind(**settings)
    except SettingError:  # settings that exclude each other
        with pytest.raises(SettingError):
            Method.from_json({"name": name, **settings})
        return
    document = json.loads(json.dumps(method.to_json()))
    assert Method.from_json(document) == method == kind.from_json(document)
    assert Method.from_json({"name": name, **settings}) == method  # what is left out has its default
    text = ",".join(f"{field}={value}" for field, value in document.items() if field != "name")
    assert methods.parse(f"{name}:{text}") == method


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"name": "magic"}, "there is no method 'magic'; choose one of .*omnidrop"),
        ({"name": "omnidrop", "kepp": 0.3}, "'kepp' is no setting of omnidrop; choose from .*keep"),
        ({"name": "omnidrop", "keep": "0.3"}, "keep is '0.3'; it must be of the kind float or null"),
        ({"name": "omnidrop", "evict": 1}, "evict is 1; it must be of the kind bool"),
        ({"name": "omnidrop", "tds_start": 1.5}, "tds_start is 1.5; it must be of the kind int or null"),
        ({"name": "omnidrop", "keep": True}, "keep is True; it must be of the kind float or null"),
        ({"name": "omnidrop", "keep": 3}, r"keep is 3; it must lie in"),
        ({"name": "cutoff"}, "cutoff has no default for layer; write cutoff:layer=VALUE"),
        ({"keep": 0.3}, "is no method; write an object such as"),
        ({"name": None}, "is no method; write an object such as"),
        ("omnidrop", "'omnidrop' is no method; write an object such as"),
    ],
    ids=str,
)
def test_a_wrong_document_is_refused(document: Any, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Method.from_json(document)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("omnidrop:keep=much", "keep is 'much'; it must be of the kind float or null"),
        ("omnidrop:evict=1", "evict is '1'; it must be of the kind bool"),
        ("omnidrop:tds_start=1.5", "tds_start is '1.5'; it must be of the kind int or null"),
        ("uniform:keep=none", "keep is 'none'; it must be of the kind float"),
        ("paper/7b/25", "there is no method 'paper/7b/25'"),
        ("paper/7b/30:colour=1", "'colour=1' is no setting of paper/7b/30"),
    ],
)
def test_wrong_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        methods.parse(text)


def test_a_class_reads_its_own_methods_only() -> None:
    assert Uniform.from_json({"name": "Uniform", "keep": 0.5}) == Uniform(keep=0.5)
    with pytest.raises(SettingError, match=r"OmniDrop is no Uniform; read it with OmniDrop\.from_json"):
        Uniform.from_json(OmniDrop().to_json())


def test_a_preset_is_a_method_whose_settings_can_be_changed() -> None:
    paper = OmniDrop.paper("7b", 30)
    assert paper == OmniDrop(keep=None, p_init=0.0, p_final=0.2, tds_start=14) == methods.parse("paper/7b/30")
    assert methods.parse("paper/7b/30:stages=4", keep=0.1) == OmniDrop(
        keep=None, p_init=0.0, p_final=0.2, tds_start=14, stages=4
    )
