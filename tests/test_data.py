"""Folders of images: layouts, held-out parts, classes by name, and what is refused."""

import dataclasses
import os
import shutil
import time

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image

from packnet_cli.engine.data import decoding, feed, pictures, sources, splits
from packnet_cli.engine.data.augment import Augmentation
from packnet_cli.errors import DataError

CONFIG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "crop_pct": 1.0}


@pytest.fixture
def folder(tmp_path):
    """Three classes with 6 training and 3 held-out images each."""
    return make_folder(tmp_path / "data")


def open_training(folder):
    return splits.open_training(folder, val_split=0.25, seed=0)


def open_held_out(folder, classes, trained_on=True):
    return splits.open_held_out(folder, classes, val_split=0.25, seed=0, trained_on=trained_on)


def test_a_path_that_no_file_can_have(tmp_path):
    """Too long for the system: refused as a data folder; in a list, a file that is not there, as one with a NUL is."""
    path = tmp_path / ("x" * 300)
    for read in (sources.training_files, sources.held_out_files, sources.images_below, sources.class_names):
        with pytest.raises(DataError, match="too long|does not exist|is not a folder"):
            read(path)
    for split in splits.Split([path], [0]), splits.Split([tmp_path / "a\0.png"], [0]):
        with pytest.raises(DataError, match="none of 1 files exists"):
            decoding.check_images(split)
        assert not splits._without(split, split).paths


def test_where_no_file_has_a_number_paths_tell_them_apart(folder, monkeypatch):
    """Not all are held out then, as on network drives of Windows; links are followed."""
    stat = os.stat

    def without_number(*path, **how):
        mode, _, *more = stat(*path, **how)
        return os.stat_result((mode, 0, *more))

    monkeypatch.setattr(os, "stat", without_number)
    (folder / "link.png").symlink_to(next((folder / "val").rglob("*.png")))
    images = splits.open_retraining(open_training(folder).classes, folder, folder, val_split=0.25, seed=0)
    assert len(images.train.paths) == 18 and len(images.held_out.split.paths) == 9


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_a_held_out_folder_is_used(folder, name):
    """Under any of its usual names."""
    (folder / "val").rename(folder / name)
    images = open_training(folder)
    assert images.classes == ("class0", "class1", "class2")
    assert len(images.train.paths) == 18 and len(images.held_out.split.paths) == 9
    assert all(path.parent.parent.name == name for path in images.held_out.split.paths)
    assert [path.parent.name for path in images.train.paths] == [f"class{label}" for label in images.train.labels]


def test_a_folder_for_validation_goes_before_one_for_testing(folder):
    """Which may hold images without classes, and is kept for the end."""
    (folder / "val").rename(folder / "valid")
    (folder / "test").mkdir()
    shutil.copy(next((folder / "valid").rglob("*.png")), folder / "test" / "0.png")
    assert open_training(folder).held_out.where == str(folder / "valid")


def test_what_is_hidden_is_no_image(folder):
    """Such as the copies that Jupyter keeps, in a folder beside the images."""
    before = open_training(folder)
    shutil.copytree(folder / "train" / "class0", folder / "train" / "class0" / ".ipynb_checkpoints")
    (folder / "train" / "class0" / ".notes").touch()
    assert open_training(folder) == before and sources.left_out(folder) == []


def test_a_class_that_is_gone_is_left_out_and_said_to_be(folder):
    """It was a link to a folder on another disk; one that leads somewhere is a class as any."""
    for part in ("train", "val"):
        (folder / part / "class0").rename(folder / part[:2])
        (folder / part / "class0").symlink_to(folder / part[:2])
        (folder / part / "gone").symlink_to(folder / "nowhere")
        (folder / part / ".#lock").symlink_to("nowhere")
    assert open_training(folder).classes == ("class0", "class1", "class2")
    assert sources.left_out(folder) == [folder / "train" / "gone", folder / "val" / "gone"]


