"""The settings of a recipe as command-line options, made from the fields of Recipe."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from packnet_cli.cli import Decorator, Option, with_options
from packnet_cli.errors import UsageError, did_you_mean
from packnet_cli.recipe import (
    ADAMW,
    AUTO,
    CHOICES,
    FIRST_PHASE,
    RECIPES,
    SETTINGS,
    SPLIT_SETTINGS,
    AtMost,
    Recipe,
    flag,
)

TRAINING = "Training"

RETRAINING = tuple(name for name in SETTINGS if name not in FIRST_PHASE)
PRUNING = tuple(name for name in RETRAINING if name not in SPLIT_SETTINGS)


def with_settings(*names: str, usual: str = "sgd", show_defaults: bool = True) -> Decorator:
    """Give a command an option for each of these settings, --recipe and --config.

    In place of its parameter `settings` the command gets a dictionary of the settings that were given on the command
    line, "recipe" and "config" among them if they were. `usual` says what holds without --recipe.
    """

    options = {
        "recipe": Option(help=f"Start from these settings; by default {usual}."),
        "config": Option(metavar="FILE.toml", help="Settings by name, which win over --recipe; flags win over them."),
    } | {
        name: Option(
            flag(name),
            help=SETTINGS[name].metadata["help"],
            show_default=show_defaults and (str(SETTINGS[name].default) or "none"),
        )
        for name in names
    }
    if "batch_size" in options:
        options["batch_size"].parser, options["batch_size"].metavar = _batch_size, f"N|{AUTO}"
    for option in options.values():
        option.rich_help_panel = TRAINING
    choice: Any = Literal
    types = {"recipe": choice[tuple(RECIPES)], "config": Path} | {
        name: choice[CHOICES[name]] if name in CHOICES else SETTINGS[name].type for name in names
    }
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[types[name] | None, option]
        )
        for name, option in options.items()
    ]
    return with_options(
        "settings", added, lambda given: {name: value for name, value in given.items() if value is not None}
    )


def _batch_size(text: str) -> int | str:
    try:
        return text if text == AUTO else int(text)
    except ValueError:
        raise UsageError(f"--batch-size takes a whole number, or {AUTO}, not {text!r}") from None


def recipe_from(settings: dict[str, Any], start: Recipe | None = None) -> Recipe:
    """The recipe that was asked for by name, else `start`, with what --config says and the settings that were given.

    A batch size of "auto" is at most the one that would hold without it. Raises UsageError.
    """
    given = dict(settings)
    name, config = given.pop("recipe", None), given.pop("config", None)
    recipe = start or Recipe() if name is None else RECIPES[name]
    if config:
        found = read_config(config)
        try:
            recipe = _changed(recipe, found)
        except UsageError as error:
            raise UsageError(f"{config}: {error}") from None
    return _changed(recipe, given)


def _changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    if settings.get("batch_size") == AUTO:
        settings = settings | {"batch_size": AtMost(recipe.batch_size)}
    return dataclasses.replace(recipe, **settings)


def recipes_from(settings: dict[str, Any]) -> tuple[Recipe, Recipe]:
    """The recipe, and the one for few steps: the same, unless neither recipe nor optimizer was given."""
    recipe, few_steps = recipe_from(settings), recipe_from(settings, ADAMW)
    return recipe, recipe if few_steps.opt == recipe.opt else few_steps


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, by name. Raises UsageError for one that is unknown or of a wrong type."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    for name, value in found.items():
        if name not in SETTINGS:
            hint = did_you_mean(name, SETTINGS, 0.5) or f"there are {', '.join(SETTINGS)}"
            options = "other options can only be given on the command line"
            raise UsageError(f"{path}: no setting is called {name!r}; {hint} ({options})")
        kind: Any = SETTINGS[name].type
        if type(value) is int and kind is float:
            try:
                found[name] = float(value)
            except OverflowError:
                raise UsageError(f"{path}: {name} is too large a number") from None
        elif type(value) is not kind and (name, value) != ("batch_size", AUTO):
            what = {int: "a whole number", float: "a number", str: "a text in quotes"}[kind]
            raise UsageError(f"{path}: {name} takes {what}, not {value!r}")
    return found
