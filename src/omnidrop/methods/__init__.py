"""The pruning methods, one file each. A new method adds its file and one import line here."""

from .base import Method
from .omnidrop import OmniDrop

METHODS: dict[str, type[Method]] = {"omnidrop": OmniDrop}

__all__ = ["METHODS", "Method", "OmniDrop"]
