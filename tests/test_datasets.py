"""Datasets by name as --data: the same images as in folders are the same task; and what is refused."""

import dataclasses
import io
import json
import os
import struct
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import FLAGS
from PIL import Image

from packnet_cli import extras
from packnet_cli.artifact import format
from packnet_cli.engine.data import datasets, pictures, splits
from packnet_cli.errors import DataError, UsageError
from packnet_cli.images import is_dataset, is_gone, location, task_name

SPLITS = {"train": "train", "val": "validation"}


def shards(folder: Path, where: Path) -> Path:
    """train/ and val/ of a folder as shards, one for each class, and the names of the classes."""
    where.mkdir()
    for part, split in SPLITS.items():
        for label, of_class in enumerate(sorted((folder / part).iterdir())):
            with tarfile.open(where / f"set-{split}-{label}.tar", "w") as tar:
                for image in sorted(of_class.iterdir()):
                    add(tar, f"{label}{image.stem}.png", image.read_bytes())
                    add(tar, f"{label}{image.stem}.cls", str(label).encode())
    names = sorted(entry.name for entry in (folder / "train").iterdir())
    (where / "classnames.txt").write_text("\n".join(names), encoding="utf-8-sig")
    return where


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def mnist(root: Path, counts=(24, 12)) -> Path:
    """Two sets in the form of MNIST, of three digits that are not read but told apart by how bright they are."""
    raw, rng = root / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, count in zip(("train", "t10k"), counts, strict=True):
        labels = (np.arange(count) % 3).astype(np.uint8)
        pixels = rng.integers(0, 80, (count, 28, 28)).astype(np.uint8) + 80 * labels[:, None, None]
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return root


def in_three_ways(tmp_path, folder, kind):
    """The images of a folder as a dataset of some kind."""
    if kind == "wds":
        return Path("wds", str(shards(folder, tmp_path / "set"))[1:])
    package = pytest.importorskip("datasets")
    package.disable_progress_bars()
    return Path("hfds", str(folder)[1:])


