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
    code = stop.code or 0
print(code, sorted({"torch", "torchvision", "timm"} & set(sys.modules)))
"""


def imported(*arguments):
    """The exit code of a command line, and the heavy packages that it has imported when it is done."""
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
    assert imported(*(a.format(full=full, folder=tmp_path) for a in arguments)) == "0 []"


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["eval", "none.st"], 3),
        (["eval", "{full}", "--task", "purple"], 4),
        (["predict", "{full}", "--task", "purple", "x.png"], 4),
        (["add-task", "none.st", "--data", "{folder}"], 3),
        (["add-task", "{full}", "--data", "{folder}/none", "--dry-run"], 6),
        (["init", "{full}", "--arch", "test_resnet"], 3),
        (["init", "new.st", "--arch", "test_resnet", "--prune", "0.5", "--data", "{folder}/none"], 6),
    ],
)
def test_a_wrong_name_is_told_of_without_torch(full, tmp_path, arguments, exit_code):
    """Within half a second, where most mistakes are made."""
    assert imported(*(a.format(full=full, folder=tmp_path) for a in arguments)) == f"{exit_code} []"


def test_the_check_can_fail(full, tmp_path):
    """A command that needs torch is seen to import it."""
    assert "torch" in imported("extract", full, "--task", "1", "-o", tmp_path / "x.pt")
