"""The models and tasks of this project inside lmms-eval (0.7.3), found through its entry point `lmms_eval.models`.

The harness calls `manifests` when it starts; `model` has the models, `task` the strict tasks, and
`python -m omnidrop_lab.lmms_eval` writes the files for `--include_path`. The harness chooses the questions and keeps
the results; everything between a question and its answer is the code of `omnidrop eval`, which is the recommended way
(docs/lmms_eval.md gives the reasons).
"""

from __future__ import annotations

from typing import Any

MODELS = {"omnidrop_qwen2_5_omni": "Qwen25Omni", "omnidrop_qwen3_omni": "Qwen3Omni"}


def manifests() -> list[Any]:
    """What the entry point gives to the harness; nothing heavy is imported before a model is chosen."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=name, simple_class_path=f"{__name__}.model.{kind}") for name, kind in MODELS.items()]