@pytest.mark.parametrize("layout", ["train/<class>", "<class>"])
def test_without_one_a_part_of_each_class_is_held_out(folder, layout):
    """A quarter of each class's six, always the same under one seed, and never an image of both parts."""
    shutil.rmtree(folder / "val")
    folder = folder / "train" if layout == "<class>" else folder
    images, again = open_training(folder), open_training(folder)
    assert images == again
    assert [images.held_out.split.labels.count(label) for label in range(3)] == [2, 2, 2]
    assert not set(images.train.paths) & set(images.held_out.split.paths)
    other = splits.open_training(folder, val_split=0.25, seed=1)
    assert set(other.held_out.split.paths) != set(images.held_out.split.paths)
    assert open_held_out(folder, images.classes).split == images.held_out.split


def test_the_held_out_part_is_stable_when_images_are_added(folder):
    """What was trained on must not slip into the evaluation later."""
    shutil.rmtree(folder / "val")
    before = open_training(folder)
    shutil.copy(before.train.paths[0], before.train.paths[0].with_name("new.png"))
    after = open_training(folder)
    moved = set(after.held_out.split.paths) - set(before.held_out.split.paths)
    assert {path.name for path in moved} <= {"new.png"}


def test_of_another_folder_without_parts_every_image_counts(folder):
    """Nothing in it was trained on."""
    assert len(open_held_out(folder / "val", ("class0", "class1", "class2"), trained_on=False).split.paths) == 9


def test_classes_are_matched_by_name(folder):
    """A missing class folder must not shift the classes behind it."""
    shutil.rmtree(folder / "val" / "class0")
    held_out = open_held_out(folder, ("class0", "class1", "class2"))
    assert held_out.split.missing(("class0", "class1", "class2")) == ("class0",)
    names = [path.parent.name for path in held_out.split.paths]
    assert set(zip(names, held_out.split.labels, strict=True)) == {("class1", 1), ("class2", 2)}


def test_an_unknown_class_is_refused(folder):
    """It has no output to be right about."""
    with pytest.raises(DataError, match="unknown to the task: class2"):
        open_held_out(folder, ("class0", "class1"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "does not exist"),
        (lambda f: (shutil.rmtree(f), f.touch()), "is no folder"),
        (lambda f: shutil.rmtree(f / "train"), "no train/ folder"),
        (lambda f: [shutil.rmtree(f / p) or (f / p).mkdir() for p in ("train", "val")], "holds no class folders"),
        (
            lambda f: f.rename(f.parent / "inner").rename((f.mkdir(), f / "cubs")[1]),
            "train/ of their own.* such as .*cubs",
        ),
        (
            lambda f: f.rename(f.parent / "inner").rename((f.mkdir(), (f / "flat").mkdir(), f / "cubs")[2]),
            "such as .*cubs",
        ),
        (lambda f: [shutil.rmtree(f / "train" / f"class{n}") for n in (1, 2)], "only the class 'class0'"),
        (lambda f: [p.unlink() for p in (f / "train" / "class1").iterdir()], "'class1' holds no images"),
        (
            lambda f: [p.rename(p.with_suffix(".heic")) for p in (f / "train" / "class1").iterdir()],
            r"'class1' holds no images \(\.jpg, \.png and the like\)",
        ),
        (lambda f: [p.rename(p.with_suffix(".heic")) for p in f.glob("train/*/*")], r"a \.jpg, \.png or the like"),
        (lambda f: shutil.rmtree(f / "train" / "class1"), "unknown to the task: class1"),
        (lambda f: shutil.rmtree(f / "val" / "class1"), "has no images of 1 class.*: class1; add some"),
        (lambda f: [shutil.rmtree(p) for p in (f / "val").iterdir()], "holds no class folders"),
        (lambda f: [(f / p).rename(f / p.title()) for p in ("train", "val")], "Train, Val, which are no classes"),
        (
            lambda f: [(f / p).rename(f / q) for p, q in (("train", "Training"), ("val", "Testing"))],
            "Testing, Training, which are no classes",
        ),
        (lambda f: (f / "val").rename(f / "Val"), "holds Val beside train; call what is held out val"),
        (lambda f: (f / "val").rename(f / "testing"), "holds testing beside train; call what is held out val"),
    ],
)
def test_a_folder_that_cannot_be_trained_on(folder, spoil, message):
    """Each is said before any training."""
    spoil(folder)
    with pytest.raises(DataError, match=message):
        open_training(folder)


