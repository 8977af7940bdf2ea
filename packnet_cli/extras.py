"""Optional packages: which extra brings them, asked before anything heavy is imported."""

from importlib.util import find_spec

from packnet_cli.errors import UsageError

EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "plot": ("matplotlib",)}


def require(extra: str) -> None:
    """Raise UsageError that says how to install an extra, unless all of its packages are there."""
    for package in EXTRAS[extra]:
        if find_spec(package) is None:
            raise UsageError(f"this needs {package}, which is not installed: pip install 'packnet-cli[{extra}]'")
