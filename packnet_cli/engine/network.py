"""timm networks: built for an artifact, their tensors classified, written from its arrays and read back.

Every tensor of a network's state dict has one class:

* HEAD: the classifier, new and dense for each task (PackNet, section 3).
* PACKED: the weights that are divided among tasks: matrices and convolution filters.
* PER_TASK: all else, so small that each task has its own: biases, normalisation weights and statistics, tokens,
  position tables and depthwise filters. A depthwise filter has few taps and only one input, so pruning it removes its
  channel; a copy for each task costs little and gains accuracy (examples/MEASURED.md).
"""

import enum
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_data_config, str_to_interp_mode
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from packnet_cli.artifact.format import Header, State, Task
from packnet_cli.artifact.header import is_of_head
from packnet_cli.engine import convolutions
from packnet_cli.errors import NetworkError, is_out_of_memory, reason

CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}  # input channels of a network -> the PIL mode of its images


class Kind(enum.Enum):
    HEAD = "head"
    PACKED = "packed"
    PER_TASK = "per-task"


def kinds_of(model: nn.Module, head: tuple[str, ...]) -> dict[str, Kind]:
    """The class of every tensor in the model's state dict; `head` holds the name prefixes of its classifier.

    A tensor that the network uses in several places has several names; it is kept under each if it is per task. Raises
    NetworkError, naming a tensor that fits none: another one used so, extra state, weights other than float32.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(map(id, parameters.values()))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    tables: set[str] = getattr(model, "no_weight_decay", set)()  # timm's list of tokens and position tables
    depthwise = {
        f"{name}.weight" for name, module in model.named_modules(remove_duplicate=False) if is_depthwise(module)
    }
    kinds = {}
    for name, value in model.state_dict().items():
        if name in parameters and value.dtype == torch.float32:
            if is_of_head(name, head):
                kinds[name] = Kind.HEAD
            elif value.numel() == max(value.shape, default=1) or name in tables or name in depthwise:
                kinds[name] = Kind.PER_TASK
            else:
                kinds[name] = Kind.PACKED
            if kinds[name] is not Kind.PER_TASK and uses[id(parameters[name])] > 1:
                raise _unfit(name, "used in two places")
        elif name in buffers:
            kinds[name] = Kind.PER_TASK
        else:
            raise _unfit(name, "neither a float32 parameter nor a buffer")
    for kind in (Kind.HEAD, Kind.PACKED):
        if kind not in kinds.values():
            raise NetworkError(f"cannot pack this network: it has no {kind.value} weights")
    return kinds


def _unfit(name: str, problem: str) -> NetworkError:
    return NetworkError(f"cannot pack this network: its {name} is {problem}; take another architecture")


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution in which each input channel has filters of its own."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1


# --- a network for an artifact --------------------------------------------------------------------------------------


def build(header: Header, num_classes: int) -> nn.Module:
    """A network of the artifact's architecture with a new head, its weights random under torch's seed."""
    model = create(header.arch, header.model_kwargs | {"num_classes": num_classes})
    for classifier in _classifiers(model, header):
        # Some of timm's initialisations are meant for training from scratch: heads so large drown pretrained weights.
        classifier.reset_parameters()
    return model


def _classifiers(model: nn.Module, header: Header) -> list[Any]:
    """The modules that make up the head. Raises NetworkError if the network has none of that name."""
    modules = dict(model.named_modules())
    for name in header.head:
        if not hasattr(modules.get(name), "reset_parameters"):
            raise NetworkError(f"{header.arch} has no classifier {name!r}, as the packed model says")
    return [modules[name] for name in header.head]


def check_fits(model: nn.Module, header: Header, tensors: Mapping[str, Any], num_classes: int) -> None:
    """Raise NetworkError unless `fits`: another version of timm may build another network."""
    if not fits(model, header, tensors, num_classes):
        raise NetworkError(
            f"timm {timm.__version__} builds another {header.arch} than the one packed here; "
            "try the version of timm that the file was made with"
        )


def fits(model: nn.Module, header: Header, tensors: Mapping[str, Any], num_classes: int) -> bool:
    """Whether the network, once its head has so many outputs, has these tensors, by name and shape, and no others."""
    there = model.state_dict()  # of a quantized network some values have no shape, under names of their own
    return there.keys() == tensors.keys() and all(
        tuple(tensors[name].shape)
        == ((num_classes, *value.shape[1:]) if is_of_head(name, header.head) else tuple(value.shape))
        for name, value in there.items()
    )


def build_blank(header: Header, num_classes: int) -> nn.Module:
    """A network of the artifact's architecture on the CPU, with uninitialised weights: write them all before use."""
    with torch.device("cpu"), _WithoutRandomNumbers():  # random initialisation would take most of the time
        return create(header.arch, header.model_kwargs | {"num_classes": num_classes})


class _WithoutRandomNumbers(TorchDispatchMode):
    """Skips filling parameters with random numbers.

    Other tensors are filled: torch redraws them until every number is within the bounds of a truncated normal.
    """

    DRAWN = frozenset((torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default))

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator in self.DRAWN and isinstance(args[0], nn.Parameter):
            return args[0]
        return operator(*args, **(kwargs or {}))