def test_files_that_are_no_images_are_passed_over_by_name(folder):
    """What systems and people leave in folders."""
    for name in (".DS_Store", ".hidden.png", "notes.txt"):
        (folder / "train" / "class0" / name).write_text("x")
    assert len(open_training(folder).train.paths) == 18


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_an_unreadable_image_is_named(folder, content):
    """Before training starts, and a truncated one too."""
    bad = folder / "train" / "class1" / "bad.jpg"
    if content == "truncated":
        Image.effect_noise((64, 64), 50).save(bad)
        content = bad.read_bytes()[:-200]
    images = open_training(folder)
    decoding.check_images(images.train)
    bad.write_bytes(content)
    with pytest.raises(DataError, match="1 of 19 files are not readable images: .*bad.jpg"):
        decoding.check_images(open_training(folder).train)


def test_an_image_may_be_called_as_it_likes(folder):
    """Memory is not short because a file says so."""
    (folder / "train" / "class1" / "out of memory.jpg").touch()
    with pytest.raises(DataError, match="1 of 19 files are not readable images: .*out of memory.jpg"):
        decoding.check_images(open_training(folder).train)


def spoil(folder):
    """Four files that are no images, each in its way, in train/class1."""
    target = folder / "train" / "class1"
    (target / "empty.png").touch()
    (target / "circle.png").symlink_to("circle.png")
    os.mkfifo(target / "pipe.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(target / "float.tif")
    return target


def test_a_picture_of_extreme_shape_is_none(tmp_path):
    """Resized by its short side, it would fill the memory."""
    for size, fits in (((2000, 2), True), ((2002, 2), False), ((1, 1001), False)):
        Image.new("1", size).save(tmp_path / "a.png")
        [problem] = [found for _, found in decoding._problems([tmp_path / "a.png"], [0])] or [""]
        assert problem == "" if fits else "more than 1,000 times the other" in problem


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as everywhere but in tests
def test_all_bad_images_are_listed_at_once(folder, monkeypatch):
    """Each with what is wrong with it; no more than twenty, and their number."""
    target = spoil(folder)
    with pytest.raises(DataError, match="^4 of 22 files") as raised:
        decoding.check_images(open_training(folder).train)
    for word in ("empty.png (not an image", "circle.png (", "pipe.png (not a regular file", "float.tif (floating"):
        assert word in str(raised.value)
    for number in range(30):
        (target / f"bad{number}.png").touch()
    with pytest.raises(DataError, match="^34 of 52 files.* and 14 more;"):
        decoding.check_images(open_training(folder).train)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 36 * 36 - 1)  # a warning up to twice as much
    with pytest.raises(DataError, match="^52 of 52 .*more than 1,295 pixels"):
        decoding.check_images(open_training(folder).train)


def test_bad_images_are_skipped_on_demand(folder):
    """And counted; but a class must keep some, and so must the evaluation."""
    before = open_training(folder)
    spoil(folder)
    assert decoding.usable(open_training(folder), skip_bad=True) == dataclasses.replace(before, skipped=4)
    assert decoding.usable(before) == before
    for part, message in (("train/class1", "to train 1 class.*: class1"), ("val", "left to evaluate on")):
        for path in (folder / part).rglob("*.png"):
            path.write_bytes(b"") if path.is_file() else path.unlink()
        with pytest.raises(DataError, match=message):
            decoding.usable(open_training(folder), skip_bad=True)
        shutil.rmtree(folder)
        make_folder(folder)


def test_an_unreadable_folder_is_no_empty_one(folder, monkeypatch):
    """Images would be missing unsaid; root reads every folder, hence the patch."""

    real = os.scandir

    def scandir(path):
        if os.path.basename(path) != "class0":  # pathlib lists folders with it, too, in some versions of Python
            return real(path)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="cannot read .*class0: Permission denied"):
        sources.training_files(folder / "train")


@pytest.mark.parametrize("kind", ["I;16 png", "I;16 tif", "I tif"])
def test_of_16_bits_the_high_byte_is_seen(tmp_path, kind):
    """PIL itself would cut all but the darkest off at white."""
    mode, suffix = kind.split()
    values = np.array([[0, 255], [256, 65535]], np.uint16 if mode == "I;16" else np.int32)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert np.asarray(pictures.convert(image, "RGB"))[..., 1].tolist() == [[0, 0], [1, 255]]


