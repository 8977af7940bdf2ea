"""What a hostile or broken file may hold ends in one clear error: a short run of fuzz.py, and what it taught."""

import json
import tempfile
from pathlib import Path

import fuzz
import mutations
import numpy as np
import pytest
import structures
from hypothesis import HealthCheck, given, settings
from test_format import GOLDEN, rewrite

from packnet_cli.artifact import format, header, rules, ship, summary, verify
from packnet_cli.errors import CapacityError, DamageError
from packnet_cli.report.console import visible


def test_a_short_run():
    """A few hundred mutations, the same each time; the script tries thousands."""
    tally = fuzz.Tally()
    fuzz.mutate(tally, 300, 1)
    assert tally.failures == []
    assert {"load: read", "load: DamageError", "verify: findings", "verify: whole"} <= tally.outcomes.keys()
    assert tally.largest[0] < 800  # megabytes


def test_files_built_with_faults():
    """Of any structure, again the same each time."""
    tally = fuzz.Tally()
    fuzz.build(tally, 150, 1)
    assert tally.failures == []
    assert {"load: read", "load: DamageError", "verify: findings", "verify: whole"} <= tally.outcomes.keys()


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(artifact=structures.artifacts())
def test_whatever_may_be_written_is_whole_when_read(artifact):
    """Every bit of it, and as a compact file too."""
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder, "a.st"), Path(folder, "b.st")
        format.save(artifact, path)
        back = format.load(path)
        assert back.header == artifact.header and verify.verify(path) == []
        assert {k: a.tobytes() for k, a in back.tensors().items()} == {
            k: a.tobytes() for k, a in artifact.tensors().items()
        }
        if artifact.header.tasks:
            ship.make_compact(path, small)
            assert verify.verify(small) == []
            compact = format.load(small)
            assert all(compact.digest(task.index) == task.digest for task in artifact.header.tasks)


def test_the_fuzzing_can_fail(monkeypatch):
    """A reader that raises what is no PackNetError is seen."""
    monkeypatch.setattr(rules, "check", lambda what, fields, rules, **optional: None)
    tally = fuzz.Tally()
    fuzz.mutate(tally, 60, 1)
    assert tally.failures


@pytest.mark.parametrize("change", [
    lambda f: f.update(arch="hf-hub:somebody/something"),
    lambda f: f["model_kwargs"].update(checkpoint_path="/tmp/evil.pt"),
    lambda f: f["model_kwargs"].update(pretrained_cfg_overlay={"file": "/tmp/evil.pt"}),
    lambda f: f["data_config"].update(input_size=[3, 8]),
    lambda f: f["data_config"].update(input_size=[3, 8, -8]),
    lambda f: f["data_config"].update(mean=[0.5]),
    lambda f: f["data_config"].update(std=[0.5, 0.5, 0]),
    lambda f: f["data_config"].update(crop_pct="all"),
    lambda f: f["data_config"].update(interpolation=None),
    lambda f: f.update(removed={"1": {"w": 1}}),
    lambda f: f.update(removed={"03": {}}),
    lambda f: f.update(removed={"3": {}}),
    lambda f: f["tensors"].update({"shared.w": "sha256:"}),
    lambda f: f["tasks"][0].update(index=0),
    lambda f: f["tasks"][0].update(index=True),
    lambda f: f["tasks"][1].update(index=256),
    lambda f: f["tasks"][0].update(name="all"),
    lambda f: f["tasks"][0].update(name="2"),
    lambda f: f["tasks"][0].update(name="zwei ☃"),
    lambda f: f["tasks"][0].update(name="\x1b[31m"),
    lambda f: f["tasks"][0].update(classes=[]),
    lambda f: f["tasks"][0].update(classes=[["a"]]),
    lambda f: f["tasks"][0].update(top1=101),
    lambda f: f["tasks"][0].update(top1=float("nan")),
    lambda f: f["tasks"][0].update(prune=1),
    lambda f: f["tasks"][0].update(images=10**30),
    lambda f: f["tasks"][0]["owned"].update(w=-1),
    lambda f: f["tasks"][0].pop("recipe"),
    lambda f: f.update(format=0),
    lambda f: f.update(format="1"),
])  # fmt: skip
def test_metadata_that_breaks_a_rule(tmp_path, change):
    """Well sealed, but not what a writer may write."""
    path = tmp_path / "bad.st"
    rewrite(path, lambda tensors, fields: change(fields))
    for read in (format.load_header, format.load, summary.summarize):
        with pytest.raises(DamageError, match="metadata cannot be read"):
            read(path)
    assert len(verify.verify(path)) == 1


