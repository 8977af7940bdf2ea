"""What the metadata of an artifact may hold: a rule for each field, since files may come from anywhere."""

import math
import re
from collections.abc import Callable
from typing import Any

from packnet_cli.artifact import codec, masks
from packnet_cli.recipe import SETTINGS

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
Rule = Callable[[Any], bool]


def check(what: str, fields: Any, rules: dict[str, Rule], *, optional: dict[str, Rule] | None = None) -> None:
    """Raise ValueError unless the fields are those of `rules`, and any of `optional`, and each satisfies its rule."""
    optional = optional or {}
    if not isinstance(fields, dict) or fields.keys() - optional.keys() != rules.keys():
        raise ValueError(f"the fields of {what} are not those of its format")
    for name, value in fields.items():
        if not (rules | optional)[name](value):
            raise ValueError(f"{what} has an impossible {name}")


def _is_any(value: Any) -> bool:
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    """Whether it can name a task: not an index, "all" or "auto", nor blank or unprintable."""
    reserved = _is_text(value) and (value.isdecimal() or value in ("all", "auto"))
    return _is_text(value) and value.isprintable() and bool(value.strip()) and not reserved


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _is_percentage(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 100


def _is_percentage_or_null(value: Any) -> bool:
    return value is None or _is_percentage(value)


def _list_of(rule: Rule, least: int = 0) -> Rule:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(rule, value))


def _dict_of(rule: Rule, key: Rule = _is_text) -> Rule:
    return lambda value: isinstance(value, dict) and all(map(key, value)) and all(map(rule, value.values()))


def _is_digest(value: Any) -> bool:
    return _is_text(value) and DIGEST.fullmatch(value) is not None


def _is_preprocessing(value: Any) -> bool:
    """Whether it is a data config: a missing field means timm's default, unknown ones are ignored."""
    size: Any = value.get("input_size") if isinstance(value, dict) else None
    if not (_list_of(is_count)(size) and len(size) == 3 and min(size) > 0):
        return False

    def of_channels(numbers: Any) -> bool:
        return _list_of(_is_number)(numbers) and len(numbers) == size[0]

    rules: dict[str, Rule] = {
        "mean": of_channels,
        "std": lambda numbers: of_channels(numbers) and min(numbers) > 0,
        "crop_pct": lambda part: _is_number(part) and part > 0,
        "crop_mode": _is_text,
        "interpolation": _is_text,
    }
    return all(rule(value[name]) for name, rule in rules.items() if name in value)


def _is_recipe(value: Any) -> bool:
    """Whether it is a recipe; settings of other versions are not checked."""
    kinds: dict[Any, Rule] = {int: lambda setting: type(setting) is int, float: _is_number, str: _is_text}
    return _dict_of(_is_any)(value) and all(
        kinds[SETTINGS[name].type](setting) for name, setting in value.items() if name in SETTINGS
    )


def _is_shape(value: Any) -> bool:
    return _list_of(is_count)(value) and len(value) <= 32 and math.prod(value) < 2**63  # every numpy allows it


def _is_tree(value: Any) -> bool:
    def is_branch(part: Any) -> bool:
        if isinstance(part, list):
            return len(part) == 2 and all(map(is_branch, part))
        return is_count(part) and part <= masks.MAX_TASKS

    if not is_branch(value) or value == masks.FREE:
        return False
    indices = list(codec.leaves(value))
    return len(set(indices)) == len(indices)


def _is_compact(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    check("its compact part", value, COMPACT_RULES)
    return bool(value["shapes"].keys() == value["trees"].keys())


# Arguments of timm.create_model, beside the network's own, that a file must not set. With checkpoint_path, for one, a
# file could cause another one to be unpickled.
NOT_FOR_FILES = {"pretrained", "checkpoint_path", "cache_dir", "num_classes", "scriptable", "exportable", "no_jit"}


def is_argument(name: str) -> bool:
    """Whether a file may set this argument of timm.create_model."""
    return name.isidentifier() and name not in NOT_FOR_FILES and not name.startswith("pretrained_cfg")


def _is_index(value: Any) -> bool:
    return re.fullmatch("[1-9][0-9]{0,2}", value) is not None


HEADER_RULES: dict[str, Rule] = {
    "arch": lambda value: _is_text(value) and value.isidentifier(),  # not the address of something to fetch
    "model_kwargs": _dict_of(_is_any, key=is_argument),
    "head": _list_of(_is_text),
    "source": _is_text,
    "data_config": _is_preprocessing,
    "tasks": _list_of(_dict_of(_is_any)),
    "removed": _dict_of(_dict_of(is_count), key=_is_index),
    "tensors": _dict_of(_is_digest),
}

COMPACT_RULES: dict[str, Rule] = {
    "dtype": lambda value: value in codec.DTYPES,
    "shapes": _dict_of(_is_shape),
    "trees": _dict_of(_is_tree),
    "originals": _dict_of(_is_digest, key=_is_index),
}

OF_COMPACT: dict[str, Rule] = {"compact": _is_compact}  # the artifact's additional field in format 2

OF_MEASURED: dict[str, Rule] = {  # a task's additional fields if it had held-out images
    "temperature": lambda value: _is_number(value) and 1e-3 <= value <= 1e3,
    "held_out": _is_digest,
}


def _has(*types: type) -> Rule:
    return lambda value: isinstance(value, types)


OF_NETWORK: dict[str, Rule] = {  # what is used of timm's configuration of a network, which may be anyone's
    "architecture": lambda value: _is_text(value) and value.partition(".")[0].isidentifier(),
    "input_size": lambda value: _list_of(is_count)(value) and len(value) == 3 and min(value) > 0,
    "mean": _list_of(_is_number, 1),
    "std": lambda value: _list_of(_is_number, 1)(value) and min(value) > 0,
    "crop_pct": lambda value: _is_number(value) and value > 0,
    "crop_mode": _is_text,
    "interpolation": _is_text,
    "num_classes": is_count,
    "classifier": _has(str, list),
    "first_conv": _has(str, list),
    "label_names": _has(list, dict),
}

EXTRACTED_RULES: dict[str, Rule] = {  # of the metadata beside a task's weights in a safetensors file of its own
    "arch": _is_text,
    "model_kwargs": _dict_of(_is_any, key=is_argument),
    "data_config": _is_preprocessing,
    "task": _is_text,
    "classes": _list_of(_is_text, least=1),
}

TASK_RULES: dict[str, Rule] = {
    "index": lambda value: is_count(value) and 1 <= value <= masks.MAX_TASKS,
    "name": is_name,
    "classes": _list_of(_is_text, least=1),
    "prune": lambda value: _is_number(value) and 0 <= value < 1,
    "owned": _dict_of(is_count),
    "accuracy": _dict_of(_is_percentage),
    "top1": _is_percentage_or_null,
    "top5": _is_percentage_or_null,
    "images": is_count,
    "data": _is_text,
    "recipe": _is_recipe,
    "search": _dict_of(_is_percentage),
    "digest": _is_digest,
    "skipped": is_count,
}
