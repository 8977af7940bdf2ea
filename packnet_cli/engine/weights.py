"""Loads weights from a file into a network, whatever their names there.

Accepts plain state dicts, and training checkpoints that hold one, from timm, torchvision and others.
"""

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import adapt_input_conv, clean_state_dict, load_state_dict
from torch import nn

from packnet_cli.artifact import format, rules
from packnet_cli.artifact.header import is_of_head
from packnet_cli.errors import ArtifactError, NetworkError, did_you_mean_path, few, quoted, reason

Tensors = dict[str, torch.Tensor]
COUNTER = "num_batches_tracked"  # of batch norm; older files lack it, and no output depends on it
SHARD = re.compile(r"-\d+-of-(?!0*1\.)\d+\.")  # in the name of a file that holds a part of some weights


def load_weights(model: nn.Module, path: Path, arch: str, *, head: tuple[str, ...], stems: tuple[str, ...]) -> str:
    """Set all weights from a file; every one must be there and fit. Returns a remark for the user, or "".

    `head` holds the name prefixes of the classifier, to leave it out; `stems` are the names of the first convolutions,
    which are adapted to the network's input channels. Raises NetworkError.
    """
    found = _read(path)
    own = model.state_dict()
    body = {name: value for name, value in own.items() if not is_of_head(name, head)}
    tried = []
    for rename, remark in RENAMINGS:
        renamed = rename(found, model, arch, body)
        _adapt_stems(renamed, own, stems)
        fitting = {name for name, value in renamed.items() if name in body and value.shape == body[name].shape}
        lacking = [name for name in body if name not in fitting and not name.endswith(COUNTER)]
        if not lacking:
            for name in fitting:
                if own[name].is_floating_point() and not renamed[name].is_floating_point():
                    kind = str(renamed[name].dtype).removeprefix("torch.")
                    raise NetworkError(f"{path} cannot be used: {name} holds {kind} numbers; take a file of float ones")
                if own[name].isfinite().all() and not renamed[name].isfinite().all():  # bounds may be infinite
                    raise NetworkError(
                        f"{path} cannot be used: not all numbers of {name} are finite; take another file"
                    )
            model.load_state_dict({name: renamed[name] for name in fitting}, strict=False)
            unused = [name for name in renamed if name not in own]  # a classifier left out is not mentioned
            return _remark(path, len(body), remark, unused)
        tried.append((lacking, renamed))
    lacking, renamed = min(tried, key=lambda attempt: len(attempt[0]))
    unfit = [name for name in lacking if name in renamed]
    what, names = ("has another shape for", unfit) if len(unfit) == len(lacking) else ("lacks", lacking)
    unknown = [name for name in renamed if name not in own]
    if SHARD.search(path.name) and not unfit:
        hint = "it is one of several files of these weights, to be joined in one"
    else:
        hint = "check --arch, --model-kwargs and --img-size"
        if path.suffix == ".safetensors" and not unfit:  # maybe only the names differ, and `_by_order` needs an order
            hint += ", or try it as .pth, which keeps the order of tensors"
    raise NetworkError(
        f"{path} does not fit this architecture: it {what} {len(names)} of {len(body)} tensors ({few(names, 3)})"
        + (f" and has {len(unknown)} unknown ones ({few(unknown, 3)})" if unknown else "")
        + f"; {hint}"
    )


def count_outputs(path: Path, head: tuple[str, ...]) -> int:
    """The number of classes of the classifier in a weights file. Raises NetworkError."""
    found = _read(path)
    matrices = [name for name, value in found.items() if value.ndim == 2]
    ending = tuple(f"{prefix}.weight" for prefix in head)
    named = [name for name, value in found.items() if name.endswith(ending) and value.ndim >= 2]  # or 1 x 1 filters
    likely = [name for name in named if name in matrices] or named or matrices
    if not likely:
        raise NetworkError(f"{path} has no classifier to keep; leave out --prune, so that all its weights are free")
    return int(found[likely[-1]].shape[0])


def recorded_in(path: Path) -> dict[str, Any]:
    """What `packnet extract` records beside a task's weights (see `ship.about`); nothing of other files."""
    try:
        with safe_open(path, framework="np") as file:
            found: dict[str, Any] = json.loads(file.metadata()["packnet_task"])
        rules.check("its metadata", found, rules.EXTRACTED_RULES)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found