def describe(model: nn.Module, header: Header, task: Task) -> None:
    """Tell the network its task's class names and preprocessing, where timm's own functions look for them."""
    # The rest of timm's config (location of its weights, test sizes, a label offset) is not true of these weights.
    described: Any = model
    kept = ("architecture", "first_conv", "classifier", "fixed_input_size")
    known = {key: value for key, value in described.pretrained_cfg.items() if key in kept}
    own = {"num_classes": len(task.classes), "label_names": list(task.classes)}
    described.num_classes = len(task.classes)
    described.pretrained_cfg = described.default_cfg = known | header.data_config | own


def resize_head(model: nn.Module, header: Header, own: State) -> None:
    """Give each parameter of the head the shape that it has in `own`; its values are undefined."""
    for prefix, classifier in zip(header.head, _classifiers(model, header), strict=True):
        for name, parameter in list(classifier.named_parameters()):
            shape = own[f"{prefix}.{name}"].shape
            if parameter.shape != shape:
                resized = nn.Parameter(parameter.new_empty(shape), parameter.requires_grad)
                setattr(classifier, name, resized)
                setattr(classifier, "out_features" if hasattr(classifier, "out_features") else "out_channels", shape[0])


def write(model: nn.Module, state: State) -> None:
    """Set the tensors named in `state`; the model keeps the others."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    model.load_state_dict(tensors, strict=False)
    forget_computed(model)


def forget_computed(model: nn.Module) -> None:
    """Drop what a network has cached of its old weights, once new ones are set.

    LeViT, TinyViT and EfficientFormer cache their attention biases in eval mode, until they are put into train mode.
    """
    modes = [(module, module.training) for module in model.modules()]  # its user may have chosen one for each
    model.train()
    for module, mode in modes:
        module.training = mode


def read(model: nn.Module, names: set[str] | None = None, *, copy: bool = True) -> State:
    """The model's tensors by name, or only those in `names`.

    Without `copy`, arrays of tensors on the CPU share the model's memory, for a model that will not change.
    """
    array = np.array if copy else np.asarray
    return {
        name: array(value.detach().cpu().contiguous().numpy())
        for name, value in model.state_dict().items()
        if names is None or name in names
    }


def preprocessing(header: Header) -> dict[str, Any]:
    """timm's data config of an artifact, with timm's defaults for what the file leaves out.

    Raises NetworkError if no image can be prepared like that.
    """
    config: dict[str, Any] = resolve_data_config(header.data_config)
    channels = config["input_size"][0]
    try:
        str_to_interp_mode(config["interpolation"])
    except KeyError:
        raise NetworkError(f"the packed model's images are to be resized by {config['interpolation']!r}") from None
    if channels not in CHANNELS or not len(config["mean"]) == len(config["std"]) == channels:
        raise NetworkError(
            f"the packed model's images are to have {channels} channels, mean {config['mean']} and std {config['std']}"
        )
    return config


@torch.no_grad()
def try_out(model: nn.Module, data_config: dict[str, Any]) -> None:
    """Run the network on one image of its size, in eval mode; some create buffers only then.

    Raises NetworkError if that fails, or does not return a logit for each class.
    """
    size = tuple(data_config["input_size"])  # C, H, W
    device = next(model.parameters()).device
    model.eval()
    try:
        logits = model(torch.zeros(1, *size, device=device))
    except Exception as error:  # of any kind: timm's networks may fail in any way
        if is_out_of_memory(error):
            raise
        raise NetworkError(
            f"this network cannot process images of {' x '.join(map(str, size))} ({reason(error)}); "
            "try another --img-size or --model-kwargs"
        ) from None
    if getattr(logits, "shape", None) != (1, getattr(model, "num_classes", None)):  # a feature extractor has neither
        raise NetworkError(
            "cannot pack this network: it does not return a logit for each class of an image; check --model-kwargs"
        )


def constants(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the buffers outside the state dict: no file keeps them, so they must never change."""
    saved = model.state_dict().keys()
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name not in saved}


def check_constants(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Raise NetworkError if one of those buffers has changed: the file could then not reproduce the network."""
    for name, buffer in constants(model).items():
        if not torch.equal(buffer, before[name]):
            raise NetworkError(f"cannot pack this network: training changes {name}, which its state dict leaves out")


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to its device, channels last, in which convolutions are faster on CPU and GPU."""
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:  # Module.to(memory_format=...) refuses networks with a tensor of five dimensions
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        convolutions.replace(model)
    return model


def create(arch: str, arguments: dict[str, Any]) -> nn.Module:
    """A timm network with float32 weights. Raises NetworkError if timm cannot build it with these arguments."""
    try:
        model: nn.Module = timm.create_model(arch, **arguments)
        return model.float()
    except Exception as error:  # of any kind: networks may fail in any way on their arguments
        if is_out_of_memory(error):
            raise
        why = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
        raise NetworkError(f"timm cannot build {arch} with {arguments}: {why}") from None
