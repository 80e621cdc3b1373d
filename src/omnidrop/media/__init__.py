"""A file on disk becomes pictures with their times, and sound: plain arrays, of bounded size.

The model's own processor does all further preprocessing (`prompt.build`). Files are opened by PyAV, images by Pillow.
"""

from .clip import FPS, MAX_FRAMES, MAX_PIXELS, SAMPLE_RATE, Media, Progress
from .limits import Limits
from .pictures import fit
from .reading import length, read
from .stretches import segments

__all__ = [
    "FPS",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "SAMPLE_RATE",
    "Limits",
    "Media",
    "Progress",
    "fit",
    "length",
    "read",
    "segments",
]
