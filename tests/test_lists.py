"""Lists of images as --data: the same images as in folders are the same task; and what is refused."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
from conftest import FLAGS

from packnet_cli import extras
from packnet_cli.artifact import format
from packnet_cli.engine import first_task
from packnet_cli.engine.data import decoding, sources, splits
from packnet_cli.engine.data.lists import read_list
from packnet_cli.errors import DataError
from packnet_cli.images import is_list, task_name


def write(path: Path, *rows, columns=("path", "label", "split")) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def listed(folder: Path, path: Path, parts=("train", "val")) -> Path:
    """A list of all images in train/ and val/."""
    images = [image for part in parts for image in sorted((folder / part).rglob("*.png"))]
    return write(path, *((image, image.parent.name, image.parts[-3]) for image in images))


def test_the_same_images_are_the_same_task(packed, tmp_path, folders, packnet):
    """To the bit, whether they are listed or lie in folders; eval and prune then go on from the list."""
    where, bits = listed(folders[0], tmp_path / "red.csv"), packed.read_bytes()
    states = []
    for source in (folders[0], where):
        packed.write_bytes(bits)
        assert packnet("add-task", packed, "--data", source, *FLAGS).exit_code == 0
        artifact = format.load(packed)
        states.append(artifact.header.tasks[0])
    one, other = states
    assert (one.name, one.digest, one.classes, one.top1) == (other.name, other.digest, other.classes, other.top1)
    assert other.data == str(where)
    here = ("--json", "--workers", 0, "--device", "cpu")
    result = json.loads(packnet("eval", packed, *here).stdout)
    assert result == json.loads(packnet("eval", packed, "--data", folders[0], *here).stdout)
    assert result["tasks"][0]["top1"] == one.top1
    assert packnet("prune", packed, "--task", "red", "--prune", 0.5, *FLAGS[2:]).exit_code == 0
    assert packnet("add-task", packed, "--data", where, "--dry-run", "--name", "x").exit_code == 0
    where.unlink()
    result = packnet("eval", packed)
    assert result.exit_code == 6 and "is no longer at" in result.stderr


def test_a_list_is_read_once_until_it_changes(tmp_path, monkeypatch):
    """By whoever asks: with the images in it, it may be large."""
    where, read = write(tmp_path / "list.csv", ("a.png", "x", "train"), ("b.png", "x", "val")), []
    monkeypatch.setattr(sources, "read_list", lambda path: read.append(path) or read_list(path))
    splits.open_training(where, val_split=0.3, seed=0, classes=("x", "y"))
    assert sources.class_names(where) == ("x",) and len(read) == 1
    write(where, ("a.png", "y", "train"), ("bb.png", "x", "train"))
    assert sources.class_names(where) == ("x", "y") and len(read) == 2


def test_without_splits_a_part_is_held_out(tmp_path, folders):
    """Of each class, as of folders; paths are relative to the list, and columns that nobody knows are passed over."""
    images = sorted((folders[0] / "train").rglob("*.png"))
    where = folders[0].parent / "all.csv"
    rows = [(str(image.relative_to(where.parent)), image.parent.name, 7) for image in images]
    write(where, *rows, columns=("path", "label", "width"))
    found = splits.open_training(where, val_split=0.3, seed=0)
    wanted = splits.open_training(folders[0], val_split=0.3, seed=0)
    assert found.classes == wanted.classes and len(found.held_out.split.paths) == 6
    assert sorted(found.train.paths + found.held_out.split.paths) == images
    alone = write(tmp_path / "val.csv", *((image, image.parent.name, "val") for image in images))
    assert len(splits.open_held_out(alone, found.classes, val_split=0.3, seed=0).split.paths) == len(images)
    with pytest.raises(DataError, match="held-out images only"):
        splits.open_training(alone, val_split=0.3, seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\na.png,x\n", "no column 'label'"),
        ("", "no column 'path'"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png,\n", "line 2: has no label"),
        ("path,label\na.png\n", "line 2: has no label"),
        ("path,label\na.png, \nb.png,x\n", "line 2: has no label"),
        ("path,label\n,x\n", "line 2: has no image"),
        ("path,label\na.png,x\nb.png,terrier, Irish\n", "line 3: has more cells .* double quotes"),
        ("path,label\na.png,x\nc/../a.png,y\n", "line 3: .*a.png is listed twice"),
        ("path,label,split\na.png,x,train\nb.png,x,trian\n", "line 3: has the split 'trian', .* train, val, val"),
        ("path,label,split\na.png,x,train\nb.png,x\n", "line 3: has the split '', "),
        ("path,label\na.png,x\na.png,y\n", "line 3: .*a.png is listed twice"),
        ("path,label\na.png,x\n", "has only the class 'x'"),
        ("path,label\na.png,x\nb.png,y\nc.png,x\nd.png,y\n", "none of 4 files exists, .*paths start at its folder"),
        ("path,label, Split\na.png,x,train\nb.png,y,train\n", "has a column ' Split'; call it 'split'"),
        (b"path,label\n\xff\xfe,x\n", "not a CSV file in UTF-8"),
        ('path,label\n"a.png,x\nb.png,y\n', "unexpected end of data; is a double quote left open"),
        ("path,label,split\na,x,train\nb,y,train\nc,x,val\n", "has no images of 1 class"),
        ("path,label,split\na,x,train\nb,y,train\nc,z,val\n", "unknown to the task: z"),
    ],
)
def test_a_list_that_cannot_be_used(packed, tmp_path, packnet, text, message):
    """Is one clear error, and nothing is written."""
    where, before = tmp_path / "list.csv", packed.read_bytes()
    where.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = packnet("add-task", packed, "--data", where)
    assert result.exit_code == 6 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    with pytest.raises(DataError, match=message):
        decoding.usable(splits.open_training(where, val_split=0.3, seed=0))
    assert packed.read_bytes() == before


def test_a_missing_list_and_a_folder_of_that_name(tmp_path):
    """The one is named, the other is a folder as any."""
    with pytest.raises(DataError, match="cannot read the list .*none.csv: No such file"):
        read_list(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert not is_list(tmp_path / "folder.csv") and task_name(tmp_path / "folder.csv") == "folder.csv"
    assert task_name(tmp_path / "v1.0") == "v1.0" and task_name(tmp_path / "birds.csv") == "birds"
    (tmp_path / "wrens.csv").symlink_to(tmp_path / "birds.csv")
    (tmp_path / "link").symlink_to(tmp_path / "v1.0")
    assert task_name(tmp_path / "wrens.csv") == "wrens" and task_name(tmp_path / "link" / ".." / "link") == "link"


def test_an_image_by_two_paths_is_listed_twice(tmp_path, monkeypatch):
    """Though the list itself is named by a relative one."""
    monkeypatch.chdir(tmp_path)
    Path("two.csv").write_text(f"path,label,split\na.png,x,train\n{tmp_path / 'a.png'},x,val\n")
    with pytest.raises(DataError, match="line 3: .*a.png is listed twice"):
        splits.open_training(Path("two.csv"), val_split=0.2, seed=0)


def test_a_list_that_is_a_link_is_where_the_link_is(packed, tmp_path, folders, packnet):
    """As in the hub's cache: what it points to has another name, and no images beside it."""
    (there := tmp_path / "snapshot").mkdir()
    images = [image.relative_to(folders[0]) for image in sorted(folders[0].rglob("*.png"))]
    for part in ("train", "val"):
        (there / part).symlink_to(folders[0] / part)
    write(tmp_path / "3fa9c0", *((image, image.parent.name, image.parts[0]) for image in images))
    (there / "birds.csv").symlink_to(tmp_path / "3fa9c0")
    assert packnet("add-task", packed, "--data", there / "birds.csv", *FLAGS).exit_code == 0
    [task] = format.load_header(packed).tasks
    assert (task.name, task.data) == ("birds", str(there / "birds.csv"))
    assert packnet("verify", packed, "--data", "--device", "cpu").exit_code == 0