@pytest.mark.parametrize("text", [*mutations.HUGE[:4], *mutations.HUGE[6:]])  # without two that take seconds to make
def test_huge_or_deep_metadata(tmp_path, text):
    """Under a seal that holds; refused before it takes memory or stack."""
    outer, data = mutations.unpack(GOLDEN.read_bytes())
    outer["__metadata__"]["packnet"] = mutations.sealed(text())
    (tmp_path / "huge.st").write_bytes(mutations.pack(outer, data))
    with pytest.raises(DamageError):
        format.load_header(tmp_path / "huge.st")


def test_a_writer_keeps_to_those_bounds_too():
    """Rather than write what no reader takes."""
    with pytest.raises(CapacityError):
        header.write(header.Header("net", {"a": [[]] * header.MAX_BRACKETS}, (), "", {}))


@pytest.mark.parametrize(("command", "code"), [("info", 3), ("plan", 3), ("plot", 3), ("verify", 9)])
def test_a_file_without_packed_weights(tmp_path, packnet, command, code):
    """Of which shares cannot be told: damage, whatever is asked."""
    path = tmp_path / "none.st"
    rewrite(path, lambda tensors, fields: tensors.update({key: tensors[key][:0] for key in ("shared.w", "mask.w")}))
    more = {"plan": ["--tasks", 3], "plot": ["-o", tmp_path / "x.png"]}.get(command, [])
    result = packnet(command, path, *more)
    assert result.exit_code == code and "it holds no packed weights" in result.stdout + result.stderr


@pytest.mark.parametrize("dtype", ["BF16", "F8_E5M2", "C64", "F4"])
def test_types_that_numpy_does_not_know(tmp_path, dtype):
    """safetensors lets them pass."""
    outer, data = mutations.unpack(GOLDEN.read_bytes())
    size = {"BF16": 2, "C64": 8}.get(dtype, 1)
    outer["task.3.x"] = {"dtype": dtype, "shape": [1], "data_offsets": [len(data), len(data) + size]}
    (tmp_path / "odd.st").write_bytes(mutations.pack(outer, data + bytes(size)))
    with pytest.raises(DamageError):
        format.load(tmp_path / "odd.st")


def test_weights_that_are_not_numbers_are_read_as_they_are(tmp_path):
    """They are bits as others are."""
    rewrite(tmp_path / "nan.st", lambda tensors, fields: tensors["shared.w"].fill(np.nan))
    assert np.isnan(format.load(tmp_path / "nan.st").state(2)["w"][0])


def test_names_reach_the_terminal_escaped(tmp_path, packnet):
    """Markup as it is, and nothing that the terminal would act upon, in tables, lines, errors and JSON."""
    evil = "[red]\x1b[31m\x9b2J\u202e\r\ud800"
    rewrite(tmp_path / "evil.st", lambda tensors, fields: fields.update(source=evil))
    shown = packnet("info", tmp_path / "evil.st").stdout
    assert r"[red]\u001b[31m\u009b2J\u202e\r\ud800" in shown
    assert json.loads(packnet("info", tmp_path / "evil.st", "--json").stdout)["source"] == evil
    rewrite(tmp_path / "worse.st", lambda tensors, fields: tensors.update({f"{evil[:-1]}x": tensors["shared.w"]}))
    result = packnet("verify", tmp_path / "worse.st")
    assert result.exit_code == 9 and all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr)
    assert visible("ζ ☃ é") == "ζ ☃ é"
