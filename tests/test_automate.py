"""What a script or a shell relies on: no colour, quiet, environment variables, completion."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from packnet_cli.artifact import edit
from packnet_cli.engine.modes import without_retry_log

PROGRAM = [sys.executable, "-c", "import sys; sys.argv[0] = 'packnet'; from packnet_cli.cli import main; main()"]
BAR = "from contextlib import suppress\nfrom packnet_cli.cli import main\nwith suppress(SystemExit): main()\n"
BAR += "import sys, tqdm\nsys.stderr.write(f'no bar: {tqdm.tqdm([]).disable}')"  # as a package that downloads has them
COLOUR = ("\x1b[31m", "\x1b[1;31m")  # red, which errors are
SWITCHES = ("NO_COLOR", "FORCE_COLOR", "TQDM_DISABLE")


def run(*arguments, terminal=False, program=PROGRAM, **variables):
    """What a process of its own says on stderr; `terminal` makes that one."""
    reading, writing = pty.openpty() if terminal else os.pipe()
    environment = {key: value for key, value in os.environ.items() if key not in SWITCHES}
    environment |= {"TERM": "xterm-256color", **variables}
    subprocess.run([*program, *map(str, arguments)], stderr=writing, stdout=subprocess.DEVNULL, env=environment)
    os.close(writing)
    with open(reading, "rb", buffering=0) as screen:
        return screen.read(4096).decode()


def complete(line):
    """What bash is told for a command line in which the last word is to be completed."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_PACKNET_COMPLETE": "complete_bash"}
    done = subprocess.run(PROGRAM, env={**os.environ, **words}, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def test_colour_is_for_terminals():
    """And for those only that do not refuse it."""
    shown = run("info", "none.st", terminal=True)
    assert any(code in shown for code in COLOUR)
    assert "\x1b" not in run("info", "none.st")
    assert not any(code in run("info", "none.st", terminal=True, NO_COLOR="1") for code in COLOUR)


def test_quiet_leaves_results_and_errors(tmp_path, folders, packnet):
    """And warnings; no talk, no progress; the same exit codes."""
    arguments = ("--arch", "test_resnet", "--no-pretrained", "--img-size", 32, tmp_path / "a.st")
    assert packnet("--quiet", "init", *arguments).exit_code == 0
    train = ("--data", folders[0], "--prune", 0.5, "--epochs", 1, "--retrain-epochs", 1, "--workers", 0)
    result = packnet("--quiet", "add-task", tmp_path / "a.st", *train, "--device", "cpu")
    assert result.exit_code == 0 and "task 1: red" in result.stdout
    assert all(line.startswith("warning: ") for line in result.stderr.splitlines())
    loud = packnet("add-task", tmp_path / "a.st", *train, "--device", "cpu", "--name", "again")
    assert "train" in loud.stderr
    result = packnet("-q", "init", *arguments)
    assert result.exit_code == 3 and "exists already" in result.stderr


@pytest.mark.parametrize("option", ["--quiet", "-q", "--verbose", "-v"])
def test_options_of_the_program_after_the_command(full, packnet, option):
    """Are told where they belong."""
    result = packnet("info", full, option)
    assert result.exit_code == 2 and f"before the command: packnet {option}" in result.stderr
    assert "before the command" not in packnet("--quiet=1", "info", full).stderr


def test_verbose_says_what_was_chosen_and_where_an_error_arose(full, packnet):
    """Beside the same results; without it no word of either."""
    arguments = ("eval", full, "--task", "red", "--workers", 0, "--device", "cpu")
    told = run("-v", *arguments)
    assert "packnet: device cpu" in told and "torch 2" in told and " s in all" in told and "Traceback" not in told
    told = run("-v", "info", "none.st")
    assert "Traceback" in told and told.index("Traceback") < told.index("error: none.st does not exist")
    assert run("info", "none.st").count("\n") == 1
    result = packnet("-q", "-v", *arguments)
    assert result.exit_code == 2 and "exclude each other" in result.stderr


def test_bars_of_other_packages_are_for_a_terminal(full):
    """And not for one that is to be quiet."""
    how = {"program": [sys.executable, "-c", BAR]}
    assert "no bar: False" in run("info", full, terminal=True, **how)
    assert run("--quiet", "info", full, terminal=True, **how) == run("info", full, **how) == "no bar: True"


@pytest.mark.parametrize("client", ["huggingface_hub", "urllib3.connectionpool"])
@pytest.mark.parametrize("verbose", [False, True])
def test_clients_of_the_network_are_heard_with_verbose_only(caplog, capfd, client, verbose):
    """Their warnings of retries, while something is fetched; each once."""
    with caplog.at_level(logging.INFO if verbose else logging.WARNING, "packnet"), without_retry_log():
        assert logging.getLogger(client).isEnabledFor(logging.WARNING) == verbose
        logging.getLogger(client).warning("Retrying in 1s")
    assert caplog.text.count("Retrying") == verbose and "Retrying" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "exit_code", "words"),
    [
        ("PACKNET_DEVICE", "toaster", 2, "'toaster' is not a device; try"),
        ("PACKNET_DEVICE", "hpu", 2, "cannot use the device 'hpu'"),
        ("PACKNET_EVAL_TASK", "purple", 4, "no task 'purple'"),
        ("PACKNET_EVAL_BATCH_SIZE", "0", 2, "--batch-size"),
        ("PACKNET_VERSION", "3", 0, ""),  # which is somebody else's
    ],
)
def test_environment_variables(full, packnet, monkeypatch, variable, value, exit_code, words):
    """One for every option of every command; and one for the device of all."""
    monkeypatch.setenv(variable, value)
    result = packnet("eval", full, "--workers", 0)
    assert result.exit_code == exit_code and words in result.stderr
    if variable == "PACKNET_EVAL_TASK":  # the command line wins
        assert packnet("eval", full, "--workers", 0, "--task", "red").exit_code == 0


def test_the_shell_completes_task_names(full):
    """Those of the file on the command line, wherever it stands there."""
    assert complete(f"packnet eval {full} --task ") == ["red", "green", "blue"]
    assert complete(f"packnet extract -o x {full} --task g") == ["green"]
    for command in ("predict", "info", "prune", "remove-task", "rename"):
        assert complete(f"packnet {command} {full} --task b") == ["blue"]
    for trap in ("x\\$(touch /tmp/x)", "`x`", "'x", '"x'):
        edit.rename(full, "green", trap)
        assert complete(f"packnet eval {full} --task ") == ["red", "blue"]
        edit.rename(full, trap, "green")
    assert complete("packnet eval none.st --task ") == complete("packnet eval --task ") == []
    assert complete("packnet pre") == ["predict"]