@pytest.mark.parametrize("kind", ["wds", "hfds"])
def test_the_same_images_are_the_same_task(packed, tmp_path, folders, packnet, monkeypatch, kind):
    """To the bit, whether they lie in folders or in a dataset; eval and prune then find it from anywhere."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    named, bits = in_three_ways(tmp_path, folders[0], kind), packed.read_bytes()
    entries = []
    for source in (folders[0], named):
        packed.write_bytes(bits)
        result = packnet("add-task", packed, "--data", source, "--name", "red", *FLAGS)
        assert result.exit_code == 0, result.stderr
        entries.append(format.load(packed).header.tasks[0])
    one, other = entries
    assert (one.digest, one.classes, one.accuracy) == (other.digest, other.classes, other.accuracy)
    assert other.data == str(named) and task_name(named) == ("set" if kind == "wds" else "red")
    monkeypatch.chdir("/tmp")
    datasets._read.cache_clear()
    here = ("--json", "--workers", 0, "--device", "cpu")
    result = json.loads(packnet("eval", packed, *here).stdout)
    assert result["tasks"][0]["top1"] == one.top1
    assert result == json.loads(packnet("eval", packed, "--data", folders[0], *here).stdout)
    assert packnet("prune", packed, "--task", "red", "--prune", 0.5, *FLAGS[2:]).exit_code == 0


def test_torchvisions(packed, tmp_path, packnet):
    """MNIST from its files; the held-out images are those of its own."""
    named = Path("torch/mnist", str(mnist(tmp_path / "root"))[1:])
    assert packnet("add-task", packed, "--data", named, *FLAGS, "--prune", 0.5).exit_code == 0
    [task] = format.load(packed).header.tasks
    assert (task.name, task.classes, task.images) == ("mnist", ("0 - zero", "1 - one", "2 - two"), 12)
    assert task.data == str(named)
    result = packnet("eval", packed, "--json", "--workers", 2, "--device", "cpu")
    assert json.loads(result.stdout)["tasks"][0]["top1"] == task.top1
    assert packnet("verify", packed, "--data", "--workers", 0).exit_code == 0


def test_inaturalist_brings_its_names(tmp_path):
    """And lists its images without opening any."""
    for year in ("2021_train", "2021_valid"):
        for index, name in enumerate(("00000_A_B_C_D_E_F_puffin", "00001_A_B_C_D_E_F_gannet")):
            (tmp_path / year / name).mkdir(parents=True)
            (tmp_path / year / name / f"{index}.jpg").write_bytes(b"no image")
    found = datasets.read(Path("torch/inaturalist", str(tmp_path)[1:]))
    assert {split: list(files) for split, files in found.items()} == {
        split: ["00000_A_B_C_D_E_F_puffin", "00001_A_B_C_D_E_F_gannet"] for split in ("train", "val")
    }


def test_shards_that_change_are_read_again(tmp_path, folders):
    """In one process, too."""
    where = shards(folders[0], tmp_path / "set")
    named = Path("wds", str(where)[1:])
    before = sum(map(len, datasets.read(named)["train"].values()))
    with tarfile.open(where / "set-train-more.tar", "w") as tar:
        add(tar, "more.png", b"")
        add(tar, "more.cls", b"0")
    assert sum(map(len, datasets.read(named)["train"].values())) == before + 1


def test_torchvisions_images_are_not_decoded_to_tell_them_apart(tmp_path):
    """Of a million that would take hours."""
    images = splits.open_training(Path("torch/mnist", str(mnist(tmp_path / "root"))[1:]), val_split=0.2, seed=0)
    opened = [dataclasses.replace(picture, images=pytest.fail) for picture in images.train.paths]
    train = dataclasses.replace(images.train, paths=opened)
    assert dataclasses.replace(images, train=train).fingerprint == images.fingerprint


def test_a_relative_name_is_remembered_as_an_absolute_one(tmp_path, folders, monkeypatch):
    """And a folder that is called like a dataset is a folder."""
    shards(folders[0], tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert location(Path("wds/set")) == "wds" + str(tmp_path / "set")
    assert location(Path("hfds/user/birds")) == "hfds/user/birds" and task_name(Path("hfds/user/birds")) == "birds"
    assert location(Path("torch/cifar10")) == "torch/cifar10"  # in torch's cache, and not here
    assert task_name(Path("torch/cifar10/there")) == "cifar10" and task_name(Path("tfds/mnist:3.0.1")) == "mnist"
    assert is_dataset(Path("torch/cubs")) and not is_dataset(Path("torch")) and not is_dataset(Path("cubs/torch"))
    (tmp_path / "torch" / "cubs").mkdir(parents=True)
    assert not is_dataset(Path("torch/cubs")) and location(Path("torch/cubs")) == str(tmp_path / "torch" / "cubs")


def test_shards_are_of_the_split_that_their_paths_name_first(tmp_path, folders):
    """By any of its names."""
    for name, split in (("valid", "val"), ("validation", "validation"), ("testing", "test"), ("test", "test")):
        where = shards(folders[0], tmp_path / name)
        for shard in where.glob("*.tar"):
            part = where / ("training" if "train" in shard.name else name)
            part.mkdir(exist_ok=True)
            shard.rename(part / shard.name.replace("train", "test").replace("validation", "train"))
        found = datasets.read(Path("wds", str(where)[1:]))
        assert {split: sum(map(len, files.values())) for split, files in found.items()} == {"train": 18, split: 9}


def test_without_splits_a_part_is_held_out(tmp_path, folders):
    """Always the same images of each class; and more are set aside by the same means."""
    where = shards(folders[0], tmp_path / "set")
    for shard in where.glob("*validation*"):
        shard.unlink()
    for shard in where.glob("*.tar"):
        shard.rename(where / shard.name.replace("train", "part"))
    named = Path("wds", str(where)[1:])
    images = splits.open_training(named, val_split=0.3, seed=0)
    held_out = images.held_out.split
    assert [held_out.labels.count(label) for label in range(3)] == [2, 2, 2] and len(images.train.paths) == 12
    assert not set(images.train.paths) & set(held_out.paths)
    datasets._read.cache_clear()
    assert splits.open_held_out(named, images.classes, val_split=0.3, seed=0).split == held_out
    kept, aside = splits.set_aside(images.train, 0.25, 0)
    assert sorted(kept.paths + aside.paths, key=str) == sorted(images.train.paths, key=str) and len(aside.paths) == 3
    before = images.fingerprint
    assert before != splits.open_training(named, val_split=0.3, seed=1).fingerprint
    with pictures.open_picture(kept.paths[0]) as image:
        assert image.size == (36, 36)
    shard = where / "set-part-0.tar"
    bits = shard.read_bytes()
    shard.write_bytes(bits[:600] + bytes([bits[600] ^ 1]) + bits[601:])  # in the first image
    assert before != splits.open_training(named, val_split=0.3, seed=0).fingerprint


def test_bad_images_in_a_dataset(packed, tmp_path, folders, packnet):
    """Are named by place, or skipped; eval then skips them too."""
    where = shards(folders[0], tmp_path / "set")
    for split in SPLITS.values():
        with tarfile.open(where / f"bad-{split}.tar", "w") as tar:
            add(tar, "a.jpg", b"no image")
            add(tar, "a.cls", b"1")
    add_task = ("add-task", packed, "--data", Path("wds", str(where)[1:]), *FLAGS)
    result = packnet(*add_task)
    assert result.exit_code == 6 and "2 of 29 files are not readable" in result.stderr
    assert "split 'train', image 0 (not an image" in result.stderr and result.stderr.count("\n") == 1
    assert packnet(*add_task, "--skip-bad-images").exit_code == 0
    [task] = format.load(packed).header.tasks
    assert (task.skipped, task.images) == (2, 9)
    assert packnet("eval", packed, "--workers", 0).exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no images in a split"),
        ({"a.png": b"x"}, "the sample 'a' has no label; it needs a file a.cls"),
        ({"a.png": b"x", "a.cls": b"0", "b.png": b"x", "b.cls": b"7"}, "image 1 has the label 7, which is no class"),
        ({"a.png": b"x", "a.cls": b"-1", "b.png": b"x", "b.cls": b"0"}, "image 0 has the label -1, which is no class"),
        ({"a.png": b"x", "a.cls": b"\xff"}, "set/a.tar is damaged: .*utf-8"),
        ({f"{i}.gif": b"x" for i in range(20)}, "the sample '0' has no label"),
        ({"a.jp2": b"x", "a.cls": b"0"}, "the sample 'a' has a label but no image of a kind that can be read"),
        ({"a.png": b"x", "a.cls": b"cat", "b.png": b"x", "b.cls": b" "}, "the sample 'b' has no label"),
        ([("a.png", b"x"), ("a.cls", b"0"), ("a.jpg", b"x")], "the sample 'a' is there twice"),
        ({"a.png": b"x", "a.cls": b"0", "b.1.png": b"x", "b.1.cls": b"0"}, "'b.1.cls' is no label, .* first dot"),
        (b"x" * 600, "set/a.tar is damaged: (invalid header|truncated|bad checksum|not a tar)"),
    ],
)
def test_shards_that_cannot_be_used(packed, tmp_path, packnet, content, message):
    """Are one clear error."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "classnames.txt").write_text("x\ny")
    if isinstance(content, bytes):
        (tmp_path / "set" / "a.tar").write_bytes(content)
    else:
        with tarfile.open(tmp_path / "set" / "a.tar", "w") as tar:
            for name, inside in content.items() if isinstance(content, dict) else content:
                add(tar, name, inside)
    named = Path("wds", str(tmp_path / "set")[1:])
    with pytest.raises(DataError, match=message):
        datasets.read(named)
    result = packnet("add-task", packed, "--data", named)
    assert result.exit_code == 6 and result.stderr.count("\n") == 1


