"""The commands about capacity: plan how tasks share the weights, and prune to make room for one more."""

from pathlib import Path
from typing import Annotated, Any

from packnet_cli import report
from packnet_cli.cli import PACK, Json, Option, Packed, command, complete_task
from packnet_cli.cli.packing import DISTILL, report_newest
from packnet_cli.cli.run import Run, with_run
from packnet_cli.cli.settings import PRUNING, recipe_from, with_settings
from packnet_cli.errors import UsageError
from packnet_cli.recipe import Recipe


@command(PACK, "packnet prune packed.st --task cubs --prune 0.5")
@with_settings(*PRUNING, usual="those that the task was added with", show_defaults=False)
@with_run
def prune(
    path: Packed,
    task: Annotated[
        str,
        Option(help="Index or name of the newest task; no other can be pruned.", autocompletion=complete_task),
    ],
    prune: Annotated[float, Option(help="Fraction of what it owns to release, below 1.")],
    settings: dict[str, Any],
    run: Run,
    data: Annotated[
        Path | None, Option(metavar="DATA", help="Images to retrain on; default: those it was added with.")
    ] = None,
    distill: Annotated[Path | None, Option(metavar="DIR", help=DISTILL)] = None,
    json: Json = False,
) -> None:
    """Release more of the newest task's weights and retrain it, by its own recipe unless told otherwise.

    The seed and the held-out images stay those that it was added with.
    """
    from packnet_cli.artifact import format

    recipe = recipe_from(settings, Recipe.recorded(format.load_header(path).task(task).recipe))
    from packnet_cli.engine import pack

    with run.of(path) as how:
        pack.prune_task(path, task, prune=prune, data=data, distill=distill, recipe=recipe, **how)
    report_newest(path, json)


@command(PACK, "packnet plan packed.st --tasks 5 --layers")
def plan(
    path: Packed,
    tasks: Annotated[int, Option(min=1, max=255, help="How many tasks the file is to hold in the end.")],
    layers: Annotated[bool, Option("--layers", help="Show each layer, as --rank layer would share it.")] = False,
    json: Json = False,
) -> None:
    """Show what equal shares of the free weights come to, and the prune fractions that give them."""
    from packnet_cli.artifact import format
    from packnet_cli.artifact.plan import check_capacity, equal_shares, share_out

    artifact = format.load(path)
    artifact.header.check_changeable(path)
    if tasks < (there := len(artifact.header.tasks)):
        raise UsageError(f"{path} holds {there} tasks already, which --tasks counts too; give at least {there}")
    if tasks > there:
        check_capacity(path, artifact, more=tasks - there)
    report.plan(share_out(artifact, equal_shares(artifact, tasks), Recipe()), as_json=json, layers=layers)
