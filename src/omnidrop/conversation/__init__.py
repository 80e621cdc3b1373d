"""Several questions about media that are encoded once."""

from .chat import Answered, Conversation

__all__ = ["Answered", "Conversation"]
