"""Where a packed model starts from: a timm network, its weights from the hub or a file, and its preprocessing."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.data import resolve_data_config, str_to_interp_mode
from timm.layers import to_2tuple
from torch import nn

from packnet_cli.artifact import format
from packnet_cli.artifact.format import Artifact, Header
from packnet_cli.artifact.rules import is_argument
from packnet_cli.engine import network
from packnet_cli.engine.network import CHANNELS, Kind, create
from packnet_cli.engine.pretrained import create_pretrained, look_up, source_of
from packnet_cli.engine.weights import count_outputs, load_weights, recorded_in
from packnet_cli.errors import NetworkError, UsageError
from packnet_cli.progress import Say, unsaid

SOME_CLASSES = 2  # of a head that is left out again: every task brings its own


@dataclass(frozen=True)
class Origin:
    """A network to pack tasks into, and all that is needed to build it again."""

    model: nn.Module
    header: Header
    classes: tuple[str, ...] = ()  # of its classifier, if the file of its weights or the hub names them

    @property
    def num_classes(self) -> int:
        """The outputs of its classifier."""
        count: Any = self.model.num_classes
        return int(count)


def start_from(
    arch: str,
    *,
    weights: Path | None,
    pretrained: bool,
    model_kwargs: dict[str, Any],
    data_config: dict[str, Any],
    keep_head: bool = False,
    fetch: bool = True,
    say: Say = unsaid,
) -> Origin:
    """A network with weights from the file `weights`, else pretrained ones from the hub, else random ones.

    With `keep_head` the classifier comes from there too. Without `fetch` those of the hub are replaced by random ones.
    `say` is told how the weights are fetched and fit.
    `data_config` overrides timm's, or what the file records if it is an extracted task of this architecture: img_size
    (pixels), in_chans, mean, std, crop_pct, interpolation.
    Raises NetworkError for an unknown architecture, weights that do not fit it, or a hub out of reach; UsageError.
    """
    _check_arguments(model_kwargs)
    wanted = {key: value for key, value in data_config.items() if value is not None}
    otherwise = "give a file with --weights FILE"
    if not keep_head:  # such a network cannot start from random weights
        otherwise += ", or start from random ones with --no-pretrained"
    architecture = look_up(arch, otherwise)
    name, cfg, implied = architecture.name, dict(architecture.cfg), dict(architecture.arguments)
    recorded = recorded_in(weights) if weights is not None else {}
    if recorded.get("arch") == name:  # else its preprocessing, too, may not suit this network
        say(f"image size, preprocessing and the network's arguments as {weights} records them, unless given")
        known = _data_config({}, cfg)
        cfg |= {key: value for key, value in recorded["data_config"].items() if key in known}
        implied |= recorded["model_kwargs"]
    arguments, preprocessing = _agreed(implied, model_kwargs, wanted, cfg)
    if keep_head and weights is None and not pretrained:
        raise UsageError("--prune keeps what a pretrained network can do, and random weights can do nothing")
    if keep_head and weights is None and architecture.is_encoder:
        raise UsageError(f"{arch} has no classifier of its own that --prune could keep; leave out --prune")
    source, built = "random", dict(arguments)
    fetched = pretrained and weights is None and fetch
    classes = SOME_CLASSES if architecture.is_encoder else cfg.get("num_classes")
    if classes is not None:
        built["num_classes"] = classes
    if weights is not None:
        if keep_head:
            built["num_classes"] = count_outputs(weights, architecture.head)
        model = create(name, built)
        head = () if keep_head else architecture.head
        if remark := load_weights(model, weights, name, head=head, stems=architecture.stems):
            say(remark)
        source = str(weights.resolve())
    else:
        if pretrained:
            source = source_of(architecture, otherwise)
        model = create_pretrained(architecture, built, otherwise, say) if fetched else create(name, built)
    network.try_out(model, preprocessing)
    header = Header(name, arguments, architecture.head, source, preprocessing)
    named = recorded.get("classes") if weights is not None else cfg.get("label_names")  # there, or on the hub
    if isinstance(named, dict):  # by the output's number
        named = [named.get(str(number)) for number in range(len(named))]
    origin = Origin(model, header, tuple(map(str, named or ())))
    if fetched:
        _check_rebuilt(arch, origin)
    return origin


def all_free(origin: Origin) -> Artifact:
    """A network's weights as an artifact without tasks."""
    kinds = network.kinds_of(origin.model, origin.header.head)
    state = network.read(origin.model, copy=False)
    shared = {tensor: state[tensor] for tensor, kind in kinds.items() if kind is Kind.PACKED}
    mask = {tensor: np.zeros(array.shape, np.uint8) for tensor, array in shared.items()}
    own = {tensor: state[tensor] for tensor, kind in kinds.items() if kind is Kind.PER_TASK}
    return format.make(origin.header, shared, mask, (own,))


