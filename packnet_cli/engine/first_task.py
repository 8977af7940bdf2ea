"""The pretrained network as the first task: its class names and its default name."""

from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.utils import natural_key

from packnet_cli.engine.data import sources
from packnet_cli.engine.start import Origin
from packnet_cli.errors import DataError
from packnet_cli.images import is_dataset, task_name


def class_names(origin: Origin, listed: Path | None, data: Path | None) -> tuple[str, ...]:
    """The classes of a pretrained classifier, in order of its outputs.

    From the file `listed`, one name a line; else from where its weights are, a file or the hub; else ImageNet's wnids,
    if timm recognises the network as an ImageNet one and no folder has another name; else the class folders in order,
    if there are as many and the order is in no doubt, or without images plain numbers. Raises DataError.
    """
    count = origin.num_classes
    if listed is not None:
        return _read_names(listed, count)
    if len(origin.classes) == len(set(origin.classes)) == count:
        return origin.classes
    subset = infer_imagenet_subset(origin.model)
    wnids = tuple(ImageNetInfo(subset).label_names()) if subset else ()
    if data is None:
        return wnids or tuple(map(str, range(count)))
    folders = sources.class_names(data)
    if set(folders) <= set(wnids):
        return wnids
    hint = "list the classifier's names, one a line, in a file and give it with --class-names"
    if len(folders) != count:
        raise DataError(
            f"{data} has {len(folders)} class folders and the classifier {count} outputs, so that they cannot be "
            f"matched in order; {hint}"
        )
    natural = tuple(sorted(folders, key=natural_key))
    # A dataset's classes, and others not in order of name, are in order of the labels' numbers.
    if folders == tuple(sorted(folders)) != natural and not is_dataset(data):
        name, other = next(pair for pair in zip(folders, natural, strict=True) if pair[0] != pair[1])
        raise DataError(
            f"the order of the classes in {data} is in doubt: timm sorts {other!r} before {name!r}, torchvision "
            f"after it; {hint}"
        )
    return folders


def _read_names(path: Path, count: int) -> tuple[str, ...]:
    try:
        names = tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the class names in {path}: {getattr(error, 'strerror', None) or error}") from None
    while names and not names[-1].strip():
        names = names[:-1]
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"{path}, line {number}: no name; give each class one, and take out empty lines")
    if len(names) != count or len(set(names)) != count:
        raise DataError(f"{path} lists {len(set(names))} different names; the classifier has {count} outputs")
    return names


def default_name(classes: tuple[str, ...], data: Path | None) -> str:
    """The task's name by default: "imagenet" if its classes are wnids, else the folder's, else "pretrained"."""
    if all(name[:1] == "n" and name[1:].isdecimal() for name in classes):
        return "imagenet"
    return task_name(data) if data else "pretrained"
