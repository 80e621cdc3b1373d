"""Layer-wise pruning inside vLLM: `vllm serve MODEL --additional-config '{"omnidrop": {"keep": 0.3}}'`.

vLLM finds `register` by its entry point and calls it in every process that it starts. It makes the pruning thinkers and
their configuration check known, and does nothing else: a server that is not asked to prune runs vLLM's own code. The
method is the library's (schedule, score, select, prefill); this folder only fits it into the engine. docs/vllm.md.
"""

from __future__ import annotations

THINKERS = {  # vLLM's name of the architecture -> our class
    "Qwen2_5OmniModel": "omnidrop.plugins.vllm.qwen2_5_omni:Qwen25Omni",
    "Qwen2_5OmniForConditionalGeneration": "omnidrop.plugins.vllm.qwen2_5_omni:Qwen25Omni",
    "Qwen3OmniMoeForConditionalGeneration": "omnidrop.plugins.vllm.qwen3_omni_moe:Qwen3OmniMoe",
}


def register() -> None:
    """The entry point `omnidrop` of the group `vllm.general_plugins`. May be called more than once in a process."""
    from vllm import ModelRegistry

    from .config import attach

    for architecture, where in THINKERS.items():
        ModelRegistry.register_model(architecture, where)
    attach(THINKERS)