def _read(path: Path) -> Tensors:
    """The tensors of a file by their names there, without the prefix of data-parallel training. Raises NetworkError."""
    if not os.path.isfile(path):  # Path.is_file raises if the path is too long
        missing = f"does not exist; {did_you_mean_path(path) or 'check the path'}"
        folder = f"is a folder; one in the layout of the hub can be given whole, as --arch local-dir:{path}"
        raise NetworkError(f"the weights file {path} {folder if os.path.isdir(path) else missing}")
    if not os.access(path, os.R_OK):  # safetensors would say that it does not exist
        raise NetworkError(f"the weights file {path} may not be read; check its permissions")
    if path.suffix == ".json":
        raise NetworkError(f"{path} only describes weights; give the file that holds them, joined if they are several")
    with suppress(ArtifactError):  # not a packed model
        format.load_header(path)
        raise NetworkError(
            f"{path} is a packed model; `packnet extract {quoted(path)} --task NAME -o FILE.safetensors` writes the "
            "weights of one of its tasks, to start from"
        )
    torch.serialization.add_safe_globals([argparse.Namespace])  # timm stores its training settings as one; runs no code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was written
            found = load_state_dict(str(path), weights_only=True)
        alone = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        # "model_state_dict", "net", ...: beside it may stand a loss, and a state dict of a metric
        state: Tensors = max([alone, *filter(_is_state, found.values())], key=len)
        return {name: _usual(value) for name, value in clean_state_dict(state).items()}
    except Exception as error:
        raise NetworkError(
            f"cannot read weights from {path} ({type(error).__name__}: {reason(error)}). Expected: a state dict, as "
            "torch.save(model.state_dict(), ...) writes it, or a checkpoint with one in it"
        ) from None


def _usual(value: torch.Tensor) -> torch.Tensor:
    """A tensor of any layout and precision as a dense one in main memory, of float32 if it holds floats."""
    return value.to_dense().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, torch.Tensor) for each in value.values())


def _adapt_stems(found: Tensors, own: Tensors, stems: tuple[str, ...]) -> None:
    for name in (f"{stem}.weight" for stem in stems):
        if name in found and name in own and found[name].ndim == own[name].ndim == 4:
            if found[name].shape[1] == 3:  # of others it is not known which channel is which
                found[name] = adapt_input_conv(own[name].shape[1], found[name])


# --- names ----------------------------------------------------------------------------------------------------------


def _as_named(found: Tensors, model: nn.Module, arch: str, body: Tensors) -> Tensors:
    return dict(found)


def _without_prefix(found: Tensors, model: nn.Module, arch: str, body: Tensors) -> Tensors:
    """Without the prefix that a wrapper, such as a training framework's, has put before every name."""
    first = next(iter(body))
    prefix = next((name.removesuffix(first) for name in found if name.endswith(f".{first}")), "")
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def _by_timms_converter(found: Tensors, model: nn.Module, arch: str, body: Tensors) -> Tensors:
    """By timm's converter of weights from elsewhere, a function in the network's module; not every network has one."""
    namespace = vars(sys.modules[timm.models.model_entrypoint(arch).__module__])
    convert = namespace.get("checkpoint_filter_fn") or namespace.get("_filter_fn")
    if convert is None:
        return {}
    for arguments in ((dict(found), model), (dict(found),)):
        try:
            return dict(convert(*arguments))
        except Exception:  # not made for this file, or takes one argument
            continue
    return {}


def _without_prefix_by_timms_converter(found: Tensors, model: nn.Module, arch: str, body: Tensors) -> Tensors:
    """Both: a wrapper's weights for another image size, for example."""
    return _by_timms_converter(_without_prefix(found, model, arch, body), model, arch, body)


def _by_order(found: Tensors, model: nn.Module, arch: str, body: Tensors) -> Tensors:
    """The same tensors in the same order under other names: all shapes and the last parts of all names must agree."""
    there = [name for name in found if not name.endswith(COUNTER)]
    here = [name for name in body if not name.endswith(COUNTER)]
    renamed = {}
    for name, other in zip(here, there, strict=False):
        if found[other].shape != body[name].shape or other.rpartition(".")[2] != name.rpartition(".")[2]:
            return {}
        renamed[name] = found[other]
    return renamed | {other: found[other] for other in there[len(here) :]}


Renaming = Callable[[Tensors, nn.Module, str, Tensors], Tensors]
RENAMINGS: tuple[tuple[Renaming, str], ...] = (
    (_as_named, ""),
    (_without_prefix, "without the prefix of their names"),
    (_by_timms_converter, "with names and shapes converted by timm"),
    (_without_prefix_by_timms_converter, "without the prefix of their names, and converted by timm"),
    (_by_order, "by order and shape, as the names differ; what has no weights, such as padding, may differ too"),
)


def _remark(path: Path, count: int, remark: str, unused: list[str]) -> str:
    """The remark, on one line; empty if there is nothing to say."""
    taken = f"{count} tensors taken {remark}".rstrip() if remark else ""
    left = f"not used: {few(unused, 3)}" if unused else ""
    return f"{path}: {'; '.join(filter(None, (taken, left)))}" if taken or left else ""