def test_compressed_shards(tmp_path):
    """Are told of as such: in them no image can be read by itself."""
    with tarfile.open(tmp_path / "train-0.tar.gz", "w:gz") as tar:
        add(tar, "a.png", b"x")
    with pytest.raises(DataError, match=r"holds no web-dataset shards \(.tar\); if they are compressed.* unpack them"):
        datasets.read(Path("wds", str(tmp_path)[1:]))


@pytest.mark.parametrize("spoil", ["cut", "in a header", "flipped", "zeros", "two in one"])
def test_a_shard_that_is_damaged_in_its_middle(tmp_path, spoil):
    """Is not one that ends there, for which tarfile takes it."""
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(4):
            add(tar, f"{number}.png", b"x")
            add(tar, f"{number}.cls", b"cat")
    named, whole = Path("wds", str(tmp_path)[1:]), shard.read_bytes()
    assert len(datasets.read(named)["train"]["cat"]) == 4
    half = 4 * 2 * tarfile.BLOCKSIZE
    spoilt = {
        "cut": whole[:half],
        "in a header": whole[: half + 100],
        "flipped": whole[:half] + b"?" + whole[half + 1 :],
        "zeros": whole[:half] + bytes(1024) + whole[half + 1024 :],
        "two in one": whole + whole,
    }
    shard.write_bytes(spoilt[spoil])
    with pytest.raises(DataError, match=r"a.tar is damaged: after \d images comes neither .*; copy it again"):
        datasets.read(named)


