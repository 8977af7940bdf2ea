"""What timm, the hub or a folder knows of an architecture: its configuration, and its pretrained weights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
from timm.models import load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import nn

from packnet_cli.artifact import rules
from packnet_cli.engine.modes import without_retry_log
from packnet_cli.engine.network import create
from packnet_cli.errors import NetworkError, did_you_mean, did_you_mean_path
from packnet_cli.progress import Say

LOCAL = "local-dir"
# What reads a network's configuration beside its weights, by timm's prefix of the place.
PLACES = {
    "hf-hub": load_model_config_from_hf,
    "hf_hub": load_model_config_from_hf,  # as older code spells it
    LOCAL: load_model_config_from_path,
}


@dataclass(frozen=True)
class Architecture:
    """An architecture as the user has `asked` for it: timm's name, its configuration, and the arguments it adds."""

    asked: str
    name: str
    cfg: dict[str, Any]
    arguments: dict[str, Any]

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the classifier's modules."""
        return declared(self.cfg, "classifier")

    @property
    def stems(self) -> tuple[str, ...]:
        """The names of the first convolutions."""
        return declared(self.cfg, "first_conv")

    @property
    def is_encoder(self) -> bool:
        """Whether its weights are without a classifier, as DINOv2's; timm adds one if asked to."""
        return self.cfg.get("num_classes") == 0


def look_up(asked: str, otherwise: str) -> Architecture:
    """The architecture of this name, or at this place (see PLACES).

    `otherwise` is how an error says to do without. Raises NetworkError.
    """
    prefix, _, place = asked.partition(":")
    if prefix in PLACES and place:
        place = os.path.expanduser(place) if prefix == LOCAL else place  # after a colon no shell does so
        return _look_there(f"{prefix}:{place}", prefix, place, otherwise)
    name = asked.partition(".")[0]
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), 0.5) or "timm.list_models() lists those it has"
        if os.path.isdir(asked):  # Path.is_dir raises if a path is too long
            hint = f"a folder in the layout of the hub is {LOCAL}:{asked}"
        elif "/" in asked:
            hint = f"one on the hub is hf-hub:{asked}" if ":" not in asked else "name it alone, with --weights FILE"
        raise NetworkError(f"timm knows no architecture {asked!r}; {hint}")
    try:
        found = timm.get_pretrained_cfg(asked)
    except RuntimeError:
        hint = did_you_mean(asked, timm.list_models(f"{name}.*", pretrained=True), 0) or f"it has none for {name}"
        raise NetworkError(f"timm knows no weights {asked!r}; {hint}") from None
    cfg = found.to_dict() if found is not None else {}
    return Architecture(asked, name, cfg, _implied(name, cfg))


def _look_there(asked: str, prefix: str, place: str, otherwise: str) -> Architecture:
    """The architecture at a place. Its configuration is read now: building the network again must not need that."""
    if prefix == LOCAL and not os.path.exists(place) and (meant := did_you_mean_path(Path(place))):
        raise NetworkError(f"the folder {place} does not exist; {meant}")
    with _loading(f"the configuration of {asked}", f"name timm's architecture, and {otherwise}"):
        cfg, architecture, arguments = PLACES[prefix](place)
        cfg = {key: list(value) if isinstance(value, tuple) else value for key, value in cfg.items()}
        used = {key: value for key, value in cfg.items() if value is not None and key in rules.OF_NETWORK}
        rules.check("it", used | {"architecture": architecture}, {}, optional=rules.OF_NETWORK)
    name = architecture.partition(".")[0]
    if not timm.is_model(name):
        raise NetworkError(f"{asked} is a {name}, which timm {timm.__version__} does not know; a newer one may")
    # Of these some, as the number of classes, are not for a file: they are the configuration's and the tasks'.
    kept = {key: value for key, value in (arguments or {}).items() if value is not None and rules.is_argument(key)}
    return Architecture(asked, name, cfg, _implied(name, cfg) | kept)


def _implied(name: str, cfg: dict[str, Any]) -> dict[str, Any]:
    """The arguments that timm takes from a configuration, where that of the bare architecture says otherwise."""

    def arguments(of: dict[str, Any]) -> dict[str, Any]:
        channels, *size = of.get("input_size") or (None, None)
        return {"in_chans": channels, "img_size": size if of.get("fixed_input_size") else None}

    bare = timm.get_pretrained_cfg(name)
    usual = arguments(bare.to_dict() if bare is not None else {})
    return {key: value for key, value in arguments(cfg).items() if value is not None and value != usual[key]}


def source_of(architecture: Architecture, otherwise: str) -> str:
    """Where its pretrained weights are. Raises NetworkError if there are none."""
    cfg, asked = architecture.cfg, architecture.asked
    if cfg.get("source") == LOCAL:
        return str(Path(cfg["file"]).resolve())
    source = cfg.get("hf_hub_id") or cfg.get("url") or cfg.get("file")
    if not source and ":" not in asked:
        raise NetworkError(f"timm has no pretrained weights for {asked}; {otherwise}")
    return str(source or asked)


def create_pretrained(architecture: Architecture, arguments: dict[str, Any], otherwise: str, say: Say) -> nn.Module:
    """The network with its pretrained weights, in float32. Raises NetworkError."""
    asked = architecture.asked
    if not asked.startswith(LOCAL):
        say(f"fetching the pretrained weights of {asked}, if not cached (a minute, if the hub is out of reach) ...")
    with _loading(f"the pretrained weights of {asked}", otherwise):
        try:
            if architecture.is_encoder:  # with a classifier added, timm leaves random what the weights lack
                timm.create_model(asked, pretrained=True, num_classes=0)
            model: nn.Module = timm.create_model(asked, pretrained=True, **arguments)
        except OSError:  # of the network or the disk
            raise
        except Exception:
            create(architecture.name, arguments)  # which says so if it is the arguments
            raise
        if lost := next((name for name, value in model.state_dict().items() if value.isnan().any()), None):
            raise NetworkError(f"{asked} cannot be used: some numbers of {lost} are NaN; {otherwise}")
        return model.float()


def declared(cfg: dict[str, Any], what: str) -> tuple[str, ...]:
    """The names of the modules that timm's configuration declares to be `what`; some networks have several."""
    names = cfg.get(what) or ()
    return (names,) if isinstance(names, str) else tuple(names)


@contextmanager
def _loading(what: str, otherwise: str) -> Iterator[None]:
    """Whatever goes wrong between here and the hub becomes one NetworkError, which says how to do without."""
    try:
        with without_retry_log():
            yield
    except NetworkError:
        raise
    except Exception as error:
        why = shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")  # their first lines may say nothing
        raise NetworkError(f"cannot load {what} ({why}); {otherwise}") from None
