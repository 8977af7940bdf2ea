"""Batches: what is kept changes no bit of them, skipping is exact, and images look as timm makes them look."""

import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image
from test_data import CONFIG
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil

from packnet_cli.engine.data import augment, feed, splits
from packnet_cli.errors import DataError, UsageError

CPU = torch.device("cpu")


@pytest.fixture
def split(tmp_path):
    """Eighteen images of three classes."""
    return splits.open_training(make_folder(tmp_path / "data"), val_split=0.2, seed=0).train


def batches(split, *, seed=0, skip=0, training=True, cache="auto", gigabytes=1.0, workers=0, epochs=1, config=CONFIG):
    """All batches of some epochs, as [(images, labels), ...]."""
    room = feed.budgets(cache, gigabytes, CPU)
    augmentation = augment.Augmentation(crop_scale=0.3) if training else None
    found = feed.batches(
        split, config, augmentation=augmentation, batch_size=5, workers=workers, device=CPU, budgets=room
    )
    torch.manual_seed(seed)
    found.skip(skip)
    return [batch for _ in range(epochs) for batch in found]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("training", [True, False])
def test_what_is_kept_and_who_reads_changes_nothing(split, training):
    """Kept all, in part or not at all, read here or by threads: the same batches in each epoch, to the bit."""
    how = dict(training=training, epochs=3)
    expected = batches(split, **how)
    assert same(expected[:4], expected[4:8]) != training
    for other in ({"cache": "off"}, {"gigabytes": 3e-5}, {"workers": 3}, {"workers": 2, "cache": "off"}):
        assert same(batches(split, **how, **other), expected), other
    assert same(batches(split, seed=1, **how), expected) != training


def test_every_image_once_an_epoch(split):
    """In an order of its own each time; evaluation in the split's."""
    first, second = ([int(label) for _, labels in batches(split, seed=seed) for label in labels] for seed in (0, 1))
    assert sorted(first) == sorted(second) == sorted(split.labels) and first != second
    assert [int(label) for _, labels in batches(split, training=False) for label in labels] == split.labels


@pytest.mark.parametrize("skip", [1, 3, 4])
def test_skipping_is_exact_and_reads_nothing(split, skip, monkeypatch):
    """What follows is as if the first batches had been computed; the next epoch is whole again."""
    expected, read = batches(split, epochs=2), []
    decoded = feed.decoded
    monkeypatch.setattr(feed, "decoded", lambda path, **how: read.append(path) or decoded(path, **how))
    assert same(batches(split, skip=skip), expected[skip:4]) and len(read) == max(0, 18 - 5 * skip)
    assert same(batches(split, skip=skip, epochs=2), expected[skip:])


def test_kept_images_are_decoded_once(split, monkeypatch):
    """As far as there is room: 18 images of 3,888 bytes; the rest in each epoch."""
    read = []
    decoded = feed.decoded
    monkeypatch.setattr(feed, "decoded", lambda path, **how: read.append(path) or decoded(path, **how))
    for cache, gigabytes, expected in (("ram", 1, 18), ("device", 1, 18), ("off", 1, 54), ("auto", 4e-5, 18 + 2 * 8)):
        read.clear()
        batches(split, cache=cache, gigabytes=gigabytes, epochs=3)
        assert len(read) == expected, cache
    with pytest.raises(UsageError, match="one of auto, ram, device, off, not 'disk'"):
        feed.budgets("disk", 1, CPU)
    with pytest.raises(UsageError, match="--cache-gb must be a number from 0 up, not nan"):
        feed.budgets("ram", float("nan"), CPU)


def test_no_two_crops_are_alike(split):
    """Of one image within a batch, from batch to batch and from epoch to epoch."""
    ten = splits.Split(split.paths[:1] * 10, [0] * 10)
    images = [image.numpy().tobytes() for images, _ in batches(ten, epochs=2) for image in images]
    assert len(set(images)) == 20


# Which counts this process's threads while others read images, beyond those of torch.
COUNT = """
import os, sys
from pathlib import Path
import torch
from packnet_cli.engine.data import augment, feed, splits

threads = lambda: len(os.listdir("/proc/self/task"))
torch.ones(10**6).add_(1)
before, size = threads(), {"input_size": (3, 224, 224), "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
paths = tuple(map(Path, sys.argv[1:]))
found = feed.batches(
    splits.Split(paths, (0,) * len(paths)),
    size,
    augmentation=augment.Augmentation(vflip=0.5),
    batch_size=2,
    workers=2,
    device=torch.device("cpu"),
)
print(max(threads() - before for _ in found))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux lists them")
def test_threads_that_read_start_no_others(tmp_path):
    """As torch's do, of which, with more than there are cores, all sleep while they wait."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.new("RGB", (400, 300)).save(path)
    two = os.environ | {"OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", COUNT, *paths], env=two, capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 2