def test_a_dataset_that_is_gone(packed, tmp_path, folders, packnet, monkeypatch):
    """Is not looked for elsewhere, let alone downloaded there."""
    where = shards(folders[0], tmp_path / "set")
    kinds = {"red": Path("wds", str(where)[1:]), "mnist": Path("torch/mnist", str(mnist(tmp_path / "root"))[1:])}
    for name, named in kinds.items():
        assert packnet("add-task", packed, "--data", named, "--name", name, *FLAGS, "--prune", 0.5).exit_code == 0
    where.rename(tmp_path / "moved")
    (tmp_path / "root").rename(tmp_path / "moved-root")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in kinds:
        result = packnet("eval", packed, "--task", name)
        assert result.exit_code == 6 and "is no longer at" in result.stderr and "say where it is" in result.stderr
    assert not list(Path().iterdir())


def test_what_is_gone():
    """Of a file that says of its images what this program never would, too."""
    gone = {"": False, ".": False, "/": False, "nowhere": True, "torch": True, "torch/mnist": False, "hfds/x/y": False}
    gone |= {"torch/mnist/nowhere": True, "wds/nowhere": True, "tfds/mnist": False}
    gone |= {"hfds/no/such/folder": True, "tfds/no/such/folder": False}
    assert {data: is_gone(data) for data in gone} == gone


def test_what_cannot_be_downloaded_leaves_nothing(tmp_path, monkeypatch):
    """Nor takes away what was there."""
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()

    def fail(name, download=False, **how):
        raise OSError("no network.") if download else RuntimeError("not found")

    monkeypatch.setattr(datasets, "create_dataset", fail)
    for place in ("there", "new"):
        with pytest.raises(DataError, match="no network; check its name"):
            datasets.read(Path("torch/cifar10", place))
        assert os.listdir() == ["there"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch/nonesuch", "cannot open the dataset torch/nonesuch: Unknown torchvision dataset nonesuch"),
        ("torch/image_folder/x", "name the folder itself"),
        ("tfds/kaggle:x", "code of their own"),
        ("wds/nonesuch", "no folder nonesuch of web-dataset shards; name the folder that holds them"),
    ],
)
def test_a_name_that_leads_nowhere(monkeypatch, name, message):
    """Is one clear error."""
    monkeypatch.setattr(extras, "missing", lambda extra: None)
    with pytest.raises(DataError, match=message):
        datasets.read(Path(name))


