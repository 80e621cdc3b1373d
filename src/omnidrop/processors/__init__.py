"""How each family's processor is asked: by the class of the processor, since a prompt is built without the model.

Above `models`, since a processor reads `Media`. A family whose processor works like one of these takes one line here.
"""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from .base import ClipProcessor, hearable
from .gemma4 import Gemma4Clips, Gemma4UnifiedClips
from .nemotron import NemotronClips
from .qwen_omni import QwenOmni, video_size
from .qwen_vl import Qwen3VL, Qwen25VL
from .sound import AudioFlamingo3Clips, Qwen2AudioClips, Qwen3AsrClips, VoxtralClips

PORTS: dict[str, type[ClipProcessor]] = {
    "Qwen2_5OmniProcessor": QwenOmni,
    "Qwen3OmniMoeProcessor": QwenOmni,
    "Qwen2_5_VLProcessor": Qwen25VL,
    "Qwen3VLProcessor": Qwen3VL,
    "Gemma4Processor": Gemma4Clips,
    "Gemma4UnifiedProcessor": Gemma4UnifiedClips,
    "NemotronH_Omni_Reasoning_V3Processor": NemotronClips,
    "Qwen2AudioProcessor": Qwen2AudioClips,
    "VoxtralProcessor": VoxtralClips,
    "AudioFlamingo3Processor": AudioFlamingo3Clips,
    "Qwen3ASRProcessor": Qwen3AsrClips,
}


def port_of(processor: Any) -> ClipProcessor:
    """The port of a processor of transformers. Raises `ModelError` for one of another class."""
    names = [cls.__name__ for cls in type(processor).__mro__]
    for name in names:
        if name in PORTS:
            return PORTS[name](processor)
    raise ModelError(
        f"a {names[0]} is no processor that omnidrop knows; supported: {', '.join(PORTS)}. Build the inputs with the "
        "model's own processor and chat template; `prune` takes them as they are"
    )


__all__ = ["PORTS", "ClipProcessor", "hearable", "port_of", "video_size"]
