"""A compact file holds the same tasks in fewer bytes, proves it, and is for use only."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from mutations import seal
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_format import GOLDEN, small_artifact
from test_verify import missed_flips

from packnet_cli.artifact import codec, compact, edit, format, header, masks, ship, verify
from packnet_cli.engine.using import evaluate
from packnet_cli.errors import ArtifactError, DamageError, UsageError


def same_bits(one, other):
    """Whether two state dicts are equal to the bit, names, types and shapes too."""
    if one.keys() != other.keys():
        return False
    pairs = [(one[name], other[name]) for name in one]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("owners", [[1], [0], [3, 0], [1, 2, 3, 4], [0, 7, 255], list(range(256))])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 1001])
def test_masks_come_back(owners, size):
    """Any indices, any size; never more bits than so many indices need, and the last byte of each node."""
    mask = np.random.default_rng(size).choice(np.array(owners, np.uint8), size)
    tree = codec.shortest_tree(mask)
    packed = codec.write_mask(mask, tree)
    np.testing.assert_array_equal(codec.read_mask(packed, tree, size), mask)
    present = max(2, len(np.unique(mask)))
    assert packed.size <= size * np.ceil(np.log2(present)) / 8 + present
    for wrong, problem in ((packed[:-1], "too few bits"), (np.append(packed, np.uint8(0)), "too many bits")):
        if wrong.size != packed.size:
            with pytest.raises(ValueError, match=problem):
                codec.read_mask(wrong, tree, size)


@pytest.mark.parametrize(
    "tree, bits",
    [
        ([1, [0, 255]], [0b0010_1101, 0b1100]),
        ([[0, 255], 1], [0b1101_0010, 0b1100]),
        ([[0, 1], [3, 255]], [0b0010_1000, 0b11_1010, 0b11]),
    ],
)
def test_either_branch_may_be_a_single_index(tree, bits):
    """In trees of any shape, as other writers may choose them; in the order of bits that the format specifies."""
    mask = np.array([0, 1, 0, 255, 1, 255, 1, 1], np.uint8)
    packed = codec.write_mask(mask, tree)
    assert packed.tolist() == bits
    np.testing.assert_array_equal(codec.read_mask(packed, tree, mask.size), mask)


def test_what_most_weights_have_takes_the_fewest_bits():
    """Of halves, quarters and eighths: 1.75 bits a weight, not 2."""
    mask = np.repeat(np.array([1, 2, 3, 4], np.uint8), [400, 200, 100, 100])
    assert codec.write_mask(mask, codec.shortest_tree(mask)).size == 800 * 1.75 / 8


def test_bfloat16_is_rounded_as_torch_does():
    """Ties, infinities, NaN, zeros and subnormal numbers among them."""
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    bits = np.concatenate(
        [bits, bits & 0xFFFF0000 | 0x8000, [0, 1 << 31, 0x7F800000, 0x7FC00000, 0x7F800001, 1, 0x3F808000]]
    )
    values = bits.astype(np.uint32).view(np.float32)
    values = values[~(np.isfinite(values) & (np.abs(values) > 3.38e38))]  # beyond its range
    wanted = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(codec.widen(codec.narrow(values, "bfloat16")), wanted)
    with np.testing.assert_raises(OverflowError):
        codec.narrow(np.array([3.4e38], np.float32), "bfloat16")
    with np.testing.assert_raises(OverflowError):
        codec.narrow(np.array([70_000], np.float32), "float16")


def test_every_task_is_the_same_to_the_bit(full, tmp_path):
    """In float32, with the digests that the tasks were added with."""
    ship.make_compact(full, tmp_path / "ship.st")
    before, after = format.load(full), format.load(tmp_path / "ship.st")
    assert verify.verify(tmp_path / "ship.st") == []
    for task, shipped in zip(before.header.tasks, after.header.tasks, strict=True):
        assert same_bits(before.state(task.index), after.state(task.index))
        assert shipped.digest == task.digest == after.header.compact.originals[task.index]
        assert shipped.data == "" and shipped.held_out is None and task.data and task.held_out
    assert (tmp_path / "ship.st").stat().st_size < 0.9 * full.stat().st_size


def read_as_specified(path, layer):
    """One layer's weights and owners, bit by bit, by the specification alone."""
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        how = json.loads(file.metadata()["packnet"])["compact"]
    places = [0] * int(np.prod(how["shapes"][layer]))
    taken = 0

    def go(tree, members):
        nonlocal taken
        if isinstance(tree, int):
            for member in members:
                places[member] = tree
            return
        part = tensors[f"bits.{layer}"][taken : taken + -(-len(members) // 8)]
        taken += len(part)
        bits = [int(part[i // 8]) >> i % 8 & 1 for i in range(len(members))]
        for side in (0, 1):
            go(tree[side], [member for member, bit in zip(members, bits, strict=True) if bit == side])

    go(how["trees"][layer], range(len(places)))
    values = iter(tensors[f"values.{layer}"])
    weights = [next(values) if owner else 0 for owner in places]
    return np.array(weights, np.float32), np.array(places, np.uint8)


def test_a_reader_that_knows_only_the_specification(full, tmp_path):
    """Finds the same weights and owners, free ones among them."""
    edit.remove_task(full, "blue")
    ship.make_compact(full, tmp_path / "ship.st")
    before = format.load(full)
    for layer in before.shared:
        weights, owners = read_as_specified(tmp_path / "ship.st", layer)
        np.testing.assert_array_equal(owners, before.mask[layer].reshape(-1))
        visible = np.where(owners > 0, before.shared[layer].reshape(-1), np.float32(0))
        assert weights.tobytes() == visible.tobytes()


def test_what_a_task_has_of_the_one_before_it_is_left_out():
    """If it is the same to the bit: -0 is not 0."""
    artifact = small_artifact()
    bias = {k: {"bias": np.array([sign * 0.0], np.float32)} for k, sign in ((1, 1), (2, -1))}
    own = (artifact.own[0], *(artifact.own[k] | bias[k] for k in (1, 2)))
    _, stored = compact.shrink(artifact.header, replace(artifact, own=own).tensors(), "float32")
    assert {key for key in stored if key.startswith("task")} == {"task.1.bias", "task.1.steps", "task.2.bias"}


def test_with_free_and_removed_weights(full, tmp_path):
    """What is free is not there; what a removed task left to later ones is."""
    edit.remove_task(full, "green")
    ship.make_compact(full, tmp_path / "ship.st")
    before, after = format.load(full), format.load(tmp_path / "ship.st")
    assert verify.verify(tmp_path / "ship.st") == []
    assert all(same_bits(before.state(k), after.state(k)) for k in (1, 3))
    edit.remove_task(full, "blue")
    ship.make_compact(full, tmp_path / "less.st")
    assert (tmp_path / "less.st").stat().st_size < 0.7 * (tmp_path / "ship.st").stat().st_size
    less = format.load(tmp_path / "less.st")
    assert same_bits(format.load(full).state(1), less.state(1))
    assert not any(array[less.mask[layer] == masks.FREE].any() for layer, array in less.shared.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits(full, tmp_path, dtype):
    """Every number is rounded, the new digests hold, and the original's are on record."""
    ship.make_compact(full, tmp_path / "ship.st", dtype=dtype)
    before, after = format.load(full), format.load(tmp_path / "ship.st")
    assert verify.verify(tmp_path / "ship.st") == []
    for task, shipped in zip(before.header.tasks, after.header.tasks, strict=True):
        wanted = {name: codec.widen(codec.narrow(a, dtype)) for name, a in before.state(task.index).items()}
        assert same_bits(wanted, after.state(task.index)) and not same_bits(wanted, before.state(task.index))
        assert shipped.digest == format.digest(wanted) != task.digest == after.header.compact.originals[task.index]
    assert (tmp_path / "ship.st").stat().st_size < 0.5 * full.stat().st_size


@pytest.mark.parametrize("dtype", codec.DTYPES)
def test_the_packed_weights_are_let_go_before_they_are_expanded_again(full, tmp_path, monkeypatch, dtype):
    """Else a network's weights and masks would be in memory twice."""
    output, load, assemble, loaded = tmp_path / "ship.st", verify.load_verified, format.assemble, []

    def noted(path):
        artifact = load(path)
        loaded.extend(map(weakref.ref, (*artifact.shared.values(), *artifact.mask.values())))
        return artifact

    def alone(path, about, tensors):
        assert path != output or loaded and not any(array() is not None for array in loaded)
        return assemble(path, about, tensors)

    monkeypatch.setattr(verify, "load_verified", noted)
    monkeypatch.setattr(format, "assemble", alone)
    ship.make_compact(full, output, dtype=dtype)
    assert output.exists()


def test_the_bytes_add_up(full, tmp_path):
    """By part, they are the sizes of the two files."""
    before, after = ship.make_compact(full, tmp_path / "ship.st")
    assert before.total == full.stat().st_size and after.total == (tmp_path / "ship.st").stat().st_size
    weights = sum(array.size for array in format.load(full).shared.values())
    assert (before.weights, before.owners, after.weights, after.start) == (4 * weights, weights, 4 * weights, 0)


def test_same_content_same_bytes(full, tmp_path):
    """As for the files that it is made of."""
    for name in "ab":
        ship.make_compact(full, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", codec.DTYPES)
def test_every_flipped_bit_is_found(tmp_path, dtype):
    """Each bit of a compact file, one by one."""
    ship.make_compact(GOLDEN, tmp_path / "ship.st", dtype=dtype)
    assert missed_flips(tmp_path / "ship.st", every=1 if dtype == "float32" else 13) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c, t: c["shapes"].update(w=[5]), "w has (too many bits|not as many values)"),
        (lambda c, t: c["shapes"].update(w=[2**50]), "larger than what the file holds"),
        (lambda c, t: c["trees"].update(w=1), "too many bits|not as many values"),
        (lambda c, t: c["trees"].update(w=[1, [1, 2]]), "metadata cannot be read"),
        (lambda c, t: c["trees"].update(w=0), "metadata cannot be read"),
        (lambda c, t: c["trees"].update(w=[[1, 2], 256]), "metadata cannot be read"),
        (lambda c, t: c["trees"].update(w=[1, [0, 200]]), "a task that does not exist"),
        (lambda c, t: c.update(dtype="float8"), "metadata cannot be read"),
        (lambda c, t: t.pop("bits.w"), "is missing"),
        (lambda c, t: t.pop("values.w"), "is missing"),
        (lambda c, t: t.update({"values.v": t["values.w"]}), "unexpected tensor"),
        (lambda c, t: t.update({"task.0.b": t["values.w"]}), "unexpected tensor 'task.0.b'"),
        (lambda c, t: t.update({"bits.w": t["bits.w"].astype(np.int16)}), "wrong type or shape"),
        (lambda c, t: t.update({"bits.w": t["bits.w"][None]}), "wrong type or shape"),
        (lambda c, t: t.update({"values.w": t["values.w"].astype(np.float64)}), "wrong type or shape"),
        (lambda c, t: t.update({"values.w": t["values.w"][None]}), "wrong type or shape"),
    ],
)
def test_what_breaks_a_rule_is_refused(tmp_path, change, problem):
    """Well sealed, but not what a writer may write."""
    path = tmp_path / "ship.st"
    ship.make_compact(GOLDEN, path)
    tensors, fields = load_file(path), json.loads(header.write(format.load_header(path)))
    del fields["seal"]
    change(fields["compact"], tensors)
    save_file(tensors, path, {"packnet": seal(fields)})
    with pytest.raises(DamageError, match=problem):
        format.load(path)
    assert verify.verify(path)


def test_nothing_writes_a_compact_file(full, tmp_path):
    """Nor what was read of one."""
    small = tmp_path / "small.st"
    ship.make_compact(full, small)
    whole = small.read_bytes()
    for write in (
        lambda: verify.load_verified(small),
        lambda: edit.rename(small, 1, "other"),
        lambda: ship.make_compact(small, tmp_path / "again.st"),
        lambda: format.save(format.load(small), tmp_path / "again.st"),
    ):
        with pytest.raises(ArtifactError, match="is for use"):
            write()
    assert small.read_bytes() == whole and not (tmp_path / "again.st").exists()


def test_a_number_too_large_is_named(tmp_path):
    """float16 ends at 65,504."""
    artifact = small_artifact()
    artifact.shared["w"][2] = 1e5  # a free one, which does not go along
    format.save(format.make(artifact.header, artifact.shared, artifact.mask, artifact.own), tmp_path / "a.st")
    ship.make_compact(tmp_path / "a.st", tmp_path / "b.st", dtype="float16")
    own = (*artifact.own[:2], artifact.own[2] | {"bias": np.array([1e5], np.float32)})
    after = format.make(artifact.header, artifact.shared, artifact.mask, own)
    tasks = tuple(replace(task, digest=after.digest(task.index)) for task in artifact.header.tasks)
    format.save(replace(after, header=replace(after.header, tasks=tasks)), tmp_path / "a.st")
    with pytest.raises(UsageError, match="bfloat16 has the range"):
        ship.make_compact(tmp_path / "a.st", tmp_path / "c.st", dtype="float16")
    assert not (tmp_path / "c.st").exists()


def test_the_commands(full, tmp_path, folders, packnet):
    """Those that read take it and answer as before; those that write refuse it in one line."""
    ship, image = tmp_path / "ship.st", next((folders[1] / "val" / "class1").iterdir())
    result = packnet("compact", full, "-o", ship, "--check", "--device", "cpu", "--workers", 0)
    assert result.exit_code == 0 and "in all" in result.stdout and "top-1 % after" in result.stdout, result.stderr
    told = json.loads(packnet("compact", full, "-o", ship, "--json").stdout)
    assert told["bytes"]["after"]["total"] == ship.stat().st_size and told["tasks"] == []
    here = ("--device", "cpu")
    for command in (
        ("eval", "{}", "--task", "green", "--data", folders[1], "--json", *here),
        ("predict", "{}", "--task", "all", image, "--json", *here),
        ("extract", "{}", "--task", "3", "-o", tmp_path / "x.safetensors"),
        ("verify", "{}", "--json"),
        ("plot", "{}", "-o", tmp_path / "x.svg"),
    ):
        one, other = (packnet(*(str(a).format(path) for a in command)) for path in (full, ship))
        assert one.exit_code == other.exit_code == 0 and one.stdout == other.stdout, command
    one, other = (json.loads(packnet("info", path, "--layers", "--json").stdout) for path in (full, ship))
    assert one["layers"] == other["layers"] and other["compact"] == "float32" and one["compact"] is None
    assert one["bytes"]["separate_networks"] == other["bytes"]["separate_networks"]
    assert [t["digest"] for t in one["tasks"]] == [t["original_digest"] for t in other["tasks"]]
    for command in (
        ("add-task", ship, "--data", folders[0], "--name", "x"),
        ("add-task", ship, "--data", folders[0], "--name", "x", "--dry-run"),
        ("prune", ship, "--task", "blue", "--prune", 0.5),
        ("remove-task", ship, "--task", "blue", "--yes"),
        ("rename", ship, "--task", "blue", "--name", "x"),
        ("plan", ship, "--tasks", 5),
        ("compact", ship, "-o", tmp_path / "again.st"),
    ):
        result = packnet(*command)
        assert result.exit_code == 3 and "is a compact file" in result.stderr, command
        assert result.stdout == "" and result.stderr.count("\n") == 1
    result = packnet("eval", ship)
    assert result.exit_code == 6 and "--task NAME --data DIR" in result.stderr and result.stdout == ""
    for arguments, words in (
        (("-o", full), "tasks would be lost"),
        (("-o", tmp_path / "y", "--dtype", "int8"), "--dtype"),
    ):
        result = packnet("compact", full, *arguments)
        assert result.exit_code == 2 and words in result.stderr


def test_a_check_that_fails_writes_nothing(full, tmp_path, packnet):
    """The images are gone."""
    artifact = format.load(full)
    tasks = tuple(replace(task, data=str(tmp_path / "gone")) for task in artifact.header.tasks)
    format.save(replace(artifact, header=replace(artifact.header, tasks=tasks)), full)
    result = packnet("compact", full, "-o", tmp_path / "ship.st", "--check")
    assert result.exit_code == 6 and "no longer at" in result.stderr and not (tmp_path / "ship.st").exists()


def test_a_check_of_a_file_that_changes_meanwhile_writes_nothing(full, tmp_path, packnet, monkeypatch):
    measured = evaluate.evaluate_tasks

    def evaluate_tasks(path, **how):
        yield from measured(path, **how)
        edit.rename(full, "green", "lime")

    monkeypatch.setattr(evaluate, "evaluate_tasks", evaluate_tasks)
    result = packnet("compact", full, "-o", tmp_path / "ship.st", "--check", "--device", "cpu")
    assert result.exit_code == 8 and "was changed by another program meanwhile; nothing was written" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "ship.st").exists()


def test_the_indices_of_a_tree_are_those_of_the_mask():
    """With none for what is not there, except beside free weights alone."""
    mask = np.array([0, 2, 2, 5], np.uint8)
    assert set(codec.leaves(codec.shortest_tree(mask))) == {0, 2, 5}
    assert set(codec.leaves(codec.shortest_tree(np.zeros(4, np.uint8)))) == {masks.FREE, 1}


@pytest.mark.parametrize(("dtype", "rounded"), [("float32", False), ("bfloat16", True)])
def test_verify_says_what_was_rounded(full, tmp_path, packnet, dtype, rounded):
    """The tasks are to the bit what they were rounded to, and not what was added."""
    ship = tmp_path / "ship.st"
    assert packnet("compact", full, "-o", ship, "--dtype", dtype).exit_code == 0
    assert ("what was added, once that was rounded to bfloat16" in packnet("verify", ship).stdout) == rounded
    assert json.loads(packnet("verify", ship, "--json").stdout)["rounded_to"] == (dtype if rounded else None)