@pytest.mark.parametrize("kind", ["hfds", "tfds"])
def test_a_missing_package_is_one_line(packed, packnet, monkeypatch, kind):
    """Which says how to install it."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = packnet("add-task", packed, "--data", f"{kind}/birds")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and f"packnet-cli[{kind}]" in result.stderr
    with pytest.raises(UsageError):
        datasets.read(Path(kind, "birds"))


def test_a_folder_that_datasets_loads_by_another_function_only(tmp_path, monkeypatch):
    """Is told of with what to save instead."""
    (tmp_path / "state.json").touch()
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    monkeypatch.setattr(extras, "missing", lambda extra: None)
    with pytest.raises(DataError, match="as save_to_disk writes it; write it to a folder with to_parquet"):
        datasets.read(Path("hfds", str(tmp_path)[1:]))


def test_a_folder_called_like_a_file_format(tmp_path, monkeypatch):
    """Is not that format, as which `datasets` takes a relative name: it would read all such files hereabouts."""
    monkeypatch.chdir(tmp_path)
    Path("imagefolder").mkdir()
    asked: list[str] = []
    stand_in = ModuleType("datasets")
    stand_in.get_dataset_split_names = lambda name: asked.append(name) or []
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.setattr(extras, "missing", lambda extra: None)
    for name in ("imagefolder", "user/birds"):
        with pytest.raises(DataError, match="has no images in a split"):
            datasets.read(Path("hfds", name))
    assert asked == [str(tmp_path / "imagefolder"), "user/birds"]


@pytest.mark.parametrize("kind", ["SplitsNotFoundError", "DatasetGenerationError"])
def test_what_is_wrong_with_a_folder_that_datasets_cannot_load(monkeypatch, kind):
    """Is told of, and not only that something is."""

    def fail(name):
        raise type(kind, (Exception,), {})("The split names could not be parsed") from ValueError("no file_name")

    stand_in = ModuleType("datasets")
    stand_in.get_dataset_split_names = fail
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.setattr(extras, "missing", lambda extra: None)
    with pytest.raises(DataError, match="cannot open the dataset hfds/birds: no file_name; check"):
        datasets.read(Path("hfds/birds"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": int, "label": str}, r"hfds/user/birds needs a column of the kind Image; it has image \(int\)"),
        ({"image": Image.Image, "class": str}, "needs a column of the kind ClassLabel or called label; it has image"),
    ],
)
def test_a_dataset_without_the_columns_that_are_needed(monkeypatch, columns, message):
    """Is told of with those that it has, and of which kind they are."""
    stand_in = ModuleType("datasets")
    stand_in.Image, stand_in.ClassLabel = Image.Image, type("ClassLabel", (), {})
    features = {name: kind.__new__(kind) for name, kind in columns.items()}
    stand_in.get_dataset_split_names = lambda name: ["train"]
    stand_in.load_dataset = lambda name, split: SimpleNamespace(features=features)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.setattr(extras, "missing", lambda extra: None)
    with pytest.raises(DataError, match=message):
        datasets.read(Path("hfds/user/birds"))


def test_tensorflows_talk_of_processors_is_off(monkeypatch):
    """Unless the user has asked for it."""
    monkeypatch.setitem(extras.EXTRAS, "tfds", ("json",))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    extras.require("tfds")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    extras.require("tfds")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_what_tensorflows_package_needs_and_does_not_require(monkeypatch):
    """Is asked for before it is missed, in the middle of a download."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "importlib_resources" else name)
    with pytest.raises(UsageError, match=r"importlib_resources, which is not installed: .*packnet-cli\[tfds\]"):
        datasets.read(Path("tfds/mnist"))


