"""Let PyPI's torchvision import beside a CPU build of torch.

PyPI's torchvision wheel is compiled against CUDA torch. Beside a CPU torch its compiled library cannot load, and the
import fails with "operator torchvision::nms does not exist", because torchvision registers fake kernels for two
operators that the library would have defined. Defining their schemas first is enough: the processors of transformers
only use torchvision's pure-Python transforms. This is the one place where omnidrop does so, and only on the way to
reading media (`omnidrop.load`, `omnidrop run`), never on `import omnidrop`.
"""

from __future__ import annotations

import sys

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None  # a torch.library.Library lives as long as its definitions shall


def ensure_importable() -> None:
    """Import torchvision; where its compiled operators cannot load, define the two schemas it trips over first.

    Does nothing when torchvision is absent (transformers then says itself what to install) or already imported.
    """
    global _library
    if "torchvision" in sys.modules:
        return
    import torch

    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        import torchvision  # noqa: F401