@pytest.mark.parametrize("training", [True, False])
def test_threads_do_what_takes_time(split, training, monkeypatch):
    """They read and crop; what is kept, and to be shown as it is, is taken without them."""
    found, take = [], feed.ImageCache.__getitem__
    monkeypatch.setattr(
        feed.ImageCache, "__getitem__", lambda *which: found.append(threading.current_thread()) or take(*which)
    )
    batches(split, training=training, workers=2, epochs=2)
    here = [thread is threading.main_thread() for thread in found]
    assert here == [False] * 18 + [not training] * 18


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize(("mode", "chans"), [("RGB", 3), ("L", 1), ("RGBA", 4)])
def test_evaluation_sees_timms_pixels(tmp_path, interpolation, mode, chans):
    """To the bit, whatever the kernel and the channels."""
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    config = CONFIG | {"input_size": [chans, 32, 32], "mean": [0.485] * chans, "std": [0.229] * chans}
    config |= {"interpolation": interpolation, "crop_pct": 0.875}
    [(found, _)] = batches(splits.Split([path], [0]), training=False, config=config)
    with Image.open(path) as image:
        assert torch.equal(found[0], create_transform(**config)(image.convert(mode)))


@pytest.mark.parametrize("interpolation", list(augment.SMOOTH) + [InterpolationMode.LANCZOS, InterpolationMode.NEAREST])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_crops_look_as_pil_makes_them(interpolation, channels):
    """Made smaller or larger, to within one of 255: nothing is aliased, and nothing shows what is transparent."""
    noise = torch.randint(256, (channels, 60, 80), dtype=torch.uint8, generator=torch.manual_seed(0))
    for part in (noise, noise[:, 3:20, 5:25]):
        expected = pil.pil_to_tensor(pil.resize(pil.to_pil_image(part), [32, 32], interpolation))
        found = augment.resized(part, (32, 32), interpolation)
        assert found.dtype == torch.uint8 and (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("interpolation", augment.SMOOTH)
def test_a_batch_of_crops_is_what_each_is_alone(interpolation, monkeypatch):
    """Of any sizes, flipped or not, to within one of 255; however many fit on the canvas at once."""
    rng = torch.manual_seed(0)
    sizes = [(60, 80), (200, 31), (17, 20), (32, 32), (1, 5), (500, 375)]
    images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=rng) for size in sizes]
    images += images[:1] * 3
    draws = np.random.default_rng(3).random((len(images), augment.DRAWS)).tolist()
    augmentation = augment.Augmentation(crop_scale=0.3, vflip=0.5)
    crops = [augmentation.crop(image, row) for image, row in zip(images, draws, strict=True)]
    assert len({flips for _, _, flips in crops}) == 4
    for several in (crops, crops[-3:]):  # the last are of one size
        found = augment.resized_together(several, (48, 32), interpolation, CPU)
        for one, crop in zip(found, several, strict=True):
            expected = augment.resized_alone(crop, (48, 32), interpolation)
            assert one.dtype == torch.uint8 and (one.int() - expected.int()).abs().max() <= 1
    monkeypatch.setattr(augment, "CANVAS", 10_000)
    assert (augment.resized_together(crops[-3:], (48, 32), interpolation, CPU).int() - found.int()).abs().max() <= 1


def test_an_image_of_one_pixel_can_be_flipped():
    """Numpy gives a view of negative strides, which torch does not take, even where it is asked for a copy."""
    image = torch.full((3, 9, 9), 7, dtype=torch.uint8)
    for flips in ((True, False), (False, True), (True, True)):
        assert augment.resized_alone((image, (0, 0, 9, 9), flips), (1, 1), augment.SMOOTH[0]).tolist() == [[[7]]] * 3


def test_wide_and_tall_images_do_not_fill_the_memory(monkeypatch):
    """Side by side they would need a place that is as wide as the one and as tall as the other."""
    places, canvas = [], augment._canvas
    monkeypatch.setattr(augment, "CANVAS", 50_000)
    monkeypatch.setattr(augment, "_canvas", lambda *how: places.append(canvas(*how)) or places[-1])
    wide, tall = torch.zeros(3, 8, 400, dtype=torch.uint8), torch.zeros(3, 400, 8, dtype=torch.uint8)
    crops = [(image, (0, 0, *image.shape[1:]), (False, False)) for image in (wide, tall, wide, wide)]
    assert augment.resized_together(crops, (16, 16), augment.SMOOTH[0], CPU).shape == (4, 3, 16, 16)
    assert [place.numel() for place in places] == [9600, 9600, 19200]


