"""What the README says is what the program does."""

import re
from pathlib import Path

import pytest
from conftest import make_folder

from packnet_cli import errors
from packnet_cli.artifact import format

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_library_examples_run(tmp_path, monkeypatch, capsys):
    """As printed, on small images, with a small network and in few epochs; the second makes what the first loads."""
    using, making, _ = PYTHON
    for name in ("zero-to-three", "four-to-six", "seven-to-nine"):
        make_folder(tmp_path / "digits" / name)
    monkeypatch.chdir(tmp_path)
    exec(making.replace("resnet10t", "test_resnet").replace("epochs=8", "epochs=1"), {})
    tasks = ["zero-to-three", "four-to-six", "seven-to-nine"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == tasks
    Path("more.st").rename("packed.st")
    exec(using.replace("val/five/000.png", "val/class1/0.png"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sum(float(probability) for _, probability in lines[:3]) == pytest.approx(1)
    assert [name for _, name, _ in lines[3:]] == tasks


def test_the_reader_in_numpy_reads_the_same_bits(full):
    """Each task's state dict, with nothing but numpy, in thirty lines or so."""
    reader = {}
    exec(PYTHON[2], reader)
    assert len(PYTHON[2].splitlines()) <= 35 and set(re.findall(r"^import (\w+)", PYTHON[2], re.M)) == {"json", "numpy"}
    tensors, metadata = reader["read"](full)
    artifact = format.load(full)
    assert [task["name"] for task in metadata["tasks"]] == [task.name for task in artifact.header.tasks]
    for task in artifact.header.tasks:
        state = reader["task_state"](tensors, task.index)
        assert format.digest(state) == task.digest
        assert all(state[name].tobytes() == array.tobytes() for name, array in artifact.state(task.index).items())


def test_every_command_line_is_one_that_the_program_takes(packnet):
    """Each command there is exists, each of its flags too, and each command is shown at least once."""
    script = (ROOT / "examples" / "quickstart.sh").read_text().replace("\\\n", " ")
    lines = re.findall(r"(?:^ {4}|\$ |run )packnet ([a-z][a-z-]*)( .*)?$", README + script, re.M)
    names = set(re.findall(r"^│ ([a-z][a-z-]*) ", packnet("--help").stdout, re.M))
    assert {command for command, _ in lines} == names
    for command in names:  # and so are the examples in the help of each
        examples = packnet(command, "--help").stdout.rpartition("╯")[2].split("$ ")[1:]
        shown = [re.search(r"packnet ([a-z-]+)( .*)?", " ".join(example.split())).groups() for example in examples]
        assert {example for example, _ in shown} == {command}
        lines += shown
    for command, rest in lines:
        text = packnet(command, "--help").stdout
        for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), f"packnet {command} has no {flag}"


def test_every_link_to_a_heading_leads_to_one():
    """In the README and in the document of measurements, by the anchors that Markdown makes of headings."""
    texts = {ROOT / name: (ROOT / name).read_text() for name in ("README.md", "examples/MEASURED.md")}
    for document, text in texts.items():
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            headings = re.findall(r"^#+ (.*)", texts[document.parent / path if path else document], re.M)
            anchors = [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert not anchor or anchor in anchors, f"{document.name}: {path}#{anchor}"


def test_no_command_writes_to_a_folder_of_images():
    """Whoever types them one after the other would be refused."""
    read, written = set(re.findall(r"--data \./([\w-]+)", README)), set(re.findall(r"-o ([\w-]+)/", README))
    assert read and written and not read & written


def test_every_command_is_set_as_one():
    """Indented lines straight after a list would be part of its last item."""
    blocks = README.split("\n\n")
    for before, after in zip(blocks, blocks[1:], strict=False):
        assert not (re.match(r"\* |\d+\. ", before) and after.startswith("    ")), after


def test_the_exit_codes_are_those_of_the_errors():
    """Every kind of error stands in the table, and nothing else but done and interrupted."""
    table = README.split("## Exit codes")[1].split("##")[0]
    kinds = [errors.PackNetError, *errors.PackNetError.__subclasses__()]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)} == {0, 130, *(k.exit_code for k in kinds)}
