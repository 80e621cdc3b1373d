"""Define torchvision's two missing operator schemas in the moment in which somebody imports torchvision.

`install.py` copies this file into an environment whose torchvision cannot be imported otherwise, under the name
`omnidrop_torchvision_hook`, and lets a `.pth` file import it whenever that Python starts. Nothing heavy is imported
then: torch follows with torchvision, which needs it anyway.
"""

import sys


class Schemas:
    """A finder that finds nothing: it defines the schemas once, and leaves torchvision to the finders behind it."""

    library = None  # a torch.library.Library lives as long as its definitions shall

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Called for each import that is not in `sys.modules`; returns None for all."""
        if name == "torchvision" and self.library is None:
            import torch

            from omnidrop._torchvision import _SCHEMAS

            self.library = torch.library.Library("torchvision", "DEF")
            for schema in _SCHEMAS:
                self.library.define(schema)


sys.meta_path.insert(0, Schemas())