def parquet(path, columns, metadata=None):
    """A Parquet file."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata or {}), path)
    return path


@pytest.mark.parametrize("kind", ["path", "struct", "bytes"])
def test_a_parquet_file_is_a_list(packed, tmp_path, folders, packnet, kind):
    """Of paths, or of the images themselves, with the names of the classes in numbers: the same task to the bit."""
    images = [image for part in ("train", "val") for image in sorted((folders[0] / part).rglob("*.png"))]
    columns = {"label": [image.parent.name for image in images], "split": [image.parts[-3] for image in images]}
    metadata = None
    if kind == "path":
        columns["path"] = list(map(str, images))
    else:
        encoded = [image.read_bytes() for image in images]
        columns["image"] = encoded if kind == "bytes" else [{"bytes": one, "path": "x"} for one in encoded]
        names = ["class0", "class1", "class2"]
        columns["label"] = [names.index(name) for name in columns["label"]]
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
    where = parquet(tmp_path / "red.parquet", columns, metadata)
    bits, entries = packed.read_bytes(), []
    for source in (folders[0], where):
        packed.write_bytes(bits)
        assert packnet("add-task", packed, "--data", source, *FLAGS).exit_code == 0
        entries.append(format.load(packed).header.tasks[0])
    one, other = entries
    assert (one.name, one.digest, one.classes, one.top1) == (other.name, other.digest, other.classes, other.top1)
    result = packnet("eval", packed, "--json", "--workers", 0, "--device", "cpu")
    assert json.loads(result.stdout)["tasks"][0]["top1"] == one.top1


def test_classes_that_are_numbers_with_names_are_in_order_of_number(tmp_path, folders):
    """As a network that was trained on them has its outputs."""
    cells, names = [image.read_bytes() for image in sorted(folders[0].glob("train/*/*"))[:4]], ["zebra", "ant", "bee"]
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
    columns = {"image": cells, "label": [2, 1, 0, 1], "split": ["train", "train", "train", "val"]}
    where = parquet(tmp_path / "zoo.parquet", columns, metadata)
    assert sources.class_names(where) == tuple(names) and list(read_list(where)["val"]) == ["ant"]
    origin = SimpleNamespace(num_classes=3, classes=(), model=timm.create_model("test_resnet", num_classes=3))
    assert first_task.class_names(origin, None, where) == tuple(names)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a.png"], "label": ["x"]}, "has the columns file, label; it needs label, and path or image"),
        ({"path": ["a.png", None], "label": ["x", "x"]}, "row 2: has no image"),
        ({"path": ["a.png", "a.png"], "label": ["x", "y"]}, "row 2: .*a.png is listed twice"),
        ({"image": [b"x", b""], "label": [1, 2]}, "row 2: has no image"),
        ({"path": [1], "label": [2]}, "row 1: has no image"),
        ({"path": ["a.png"], "label": ["x"], "SPLIT": ["val"]}, "has a column 'SPLIT'; call it 'split'"),
        ({"path": ["a.png"], "label": [0.5]}, "row 1: the label 0.5 is neither text nor a whole number"),
    ],
)
def test_a_parquet_file_that_cannot_be_used(tmp_path, columns, message):
    """Is one clear error."""
    with pytest.raises(DataError, match=message):
        read_list(parquet(tmp_path / "x.parquet", columns))


def test_text_that_is_not_said_to_be_text(tmp_path):
    """Some programs write labels as bytes."""
    where = parquet(tmp_path / "x.parquet", {"path": ["a.png", "b.png"], "label": ["caf\u00e9".encode(), b"tea"]})
    assert list(read_list(where)["train"]) == ["caf\u00e9", "tea"]


def test_a_parquet_file_of_images_and_paths(tmp_path, folders):
    """In one class, as Hugging Face's {bytes, path} may have them."""
    one, other = sorted((folders[0] / "train").glob("*/*"))[:2]
    cells = [{"bytes": one.read_bytes(), "path": None}, {"bytes": None, "path": str(other)}]
    [(split, files)] = read_list(parquet(tmp_path / "x.parquet", {"image": cells, "label": ["a", "a"]})).items()
    assert split == "train" and len(files["a"]) == 2 and files["a"][1] == other


