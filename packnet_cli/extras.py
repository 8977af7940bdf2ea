"""Optional packages: which extra brings them, asked before anything heavy is imported."""

from importlib.util import find_spec

from packnet_cli.errors import UsageError

EXTRAS = {
    "hfds": ("datasets",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "tfds": ("tensorflow", "tensorflow_datasets"),
}


def missing(extra: str) -> str | None:
    """What of an extra is not installed, and how to install it, in a few words; None if all of it is there."""
    package = next((package for package in EXTRAS[extra] if find_spec(package) is None), None)
    return package and f"{package}, which is not installed: pip install 'packnet-cli[{extra}]'"


def require(extra: str) -> None:
    """Raise UsageError that says how to install an extra, unless all of its packages are there."""
    needed = missing(extra)
    if needed:
        raise UsageError(f"this needs {needed}")