@pytest.mark.parametrize("pixels", [np.float32([[0, 1]]), np.int32([[0, 2**16]]), np.int32([[-1, 255]])])
def test_pixels_of_unknown_range_are_unreadable(tmp_path, pixels):
    """Nothing says what is white, and it might be all that is left."""
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif \(.*of unknown range\)"):
        decoding.check_images(splits.Split([tmp_path / "a.tif"], [0]))


def test_of_an_animated_image_the_first_frame_is_seen(tmp_path):
    """As in any viewer that shows one."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    split = splits.Split([tmp_path / "a.png"], [0])
    assert decoding.check_images(split) == [split]
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(pictures.convert(image, "RGB"))[0, 0].tolist() == [255, 0, 0]


def test_one_image_in_each_class_is_trained_on(tmp_path):
    """Of many classes, without a quadratic step; there is nothing to measure, nor to search on."""
    for number in range(3000):
        (tmp_path / f"class{number:04}").mkdir()
        (tmp_path / f"class{number:04}" / "a.png").touch()
    began = time.process_time()
    images = open_training(tmp_path)
    assert len(images.classes) == len(images.train.paths) == 3000 and images.held_out is None
    assert len(images.fingerprint) == 64 and time.process_time() - began < 5
    with pytest.raises(DataError, match="with one image in each class"):
        splits.set_aside(images.train, 0.2, 0)


def test_names_that_are_no_text(folder):
    """A file system takes any bytes."""
    for part in ("train", "val"):
        os.rename(folder / part / "class0", os.fsencode(folder / part) + b"/cl\xffass")
    (folder / "train" / "class1" / "0.png").rename(os.fsdecode(os.fsencode(folder) + b"/train/class1/\xfe.png"))
    for _ in range(2):  # with a val/ folder, and without
        images = decoding.usable(open_training(folder))
        assert images.classes == ("class1", "class2", "cl\udcffass") and len(images.fingerprint) == 64
        shutil.rmtree(folder / "val", ignore_errors=True)


def test_batches(folder):
    """Normalised float32 (N, C, H, W); evaluation goes through every image once, in order."""
    held_out = open_training(folder).held_out.split
    how = dict(batch_size=4, workers=0, device=torch.device("cpu"))
    batches = list(feed.batches(held_out, CONFIG, **how))
    assert [images.shape for images, _ in batches] == [(4, 3, 32, 32), (4, 3, 32, 32), (1, 3, 32, 32)]
    assert torch.cat([labels for _, labels in batches]).tolist() == held_out.labels
    assert all(images.dtype == torch.float32 and images.abs().max() <= 1 for images, _ in batches)


def test_training_leaves_out_a_lone_last_image_only(folder):
    """Batch norm cannot take statistics of one image; of two it can."""
    train = open_training(folder).train  # 18 images
    how = dict(augmentation=Augmentation(), workers=0, device=torch.device("cpu"))
    assert len(feed.batches(train, CONFIG, batch_size=17, **how)) == 1
    assert len(feed.batches(train, CONFIG, batch_size=16, **how)) == 2


@pytest.mark.parametrize("mode", ["L", "P", "P transparent", "RGBA", "CMYK", "I;16", "1", "LAB"])
def test_every_pixel_format_becomes_the_networks(tmp_path, mode):
    """Palette, grey, 16-bit, CMYK and transparent images are all trained on."""
    mode, *transparent = mode.split()
    file = tmp_path / ("a.tif" if mode in ("CMYK", "I;16", "LAB") else "a.png")
    noise = Image.effect_noise((40, 40), 50).convert("I" if mode == "I;16" else mode if mode != "LAB" else "L")
    (noise.convert(mode) if mode != "LAB" else Image.merge("LAB", (noise,) * 3)).save(
        file, **({"transparency": bytes(range(256))} if transparent else {})
    )
    split = splits.Split([file, file], [0, 1])
    decoding.check_images(split)
    for channels in (1, 3, 4):
        config = CONFIG | {"input_size": (channels, 32, 32), "mean": (0.5,) * channels, "std": (0.5,) * channels}
        how = dict(batch_size=2, workers=0, device=torch.device("cpu"))
        [(images, _)] = feed.batches(split, config, **how)
        assert images.shape == (2, channels, 32, 32)