def _agreed(
    implied: dict[str, Any], model_kwargs: dict[str, Any], wanted: dict[str, Any], cfg: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments to build a network by, and its preprocessing, of as many channels and pixels. Raises UsageError."""
    arguments = dict(implied)
    if (channels := wanted.get("in_chans")) not in (None, arguments.get("in_chans", 3)):
        arguments["in_chans"] = channels
    arguments |= model_kwargs
    if "img_size" in wanted and cfg.get("fixed_input_size"):
        arguments["img_size"] = wanted["img_size"]
    preprocessing = _data_config(wanted, cfg)
    channels, *size = preprocessing["input_size"]
    if "img_size" in model_kwargs and ("img_size" in wanted or list(to_2tuple(model_kwargs["img_size"])) != size):
        raise UsageError("give the image size by --img-size alone: it says it to the network too, if that has to know")
    if (taken := arguments.get("in_chans", channels)) != channels:
        raise UsageError(f"this network takes {taken} channels and its images have {channels}; give --in-chans {taken}")
    return arguments, preprocessing


def _check_rebuilt(arch: str, origin: Origin) -> None:
    """Raise NetworkError unless what the file will hold rebuilds this network without the hub's configuration."""
    header = origin.header
    rebuilt = network.build_blank(header, SOME_CLASSES)
    if not network.fits(rebuilt, header, origin.model.state_dict(), origin.num_classes):
        raise NetworkError(
            f"{arch}: these weights are of another {header.arch} than timm {timm.__version__} builds by that name; "
            "give what is different with --model-kwargs"
        )


def parse_model_kwargs(pairs: list[str]) -> dict[str, Any]:
    """`["pad_type=same", "drop_rate=0.5"]` as arguments; values are literals of Python or JSON, else strings."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not is_argument(key):
            raise UsageError(f"--model-kwargs {pair!r} is not KEY=VALUE with an argument that may be set here")
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            parsed[key] = {"true": True, "false": False, "null": None}.get(value.lower(), value)
        if parsed[key] is None:
            raise UsageError(f"--model-kwargs {pair!r}: null means timm's default; leave it out")
    return parsed


def _check_arguments(model_kwargs: dict[str, Any]) -> None:
    """Raise UsageError unless a file may set these arguments, and can hold them."""
    for key, value in model_kwargs.items():
        if not is_argument(key):
            raise UsageError(f"model_kwargs cannot set {key}, which packnet decides itself; leave it out")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--model-kwargs {key}={value} cannot be kept in a file: {error}") from None


def _data_config(wanted: dict[str, Any], cfg: dict[str, Any]) -> dict[str, Any]:
    """timm's preprocessing for a network, with what the user wants otherwise; input_size is C, H, W in pixels."""
    if unknown := wanted.keys() - {"img_size", "in_chans", "mean", "std", "crop_pct", "interpolation"}:
        raise UsageError(f"data_config cannot hold {', '.join(sorted(unknown))}; see packnet_cli.engine.pack.init")
    args = {key: wanted[key] for key in ("crop_pct", "interpolation") if key in wanted}
    resolved: dict[str, Any] = resolve_data_config(args, cfg)
    try:
        str_to_interp_mode(resolved["interpolation"])
    except KeyError:
        raise UsageError(
            f"the interpolation {resolved['interpolation']!r} is unknown; try --interpolation bilinear or bicubic"
        ) from None
    if not 0 < wanted.get("crop_pct", 1) <= 1:
        raise UsageError(f"--crop-pct must be a number above 0, up to 1, not {wanted['crop_pct']}")
    if wanted.get("img_size", 1) < 1:
        raise UsageError(f"--img-size must be at least 1, not {wanted['img_size']}")
    channels, height, width = resolved["input_size"]
    channels, size = wanted.get("in_chans", channels), wanted.get("img_size")
    if channels not in CHANNELS:
        raise UsageError(f"--in-chans must be one of {', '.join(map(str, CHANNELS))}, not {channels}")
    resolved["input_size"] = [channels, size or height, size or width]
    for key in ("mean", "std"):
        values = list(wanted.get(key, resolved[key]))
        if key in wanted and len(values) not in (1, channels):
            raise UsageError(f"--{key} takes one number, or one for each of {channels} channels, not {len(values)}")
        if key in wanted and not all((1e-30 if key == "std" else 0) <= value <= 1 for value in values):
            given = ",".join(f"{value:g}" for value in values)
            hint = f"{values[0]:g} of 255 is {values[0] / 255:.3g}" if 1 < values[0] <= 255 else "0.5 is usual"
            raise UsageError(f"pixels are numbers from 0 to 1, which --{key} {given} does not fit; {hint}")
        if len(values) != channels:
            values = [sum(values) / len(values)] * channels  # timm's are for other channels
        resolved[key] = values
    return resolved
