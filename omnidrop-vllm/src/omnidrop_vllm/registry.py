"""The models and the vLLM release that the plugin knows."""

from __future__ import annotations

ENTRY = "omnidrop"  # the key of additional_config
TESTED = "0.32"  # the release of vLLM whose internals the plugin was written for and tested on
SEAM = "try_verify_and_update_config"  # of VllmConfig: called whenever one is made

THINKERS = {  # vLLM's name of the architecture -> our class
    "Qwen2_5OmniModel": "omnidrop_vllm.qwen2_5_omni:Qwen25Omni",
    "Qwen2_5OmniForConditionalGeneration": "omnidrop_vllm.qwen2_5_omni:Qwen25Omni",
    "Qwen3OmniMoeForConditionalGeneration": "omnidrop_vllm.qwen3_omni_moe:Qwen3OmniMoe",
}


def refusal(architecture: str) -> str:
    """What to say of a model that is none of `THINKERS`."""
    from omnidrop.models import THINKERS as IN_TRANSFORMERS

    instead = 'leave out "omnidrop" in --additional-config'
    if architecture in IN_TRANSFORMERS:
        instead += ", or prune it with transformers (`omnidrop run`, `omnidrop batch --engine transformers`)"
    return (
        f"omnidrop cannot prune a {architecture} in vLLM: it knows the thinkers of Qwen2.5-Omni and Qwen3-Omni there; "
        f"{instead}"
    )
