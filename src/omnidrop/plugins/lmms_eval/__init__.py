"""The models and tasks of this library inside lmms-eval (0.7.3), found through its entry point `lmms_eval.models`.

What it is: `manifests`, which the harness calls when it starts; `model` (the models), `task` (the strict tasks), and
`python -m omnidrop.plugins.lmms_eval`, which writes the files that `--include_path` wants. What it is not: a harness.
`omnidrop eval` asks the same questions with the same code, and is the path to trust (docs/lmms_eval.md says why).

The one idea: the harness decides which questions are asked and keeps the books; everything between a question and its
answer is `omnidrop.evals`, the same as in our own runner.
"""

from __future__ import annotations

from typing import Any

MODELS = {"omnidrop_qwen2_5_omni": "Qwen25Omni", "omnidrop_qwen3_omni": "Qwen3Omni"}


def manifests() -> list[Any]:
    """What the entry point gives to the harness; nothing heavy is imported before a model is chosen."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=name, simple_class_path=f"{__name__}.model.{kind}") for name, kind in MODELS.items()]
