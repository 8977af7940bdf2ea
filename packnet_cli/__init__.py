"""Pack many image-classification tasks into one pretrained network (PackNet, Mallya and Lazebnik, CVPR 2018)."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packnet_cli.engine.using.packed import Packed

__all__ = ["load"]
__version__ = "0.1.0"


def load(path: str | os.PathLike[str]) -> "Packed":
    """Load a packed model, which gives its tasks as plain timm networks. Raises ArtifactError, NetworkError.

    Only this call imports torch: `import packnet_cli` stays quick.
    """
    from pathlib import Path

    from packnet_cli.artifact import format
    from packnet_cli.engine.using.packed import Packed

    return Packed(format.load(Path(path)))
