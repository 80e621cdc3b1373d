"""Gemma 4 unified (12B): images, video and sound without encoders; tokens are projected pixels and samples.

Class: transformers `Gemma4UnifiedForConditionalGeneration`. Prompts, layers and shared keys are Gemma 4's, without
per-layer embeddings. There is no encoder whose attention could rank tokens: methods that need it are refused, but for
OmniDrop, whose input stage then ranks sound by novelty (`methods/omnidrop.py`).
"""

from __future__ import annotations

from .base import Adapter
from .gemma4 import UNSTREAMED, Gemma4, Gemma4Decoder, Gemma4Prompt


class Gemma4Unified(Adapter):
    thinkers = ("Gemma4UnifiedForConditionalGeneration",)
    model_types = ("gemma4_unified",)
    processor = "Gemma4UnifiedProcessor"
    since = "5.23"
    unstreamed = UNSTREAMED
    thinker_parameters = Gemma4.thinker_parameters
    decoder_class, prompt_class = Gemma4Decoder, Gemma4Prompt
