"""Pack many image-classification tasks into one pretrained network (PackNet, Mallya and Lazebnik, CVPR 2018)."""

__version__ = "0.1.0"