@pytest.mark.parametrize("size", [(40, 60), (7, 300), (300, 7), (1, 1)])
def test_boxes_are_those_of_timm(size, monkeypatch):
    """From the same random numbers the same boxes, the fallback for long images included."""
    image = Image.new("L", size[::-1])
    for draws in np.random.default_rng(5).random((50, augment.DRAWS)).tolist():
        tries, starts = iter(draws[:-3]), iter(draws[-3:-1])
        monkeypatch.setattr(random, "uniform", lambda low, high, tries=tries: low + (high - low) * next(tries))
        monkeypatch.setattr(random, "randint", lambda low, high, starts=starts: int((high - low + 1) * next(starts)))
        expected = RandomResizedCropAndInterpolation.get_params(image, (0.3, 1), augment.RATIO)
        top, left, height, width = augment.random_box(*size, 0.3, draws)
        assert (top, left, height, width) == (*expected[:2], max(1, expected[2]), max(1, expected[3]))


@pytest.mark.parametrize(
    ("hflip", "vflip"), [(0.5, 0), (0, 0), (1, 0), (0, 1), (1, 1), (0, 0.5), (0.5, 0.5), (0.2, 0.8)]
)
def test_as_many_crops_are_flipped_as_asked_for(hflip, vflip):
    """Each way independently of the other; and nothing else is done to a crop that is the whole image."""
    image = torch.arange(32 * 32, dtype=torch.int32).remainder(251).byte().view(1, 32, 32)
    draws = np.random.default_rng(0).random((400, augment.DRAWS)).tolist()
    crops = [augment.Augmentation(0.9999999, hflip, vflip).crop(image, row) for row in draws]
    whole = [augment.resized_alone(crop, (32, 32), augment.SMOOTH[0]) for crop in crops]
    total = 0
    for axes, share in {(): (1 - hflip) * (1 - vflip), (2,): hflip * (1 - vflip), (1,): (1 - hflip) * vflip}.items():
        found = sum(torch.equal(each, image.flip(axes)) for each in whole)
        total += found
        assert abs(found - 400 * share) <= (40 if 0 < share < 1 else 0)
    assert total + sum(torch.equal(each, image.flip(1, 2)) for each in whole) == 400


def test_large_photographs_are_kept_smaller(tmp_path):
    """By a whole number, so that nothing is blurred; a small image keeps all of its own pixels."""
    noise = Image.effect_noise((900, 600), 50)
    noise.save(tmp_path / "a.jpg")
    noise.save(tmp_path / "a.png")
    assert feed.decoded(tmp_path / "a.jpg", "RGB", short_side=120).shape == (3, 150, 225)
    assert feed.decoded(tmp_path / "a.png", "RGB", short_side=120).shape == (3, 120, 180)
    assert feed.decoded(tmp_path / "a.jpg", "L", short_side=301).shape == (1, 600, 900)


def test_an_image_that_goes_away_is_named(split):
    """No traceback, at whatever time."""
    split.paths[3].unlink()
    with pytest.raises(DataError, match="3.png can no longer be read: .*; nothing was written"):
        batches(split, workers=2)


def test_an_image_that_becomes_too_large_is_told_why(split, monkeypatch):
    """An exception may come without words."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(DataError, match="png can no longer be read: more than 1 pixels; nothing was written"):
        batches(split, workers=2)


def test_memory_that_runs_out_is_no_fault_of_the_image(split):
    """It is told as such, with what to try."""

    def fail(path):
        raise MemoryError

    with pytest.raises(MemoryError):
        feed.ImageCache(split.paths, fail, [])[0]


def test_a_device_that_has_less_memory_than_it_had(split):
    """Keeps no more; the next room does, and the batches are the same."""

    class Full:
        type, index = "cuda", 0

    def moved(picture, device):
        if isinstance(device, Full):
            raise RuntimeError("CUDA out of memory")
        return picture

    full, ram = feed.Budget(Full(), 1e9), feed.Budget(CPU, 1e9)
    pictures = feed.ImageCache(split.paths, lambda path: torch.zeros(3, 4, 4, dtype=torch.uint8), [full, ram])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "moved", moved)
        assert pictures[0].sum() == 0 and pictures[1].sum() == 0
    assert set(pictures.kept) == {0, 1} and full.left == 0 and ram.left == 1e9 - 96
