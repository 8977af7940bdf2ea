"""Optional packages and the extras that install them; checked before anything else that takes time."""

import os
from importlib import import_module
from importlib.util import find_spec

from packnet_cli.errors import UsageError, reason

EXTRAS = {
    "hfds": ("datasets",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "tfds": ("importlib_resources", "tensorflow", "tensorflow_datasets"),
}


def missing(extra: str) -> str | None:
    """The package of an extra that cannot be used, and why, as text; None if there is none."""
    package = next((package for package in EXTRAS[extra] if find_spec(package) is None), None)
    if package:
        return f"{package}, which is not installed: pip install 'packnet-cli[{extra}]'"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's, for which it keeps files in the user's home
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's talk of processors and buffers
    for package in EXTRAS[extra]:
        try:
            import_module(package)
        except Exception as error:  # one built for another version of numpy, for example, may raise anything
            return f"{package}, which is installed but cannot be imported: {reason(error)}"
    return None


def require(extra: str) -> None:
    """Raise UsageError that says why, unless all packages of an extra can be used."""
    needed = missing(extra)
    if needed:
        raise UsageError(f"this needs {needed}")
