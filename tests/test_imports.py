"""Torch takes seconds to import: what can do without it must."""

import subprocess
import sys

import pytest

CHECK = """
import sys
from packnet_cli.cli import main
sys.argv = ["packnet", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(sorted({"torch", "torchvision", "timm"} & set(sys.modules)))
"""


def imported(*arguments):
    """The heavy packages that a command line has imported when it is done."""
    done = subprocess.run([sys.executable, "-c", CHECK, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["add-task", "--help"],
        ["info", "{full}", "--layers"],
        ["plot", "{full}", "-o", "{folder}/x.png"],
        ["plan", "{full}", "--tasks", "3"],
        ["verify", "{full}"],
        ["compact", "{full}", "-o", "{folder}/ship.st", "--dtype", "bfloat16"],
        ["rename", "{full}", "--task", "1", "--name", "other"],
        ["remove-task", "{full}", "--task", "1", "--yes"],
        ["extract", "{full}", "--task", "1", "-o", "{folder}/x.safetensors"],
    ],
)
def test_the_light_commands_import_no_torch(full, tmp_path, arguments):
    """Help, what keeps a file, info, plan, plot and extract to safetensors."""
    assert imported(*(a.format(full=full, folder=tmp_path) for a in arguments)) == "[]"


def test_the_check_can_fail(full, tmp_path):
    """A command that needs torch is seen to import it."""
    assert "torch" in imported("extract", full, "--task", "1", "-o", tmp_path / "x.pt")
