"""A thinker written as the checkpoint that vLLM reads: the config around it, its weights under new names, its errors.

That vLLM serves the folder and answers as transformers does is shown in `vllm_env/test_export.py`.
"""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from omnidrop_vllm import export
from safetensors.torch import load_file

from omnidrop.errors import ModelError
from omnidrop.loading import TINY, load


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.serve_copy(TINY, tmp_path_factory.mktemp("model") / "served")


def test_the_thinker_is_inside_a_full_config(served: Path) -> None:
    config = json.loads((served / "config.json").read_text())
    thinker = json.loads((TINY / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5OmniModel"] and config["model_type"] == "qwen2_5_omni"
    inside = config["thinker_config"]
    assert inside["vision_config"].pop("tokens_per_second") == thinker["position_id_per_seconds"] == 5
    assert inside == thinker
    assert config["dtype"] == thinker["dtype"]


def test_the_weights_keep_their_values_under_new_names(served: Path) -> None:
    before, after = load_file(TINY / "model.safetensors"), load_file(served / "model.safetensors")
    assert set(after) == {f"thinker.{name}" for name in before}
    assert all(torch.equal(after[f"thinker.{name}"], value) for name, value in before.items())
    others = {path.name for path in TINY.iterdir()} - {"config.json", "model.safetensors"}
    assert all((served / name).read_bytes() == (TINY / name).read_bytes() for name in others)


def test_the_folder_is_also_a_model_of_this_library(served: Path) -> None:
    one, other = load(TINY)[0], load(served)[0]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_several_weight_files_get_an_index(tmp_path: Path) -> None:
    tiny.qwen2_5_thinker(layers=2).save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    parts = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 1
    out = export.serve_copy(tmp_path / "parts", tmp_path / "out")
    places = json.loads((out / export.INDEX).read_text())["weight_map"]
    assert sorted(set(places.values())) == parts
    for name in parts:
        assert all(places[weight] == name for weight in load_file(out / name))


def test_a_qwen3_thinker_gets_what_vllm_asks_of_its_vision_config(tmp_path: Path) -> None:
    tiny.qwen3_thinker(layers=2).save_pretrained(tmp_path / "alone")
    config = json.loads((export.serve_copy(tmp_path / "alone", tmp_path / "out") / "config.json").read_text())
    assert config["architectures"] == ["Qwen3OmniMoeForConditionalGeneration"]
    vision = config["thinker_config"]["vision_config"]
    assert vision["image_size"] == 8 * tiny.PATCH  # 64 places, 8 a side
    assert vision["apply_vit_abs_pos_embed"] is True


def test_the_command_names_the_size_of_the_pictures(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert export.processor_kwargs(served) == {"size": {"shortest_edge": 7056, "longest_edge": 7056}}
    assert export.processor_kwargs(tmp_path) == {}
    assert export.main([str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    runner, *words = shlex.split(answer["serve"])
    assert runner == "VLLM_USE_V2_MODEL_RUNNER=0"
    assert words[:3] == ["vllm", "serve", answer["folder"]] == ["vllm", "serve", str(tmp_path / "out")]
    options = dict(pairwise(words))
    assert json.loads(options["--mm-processor-kwargs"]) == export.processor_kwargs(served)
    assert json.loads(options["--additional-config"])["omnidrop"]["keep"] == 0.3
    assert printed.err == ""


def test_errors(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ModelError, match=r"no thinker at .*; name a saved thinker"):
        export.serve_copy(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ModelError, match="'qwen2_5_omni'; this is a full checkpoint: vLLM serves it as it is"):
        export.serve_copy(served, tmp_path / "out")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ModelError, match=r"'qwen2'; this is no thinker, and only qwen2_5_omni_thinker, .* exported"):
        export.serve_copy(tmp_path / "text", tmp_path / "out")
    (tmp_path / "text" / "config.json").write_text((TINY / "config.json").read_text())
    with pytest.raises(ModelError, match="holds no weights"):
        export.serve_copy(tmp_path / "text", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="exists and is no empty folder; name a new one"):
        export.serve_copy(TINY, served)
    assert export.main([str(served)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
