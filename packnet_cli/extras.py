"""Optional packages and the extras that install them; checked before anything heavy is imported."""

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
    """The missing package of an extra, and how to install it, as text; None if none is missing."""
    package = next((package for package in EXTRAS[extra] if find_spec(package) is None), None)
    return package and f"{package}, which is not installed: pip install 'packnet-cli[{extra}]'"


def require(extra: str) -> None:
    """Raise UsageError that says how to install an extra, unless all its packages are installed."""
    needed = missing(extra)
    if needed:
        raise UsageError(f"this needs {needed}")
