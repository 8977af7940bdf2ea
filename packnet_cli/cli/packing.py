"""The commands that make an artifact and put tasks into it."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from packnet_cli import report
from packnet_cli.cli import Amp, BatchSize, Device, Json, Packed, Workers, app
from packnet_cli.errors import UsageError
from packnet_cli.recipe import CHOICES, Recipe

PIXELS = "Preprocessing, where it differs from timm's"
TRAINING = "Training"


@app.command()
def init(
    path: Annotated[Path, Argument(metavar="PACKED", help="The file to make, for example packed.st.")],
    arch: Annotated[str, Option(help="A timm classifier: vgg16, resnet50, hf-hub:timm/resnet50.a1_in1k, ...")],
    weights: Annotated[
        Path | None, Option(metavar="FILE", help="Start from this .safetensors, .pt or .pth file, not from the hub.")
    ] = None,
    pretrained: Annotated[bool, Option(help="Start from timm's pretrained weights, or from random ones.")] = True,
    model_kwargs: Annotated[
        list[str] | None, Option(metavar="KEY=VALUE", help="Argument of timm.create_model; may be repeated.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of random weights.")] = 0,
    force: Annotated[bool, Option("--force", help="Replace an existing file.")] = False,
    img_size: Annotated[int | None, Option(min=1, help="Image size, pixels.", rich_help_panel=PIXELS)] = None,
    in_chans: Annotated[int | None, Option(help="Image channels: 1, 3 or 4.", rich_help_panel=PIXELS)] = None,
    mean: Annotated[
        str | None, Option(metavar="M[,M,M]", help="Mean of the pixels, from 0 to 1.", rich_help_panel=PIXELS)
    ] = None,
    std: Annotated[
        str | None, Option(metavar="S[,S,S]", help="Standard deviation of the pixels.", rich_help_panel=PIXELS)
    ] = None,
    crop_pct: Annotated[
        float | None, Option(min=0.01, max=1, help="Share of the short side in the test crop.", rich_help_panel=PIXELS)
    ] = None,
    interpolation: Annotated[
        str | None, Option(help="bilinear, bicubic, nearest or lanczos.", rich_help_panel=PIXELS)
    ] = None,
) -> None:
    """Start a packed model from a timm network; all of its weights are free."""
    if pretrained and weights is None:
        report.say(f"fetching the pretrained weights of {arch}, unless they are here already ...")
    from packnet_cli.engine import pack
    from packnet_cli.engine.start import parse_model_kwargs

    artifact = pack.init(
        path,
        arch,
        weights=weights,
        pretrained=pretrained,
        model_kwargs=parse_model_kwargs(model_kwargs or []),
        data_config={
            "img_size": img_size,
            "in_chans": in_chans,
            "mean": _numbers("--mean", mean),
            "std": _numbers("--std", std),
            "crop_pct": crop_pct,
            "interpolation": interpolation,
        },
        seed=seed,
        force=force,
    )
    report.started(path, artifact)


@app.command()
def add_task(
    path: Packed,
    data: Annotated[
        Path, Option(metavar="DIR", help="Images: train/<class>/... and val/<class>/..., or just <class>/...")
    ],
    name: Annotated[str | None, Option(help="Name of the task; default, the folder's.")] = None,
    prune: Annotated[float, Option(help="Fraction of its weights to release to later tasks, 0 to 1.")] = 0.0,
    skip_bad_images: Annotated[
        bool, Option("--skip-bad-images", help="Go on without images that cannot be read, and record how many.")
    ] = False,
    json: Json = False,
    epochs: Annotated[int, Option(help="Epochs on all free weights.", rich_help_panel=TRAINING)] = Recipe.epochs,
    retrain_epochs: Annotated[
        int, Option(help="Epochs from the first release on.", rich_help_panel=TRAINING)
    ] = Recipe.retrain_epochs,
    lr: Annotated[float, Option(help="Learning rate.", rich_help_panel=TRAINING)] = Recipe.lr,
    retrain_lr: Annotated[
        float, Option(help="Learning rate after pruning.", rich_help_panel=TRAINING)
    ] = Recipe.retrain_lr,
    opt: Annotated[
        str, Option(help="timm optimizer: momentum, sgd, adamw, ...", rich_help_panel=TRAINING)
    ] = Recipe.opt,
    weight_decay: Annotated[float, Option(help="Weight decay.", rich_help_panel=TRAINING)] = Recipe.weight_decay,
    sched: Annotated[
        str, Option(help=f"timm schedule: {', '.join(CHOICES['sched'])}.", rich_help_panel=TRAINING)
    ] = Recipe.sched,
    crop_scale: Annotated[
        float, Option(help="Smallest part of an image in a training crop.", rich_help_panel=TRAINING)
    ] = Recipe.crop_scale,
    prune_steps: Annotated[
        int, Option(help="Release in so many steps, one an epoch.", rich_help_panel=TRAINING)
    ] = Recipe.prune_steps,
    restart: Annotated[
        str, Option(help="Start free weights at their pretrained values, or at zero.", rich_help_panel=TRAINING)
    ] = Recipe.restart,
    norm: Annotated[
        str, Option(help="Norm and biases trained by each task, or frozen after the first.", rich_help_panel=TRAINING)
    ] = Recipe.norm,
    val_split: Annotated[
        float, Option(help="Part held out where there is no val/ folder.", rich_help_panel=TRAINING)
    ] = Recipe.val_split,
    seed: Annotated[int, Option(help="Seed of head, order and augmentation.", rich_help_panel=TRAINING)] = Recipe.seed,
    batch_size: BatchSize = Recipe.batch_size,
    device: Device = "auto",
    workers: Workers = None,
    amp: Amp = False,
) -> None:
    """Train a task on the free weights, prune it, retrain it; earlier tasks stay the same to the bit."""
    recipe = Recipe(
        epochs=epochs,
        retrain_epochs=retrain_epochs,
        lr=lr,
        retrain_lr=retrain_lr,
        batch_size=batch_size,
        opt=opt,
        weight_decay=weight_decay,
        sched=sched,
        crop_scale=crop_scale,
        prune_steps=prune_steps,
        restart=restart,
        norm=norm,
        val_split=val_split,
        seed=seed,
    )
    from packnet_cli.artifact.summary import summarize
    from packnet_cli.engine import pack

    with report.training_bar() as progress:
        pack.add_task(
            path,
            data,
            name=name,
            prune=prune,
            recipe=recipe,
            device=device,
            workers=workers,
            amp=amp,
            skip_bad_images=skip_bad_images,
            progress=progress,
        )
    report.added(summarize(path), as_json=json)


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    """`0.5` or `0.485,0.456,0.406` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} takes a number, or one per channel with commas between, not {text!r}") from None