def test_an_unreadable_image_is_named_by_its_row(packed, tmp_path, folders, packnet):
    """Counted as in the other messages about a list."""
    cells = [image.read_bytes() for image in sorted(folders[0].glob("train/*/*"))[:4]]
    cells[2] = b"no image"
    where = parquet(tmp_path / "x.parquet", {"image": cells, "label": [0, 0, 1, 1]})
    result = packnet("add-task", packed, "--data", where)
    assert result.exit_code == 6 and f"{where}, row 3 (not an image, or damaged)" in result.stderr


def unusable(package):
    raise ImportError("it requires NumPy 2.0 or newer")


def test_what_is_no_parquet_file(packed, tmp_path, packnet, monkeypatch):
    """Or cannot be read for want of the extra, or one that works: one line."""
    where = tmp_path / "x.parquet"
    where.write_bytes(b"PAR1 and no more")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = packnet("add-task", packed, "--data", where)
    assert result.exit_code == 2 and "packnet-cli[parquet]" in result.stderr and result.stderr.count("\n") == 1
    monkeypatch.undo()
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(extras, "import_module", unusable)
    result = packnet("add-task", packed, "--data", where)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "pyarrow, which is installed but cannot be imported: it requires NumPy 2.0" in result.stderr
    monkeypatch.undo()
    result = packnet("add-task", packed, "--data", where)
    assert result.exit_code == 6 and "x.parquet" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("column", ["label", "split"])
@pytest.mark.parametrize(("number", "unit"), [(1, "ns"), (2**62, "us")])
def test_a_time_is_no_label(tmp_path, column, number, unit):
    """Python has none with nanoseconds, nor of such a year; and none names a split."""
    pyarrow = pytest.importorskip("pyarrow")
    columns = {"path": ["a"], "label": ["x"], column: pyarrow.array([number], pyarrow.timestamp(unit))}
    with pytest.raises(DataError, match="x.parquet, row 1: .*as text"):
        read_list(parquet(tmp_path / "x.parquet", columns))


@pytest.mark.parametrize("told", [json.dumps({"info": {"features": [{"name": "label"}]}}), "[" * 200_000])
def test_class_names_in_another_form(tmp_path, told):
    """Are not those of Hugging Face, nor nested deeper than anything is: one clear error."""
    where = parquet(tmp_path / "x.parquet", {"path": ["a"], "label": [0]}, {"huggingface": told})
    with pytest.raises(DataError, match="x.parquet is not a Parquet file that can be read"):
        read_list(where)