@pytest.mark.parametrize("supervised", [("picture", "what"), None])
@pytest.mark.parametrize("order", [1, -1])
def test_tensorflows(monkeypatch, supervised, order):
    """What its catalogue gives: encoded images in a fixed order, and names; a stand-in, as the package is large.

    Of several columns of labels the one that it is supervised by, else the first by name.
    """
    png = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(png, "png")
    records = {"train": [1, 0, 1], "validation": [-1, -1], "test": [0], "extra": [1]}  # -1: without labels
    features = ModuleType("features")
    features.Image, features.ClassLabel = type("Image", (), {}), type("ClassLabel", (), {"names": ["cat", "dog"]})

    what = "what" if supervised else "kind"
    other = "kind" if supervised else "who"
    columns = {"picture": features.Image(), what: features.ClassLabel(), other: features.ClassLabel()}

    class Builder:
        info = SimpleNamespace(
            splits=records, features=dict(list(columns.items())[::order]), supervised_keys=supervised
        )

        def download_and_prepare(self):
            pass

        def as_dataset(self, split, shuffle_files, decoders):
            assert not shuffle_files and decoders == {"picture": "skip"}
            return [{"picture": png.getvalue(), what: np.int64(label), other: 7} for label in records[split]]

    stand_in = ModuleType("tensorflow_datasets")
    stand_in.builder, stand_in.features, stand_in.as_numpy = lambda name: Builder(), features, iter
    stand_in.decode = SimpleNamespace(SkipDecoding=lambda: "skip")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    hidden = []
    tensorflow = ModuleType("tensorflow")
    tensorflow.config = SimpleNamespace(set_visible_devices=lambda devices, kind: hidden.append((devices, kind)))
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setattr(extras, "missing", lambda extra: None)
    datasets._read.cache_clear()
    found = datasets.read(Path("tfds/pets:1.0.0"))
    assert hidden == [([], "GPU")]  # of which it would take all memory
    assert {s: {k: [i.index for i in v] for k, v in files.items()} for s, files in found.items()} == {
        "train": {"cat": [1], "dog": [0, 2]},
        "test": {"cat": [0]},
    }
    with pictures.open_picture(found["test"]["cat"][0]) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_labels_that_are_names_or_no_labels_at_all(tmp_path, monkeypatch):
    """Words need no classnames.txt, numbers may come with a byte order mark; what cannot be a label is one error."""
    (tmp_path / "classnames.txt").write_text("x\ny")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, inside in {"a.png": b"x", "a.cls": b"dog", "b.png": b"x", "b.cls": b"cat"}.items():
            add(tar, name, inside)
    named = Path("wds", str(tmp_path)[1:])
    assert list(datasets.read(named)["train"]) == ["cat", "dog"]
    datasets._read.cache_clear()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, inside in {"a.png": b"x", "a.cls": b"\xef\xbb\xbf1", "b.png": b"x", "b.cls": b"0"}.items():
            add(tar, name, inside)
    assert list(datasets.read(named)["train"]) == ["x", "y"]
    datasets._read.cache_clear()
    for labels in ([[1, 2], [3, 4]], [0.5, 1.5]):
        datasets._read.cache_clear()
        odd = datasets.Subset(lambda index: None, labels)
        monkeypatch.setitem(datasets.READERS, "wds", lambda *rest, odd=odd: iter([("train", odd)]))
        with pytest.raises(DataError, match=r"split 'train', image 0 has the label (\[1, 2\]|0.5), which is neither"):
            datasets.read(named)
    for subset in (datasets.Subset(lambda index: None, [0, 1], ["x", " "]), datasets.Subset(lambda index: None, [""])):
        datasets._read.cache_clear()
        monkeypatch.setitem(datasets.READERS, "wds", lambda *rest, subset=subset: iter([("train", subset)]))
        with pytest.raises(DataError, match="whose name is blank"):
            datasets.read(named)


def test_a_column_of_images_may_have_gaps():
    """Which are named for what they are."""
    with pytest.raises(ValueError, match="there is no image"):
        datasets._encoded([{"image": None}], "image", 0)


def test_classes_of_one_name_stay_apart():
    """As the two cranes of ImageNet; and labels without names are their own."""
    part = datasets.Subset(lambda index: None, [2, 0, 1, 2], ["crane", "ox", "crane"])
    assert {k: len(v) for k, v in datasets._by_class("x", part).items()} == {"crane 0": 1, "ox": 1, "crane 2": 2}
    assert list(datasets._by_class("x", datasets.Subset(lambda index: None, [10, 9]))) == ["9", "10"]
