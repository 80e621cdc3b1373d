"""The pruning methods, one file each. A new method adds its file and one import line here; its name is the class's.

Other packages add methods by entry points of the group `omnidrop.methods` (docs/add_a_method.md).
"""

from __future__ import annotations

from inspect import isabstract

from .apack import APack as APack
from .base import METHODS as METHODS
from .base import Method as Method
from .base import available as available
from .base import find as find
from .cutoff import Cutoff as Cutoff
from .dash import DASH as DASH
from .divprune import DivPrune as DivPrune
from .dycoke import DyCoke as DyCoke
from .fastv import FastV as FastV
from .omnidrop import OmniDrop as OmniDrop
from .omnipack import OmniPack as OmniPack
from .omnizip import OmniZip as OmniZip
from .pyramiddrop import PyramidDrop as PyramidDrop
from .random import Random as Random
from .seats import SEATS as SEATS
from .text import parse as parse
from .text import read as read
from .tuned import Tuned as Tuned
from .uniform import Uniform as Uniform
from .visionzip import VisionZip as VisionZip

METHODS.update(
    (kind.__name__.lower(), kind)
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Method) and not isabstract(kind)
)
