"""The documents of --json: each is what the README says, field by field, and each command has one."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FLAGS

from packnet_cli.cli import keeping

README = (Path(__file__).parent.parent / "README.md").read_text()
CPU = ("--device", "cpu", "--workers", 0)
PLAIN = {"text": str, "int": int, "number": (int, float), "bool": bool}


def read_schema():
    """The README's block as {what: {field: type}}."""
    block = re.search(r"```text\n(init, info .*?)```", README, re.S)[1]
    entries = re.findall(r"^(\S.*?) {2,}(\S.*(?:\n {2,}.*)*)", block, re.M)
    schema = {}
    for names, text in entries:
        parts = [part.split(": ") for part in re.split(r",\s+", text.strip())]
        fields = {}
        for name, *kind in parts:
            fields |= {name: kind[0]} if kind else schema[name.removeprefix("+ ")]
        schema |= dict.fromkeys(names.split(", "), fields)
    return schema


SCHEMA = read_schema()
USED = set()


def check(value, kind):
    """Whether a value is of a type as the README writes it."""
    if kind.endswith("?"):
        return value is None or check(value, kind[:-1])
    if kind.startswith("["):
        return isinstance(value, list) and all(check(each, kind[1:-1]) for each in value)
    if kind.startswith("{"):
        return isinstance(value, dict) and all(check(each, kind[1:-1]) for each in value.values())
    if kind in PLAIN:
        return isinstance(value, PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))
    return kind == "any" or is_documented(value, kind)


def is_documented(document, what):
    """Whether a document has the fields of an entry, no more and no fewer, each of its type."""
    USED.add(what)
    fields = SCHEMA[what]
    assert document.keys() == fields.keys(), what
    for name, kind in fields.items():
        assert check(document[name], kind), f"{what}: {name} is {document[name]!r}, not {kind}"
    return True


def documents(result):
    """What is on stdout, which holds documents of this version and nothing else; the version is taken off."""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found and [document.pop("packnet") for document in found] == [1] * len(found), result.stderr
    return found


@pytest.fixture
def told(packnet):
    """Run a command with --json, which must exit as told and print documents of this entry."""

    def run(what, *arguments, exit_code=0, count=1, **more):
        result = packnet(*arguments, "--json", **more)
        assert result.exit_code == exit_code, result.stderr
        found = documents(result)
        assert len(found) == count and all(is_documented(document, what) for document in found)

    return run


def test_every_document_is_the_documented_one(full, tmp_path, folders, packnet, told):
    """Of every command, in every form that it has."""
    new, ship = tmp_path / "new.st", tmp_path / "ship.st"
    told("init", "init", new, "--arch", "test_resnet", "--no-pretrained", "--img-size", 32)
    told("info", "info", full)
    told("info --layers", "info", full, "--layers")
    told("info --task", "info", full, "--task", "red")
    told("add-task", "add-task", new, "--data", folders[0], "--prune", 0.5, *FLAGS)
    told("prune", "prune", new, "--task", 1, "--prune", 0.5, "--device", "cpu", "--workers", 0)
    told("plan", "plan", new, "--tasks", 3)
    told("--dry-run", "add-task", new, "--data", folders[1], "--dry-run")
    told("--dry-run", "init", tmp_path / "x.st", "--arch", "test_resnet", "--dry-run")
    told("eval", "eval", full, *CPU)
    told("eval --task auto", "eval", full, "--task", "auto", *CPU)
    told("extract", "extract", full, "--task", 1, "-o", tmp_path / "one.safetensors")
    told("compact", "compact", full, "-o", ship, "--check", *CPU)
    told("info", "info", ship)
    told("verify", "verify", full)
    told("rename", "rename", full, "--task", 1, "--name", "crimson")
    told("plot", "plot", full, "-o", tmp_path / "x.svg")
    told("remove-task", "remove-task", full, "--task", 3, "--yes")
    (tmp_path / "broken.png").write_text("hello")
    told("predict", "predict", full, "--task", "all", folders[0] / "val", "--device", "cpu", count=9)
    told("predict", "predict", full, "--task", 1, tmp_path / "broken.png", "--device", "cpu", exit_code=6)
    damaged = bytearray(full.read_bytes())
    damaged[-1] ^= 1
    full.write_bytes(damaged)
    told("verify", "verify", full, exit_code=9)
    told("error", "info", tmp_path / "none.st", exit_code=3)
    assert USED == SCHEMA.keys()  # nothing is described that there is not
    names = set(re.findall(r"^│ ([a-z][a-z-]*) ", packnet("--help").stdout, re.M))
    assert names <= SCHEMA.keys()


def test_an_error_is_a_document_of_its_own(full, tmp_path, packnet, told, monkeypatch):
    """Also one of the arguments, and of a run without --json none."""
    told("error", "eval", full, "--task", "purple", exit_code=4)
    told("error", "eval", full, "--batch-size", "none", exit_code=2)
    told("error", "extract", full, "--task", 1, exit_code=2)
    told("error", "info", full, "--bogus", exit_code=2)
    told("error", "--bogus", "info", full, exit_code=2)
    [document] = documents(packnet("info", tmp_path / "none.st", "--json"))
    assert document["exit_code"] == 3 and "does not exist" in document["error"]
    assert packnet("info", tmp_path / "none.st").stdout == packnet("extract", full, "--task", 1).stdout == ""
    monkeypatch.setenv("PACKNET_INFO_JSON", " True ")
    assert documents(packnet("info", tmp_path / "none.st")) == [document]
    [document] = documents(packnet("info", full, "--bogus"))
    assert document["exit_code"] == 2


def test_a_removal_that_is_not_confirmed_is_a_document(full, told, monkeypatch):
    """Of nothing removed; without a terminal to ask at it is an error."""
    before = full.read_bytes()
    told("error", "remove-task", full, "--task", 1, exit_code=2)
    monkeypatch.setattr(keeping, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    told("remove-task", "remove-task", full, "--task", 1, input="n\n")
    assert full.read_bytes() == before


def test_the_schema_check_can_fail():
    """A field too many, one of a wrong type, one that is missing."""
    good = {"index": 1, "name": "red"}
    assert is_documented(good, "named")
    for bad in (good | {"more": 1}, good | {"name": 7}, {"index": 1}, good | {"index": True}):
        with pytest.raises(AssertionError):
            is_documented(bad, "named")
