"""The pretrained network as a task of its own: what its classifier calls its classes, and images to retrain it on."""

from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset

from packnet_cli.engine.checks import say_what_is_left_out
from packnet_cli.engine.data import sources, splits
from packnet_cli.engine.start import Origin
from packnet_cli.errors import DataError
from packnet_cli.images import task_name
from packnet_cli.progress import Say
from packnet_cli.recipe import Recipe


def class_names(origin: Origin, listed: Path | None, data: Path | None) -> tuple[str, ...]:
    """The classes of a pretrained classifier, in order of its outputs.

    From the file `listed`, one name a line; else ImageNet's, by wnid, if timm takes the network for an ImageNet one and
    the folders are called so; else the sorted class folders if there are as many; without images, plain numbers.
    Raises DataError.
    """
    count = origin.num_classes
    if listed is not None:
        return _read_names(listed, count)
    subset = infer_imagenet_subset(origin.model)
    wnids = tuple(ImageNetInfo(subset).label_names()) if subset else ()
    if len(wnids) != count:
        wnids = ()
    if data is None:
        return wnids or tuple(map(str, range(count)))
    folders = sources.class_names(data)
    if set(folders) <= set(wnids):
        return wnids
    if len(folders) == count:
        return folders
    raise DataError(
        f"{data} has {len(folders)} class folders and the classifier {count} outputs, so that they cannot be matched "
        "in order; list the classifier's names, one a line, in a file and give it with --class-names"
    )


def _read_names(path: Path, count: int) -> tuple[str, ...]:
    try:
        names = tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the class names in {path}: {error}") from None
    while names and not names[-1].strip():
        names = names[:-1]
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"{path}, line {number}: no name; give each class one, and take out empty lines")
    if len(names) != count or len(set(names)) != count:
        raise DataError(f"{path} lists {len(set(names))} different names; the classifier has {count} outputs")
    return names


def default_name(classes: tuple[str, ...], data: Path | None) -> str:
    """What the task is called if nobody says: imagenet if its classes are wnids, else as the folder."""
    if all(name[:1] == "n" and name[1:].isdecimal() for name in classes):
        return "imagenet"
    return task_name(data) if data else "pretrained"


def open_images(
    classes: tuple[str, ...],
    data: Path | None,
    distill: Path | None,
    recipe: Recipe,
    say: Say,
    *,
    skip_bad_images: bool = False,
) -> splits.TrainingImages:
    """What a task that is trained already is retrained and measured on.

    With `distill`, all images below it, without labels, and the held-out images of `data`, if any; else those of
    `data`; with neither none, so that it is not retrained, and its accuracy is not known. Raises DataError.
    """
    if distill is not None:
        held_out = (
            None if data is None else splits.open_held_out(data, classes, val_split=recipe.val_split, seed=recipe.seed)
        )
        images = splits.TrainingImages(classes, splits.open_unlabelled(distill), held_out)
    elif data is not None:
        images = splits.open_training(data, val_split=recipe.val_split, seed=recipe.seed, classes=classes)
    else:
        images = splits.TrainingImages(classes, splits.Split([], []), None)
    images = splits.usable(images, skip_bad=skip_bad_images)
    if data is not None:
        say_what_is_left_out(data, say)
    return images
