"""The commands that make an artifact and put tasks into it."""

from pathlib import Path
from typing import Annotated, Any

from packnet_cli import report
from packnet_cli.cli import PACK, Argument, Json, Option, Packed, command
from packnet_cli.cli.run import Run, with_run
from packnet_cli.cli.settings import RETRAINING, recipe_from, recipes_from, with_settings
from packnet_cli.cli.streams import by_torchrun
from packnet_cli.errors import UsageError
from packnet_cli.images import check_exists
from packnet_cli.recipe import AUTO, FIRST_PHASE, SETTINGS, flag

PIXELS = "Preprocessing, where it differs from timm's"
BASE = "The pretrained network as task 1"

DryRun = Annotated[bool, Option("--dry-run", help="Show who would own which weights; change nothing.")]
DISTILL = "Retrain on any images, without labels: the unpruned network is the teacher."


@command(
    PACK,
    "packnet init packed.st --arch resnet50",
    "packnet init packed.st --arch vgg16 --weights vgg16.pth",
    "packnet init packed.st --arch vgg16 --prune 0.5 --data ./imagenet",
)
@with_settings(*RETRAINING)
@with_run
def init(
    path: Annotated[Path, Argument(metavar="PACKED", help="The file to make, for example packed.st.")],
    arch: Annotated[str, Option(help="A timm classifier: vgg16, resnet50, hf-hub:OWNER/NAME, local-dir:FOLDER, ...")],
    settings: dict[str, Any],
    run: Run,
    weights: Annotated[
        Path | None, Option(metavar="FILE", help="Start from this .safetensors, .pt or .pth file, not from the hub.")
    ] = None,
    pretrained: Annotated[bool, Option(help="Start from timm's pretrained weights, or from random ones.")] = True,
    model_kwargs: Annotated[
        list[str] | None, Option(metavar="KEY=VALUE", help="Argument of timm.create_model; may be repeated.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace an existing file.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    prune: Annotated[
        float | None,
        Option(help="Keep its own classifier as task 1; release this fraction of the weights.", rich_help_panel=BASE),
    ] = None,
    data: Annotated[
        Path | None, Option(metavar="DATA", help="Images of its own classes, to retrain on.", rich_help_panel=BASE)
    ] = None,
    distill: Annotated[Path | None, Option(metavar="DIR", help=DISTILL, rich_help_panel=BASE)] = None,
    name: Annotated[
        str | None,
        Option(help="Name of the task; default: imagenet, that of DATA, or pretrained.", rich_help_panel=BASE),
    ] = None,
    class_names: Annotated[
        Path | None,
        Option(metavar="FILE", help="Its classes, one a line, in order of its outputs.", rich_help_panel=BASE),
    ] = None,
    img_size: Annotated[int | None, Option(help="Image size, pixels.", rich_help_panel=PIXELS)] = None,
    in_chans: Annotated[int | None, Option(help="Image channels: 1, 3 or 4.", rich_help_panel=PIXELS)] = None,
    mean: Annotated[
        str | None, Option(metavar="M[,M,M]", help="Mean of the pixels, from 0 to 1.", rich_help_panel=PIXELS)
    ] = None,
    std: Annotated[
        str | None, Option(metavar="S[,S,S]", help="Standard deviation of the pixels.", rich_help_panel=PIXELS)
    ] = None,
    crop_pct: Annotated[
        float | None, Option(help="Share of the short side in the test crop.", rich_help_panel=PIXELS)
    ] = None,
    interpolation: Annotated[
        str | None, Option(help="bilinear, bicubic, nearest or lanczos.", rich_help_panel=PIXELS)
    ] = None,
) -> None:
    """Start a packed model from a timm network: all of its weights free, or (--prune) with itself as the first task."""
    recipe = recipe_from(settings)
    base: dict[str, Any] = {"--data": data, "--distill": distill, "--name": name, "--class-names": class_names}
    base |= {"--log": run.log, "--resume": run.resume or None}
    base |= {flag(name): value for name, value in settings.items() if name != "seed"}
    for given, value in base.items():
        if value is not None and prune is None:
            raise UsageError(f"{given} goes with --prune, which keeps the pretrained network as the first task")
    start = recipe_from({name: settings[name] for name in settings.keys() & {"recipe"}})
    if unused := [name for name in FIRST_PHASE if getattr(recipe, name) != getattr(start, name)]:  # no flags of init
        report.say(f"{settings['config']}: {', '.join(unused)} not used, as init --prune only retrains")
    if not by_torchrun():  # whose processes tell of errors together
        from packnet_cli.artifact import atomic

        atomic.check_new(path, force)  # now, as to import torch takes seconds
        if data is not None:
            check_exists(data)
    from packnet_cli.artifact.summary import summarize
    from packnet_cli.engine import pack
    from packnet_cli.engine.start import parse_model_kwargs

    asked: dict[str, Any] = {
        "weights": weights,
        "pretrained": pretrained,
        "prune": prune,
        "data": data,
        "distill": distill,
        "name": name,
        "class_names": class_names,
        "recipe": recipe,
        "model_kwargs": parse_model_kwargs(model_kwargs or []),
        "data_config": {
            "img_size": img_size,
            "in_chans": in_chans,
            "mean": _numbers("--mean", mean),
            "std": _numbers("--std", std),
            "crop_pct": crop_pct,
            "interpolation": interpolation,
        },
    }
    if dry_run:
        from packnet_cli.engine.dry_run import plan_init

        report.plan(plan_init(arch, say=report.say, **asked), as_json=json)
        return
    with run.of(path) as how:
        pack.init(path, arch, force=force, **asked, **how)
    numbers = summarize(path)
    if json:
        report.summary(numbers, layers=False, as_json=True)
        return
    report.started(path, numbers)
    if prune is not None:
        report.added(numbers, as_json=False)


@command(
    PACK,
    "packnet add-task packed.st --data ./cubs --prune 0.5",
    "packnet add-task packed.st --data ./cubs --tasks-left 2 --recipe adamw",
    "packnet add-task packed.st --data ./cubs --resume",
)
@with_settings(*SETTINGS, usual="adamw for few steps on a network with norms, else sgd, whose values are shown")
@with_run
def add_task(
    path: Packed,
    data: Annotated[
        Path,
        Option(
            metavar="DATA",
            help="Images: a folder with train/<class>/... and val/<class>/..., or just <class>/...; a list (.csv, "
            ".parquet); or a dataset: torch/NAME, hfds/NAME, tfds/NAME, wds/DIR.",
        ),
    ],
    settings: dict[str, Any],
    run: Run,
    name: Annotated[str | None, Option(help="Name of the task; default: that of DATA.")] = None,
    prune: Annotated[
        str | None,
        Option(
            metavar="FRACTION|auto",
            help="Fraction of its weights to release to later tasks, below 1; default: 0; auto: see the next two.",
        ),
    ] = None,
    tasks_left: Annotated[int | None, Option(min=0, max=254, help="Leave equal shares to so many later tasks.")] = None,
    max_drop: Annotated[float | None, Option(help="Release all that costs at most so many points of accuracy.")] = None,
    head_only: Annotated[bool, Option("--head-only", help="A classifier alone, on the newest task's weights.")] = False,
    dry_run: DryRun = False,
    skip_bad_images: Annotated[
        bool, Option("--skip-bad-images", help="Go on without images that cannot be read, and record how many.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a task on the free weights, prune it, retrain it; earlier tasks stay the same to the bit."""
    recipe, few_steps = recipes_from(settings)
    fraction = _fraction(prune, tasks_left, max_drop)
    if not by_torchrun():  # as in init
        from packnet_cli.artifact import format

        format.load_header(path).check_changeable(path)
        check_exists(data)
    if dry_run:
        if max_drop is not None:
            raise UsageError("--dry-run cannot tell what --max-drop will find; give a fraction")
        if head_only:
            raise UsageError("--head-only takes no weights, so that there is nothing for --dry-run to show")
        from packnet_cli.engine.dry_run import plan_task

        report.plan(plan_task(path, data, name=name, prune=fraction, recipe=recipe, say=report.say), as_json=json)
        return
    from packnet_cli.engine import pack

    with run.of(path) as how:
        pack.add_task(
            path,
            data,
            name=name,
            prune=fraction,
            max_drop=max_drop,
            head_only=head_only,
            recipe=recipe,
            few_steps=few_steps,
            skip_bad_images=skip_bad_images,
            **how,
        )
    report_newest(path, json)


def report_newest(path: Path, json: bool) -> None:
    from packnet_cli.artifact.summary import summarize

    report.added(summarize(path), as_json=json)


def _fraction(prune: str | None, tasks_left: int | None, max_drop: float | None) -> float:
    """The fraction to release: a number, or an equal share, or 0 where it is to be searched for."""
    from packnet_cli.artifact.plan import equal_share, fraction_of

    if tasks_left is not None and max_drop is not None:
        raise UsageError("--tasks-left (equal shares) and --max-drop (a search) exclude each other")
    chosen = tasks_left is not None or max_drop is not None
    if chosen and prune not in (None, AUTO):
        raise UsageError(f"--prune {prune} leaves nothing to choose; leave it out, or --tasks-left and --max-drop")
    if prune == AUTO and not chosen:
        raise UsageError("--prune auto needs either --tasks-left N (equal shares) or --max-drop POINTS (a search)")
    if tasks_left is not None:
        return equal_share(tasks_left)
    return 0.0 if chosen or prune is None else fraction_of(prune, AUTO)


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    """`0.5` or `0.485,0.456,0.406` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} takes a number, or one per channel with commas between, not {text!r}") from None
