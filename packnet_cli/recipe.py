"""The settings of one task's training. Imports no torch, so that --help can show the defaults."""

from dataclasses import dataclass

from packnet_cli.errors import UsageError

CHOICES = {
    "sched": ("step", "cosine", "tanh", "poly", "none"),
    "restart": ("pretrained", "zero"),
    "norm": ("task", "frozen"),
}


@dataclass(frozen=True)
class Recipe:
    """Every setting that a task's accuracy depends on; the artifact records it. Epochs and rates are the paper's.

    Raises UsageError for a value that cannot be used.
    """

    epochs: int = 20
    retrain_epochs: int = 10
    lr: float = 1e-3
    retrain_lr: float = 1e-4
    batch_size: int = 32  # images
    opt: str = "momentum"  # timm's name for SGD with momentum (0.9) and without Nesterov's correction
    weight_decay: float = 0.0
    sched: str = "step"  # a tenth of the rate for the second half of each phase
    crop_scale: float = 0.08  # a training crop shows at least this part of the image, and up to all of it
    prune_steps: int = 6  # the paper prunes in one; gradually costs no more epochs and was no worse where measured
    restart: str = "pretrained"  # or "zero": the values that a task finds in the free weights
    norm: str = "task"  # or "frozen": whether tasks after the first train their own norm, biases, depthwise filters
    val_split: float = 0.2  # held out of each class where the data has no folder for it
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("epochs", 1), ("retrain_epochs", 0), ("batch_size", 1), ("prune_steps", 1)):
            if getattr(self, field) < least:
                raise UsageError(f"{_flag(field)} must be at least {least}, not {getattr(self, field)}")
        for field in ("lr", "retrain_lr", "weight_decay"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise UsageError(f"{_flag(field)} must be a number from 0 up, not {getattr(self, field)}")
        for field in ("val_split", "crop_scale"):
            if not 0 < getattr(self, field) < 1:
                raise UsageError(f"{_flag(field)} must lie between 0 and 1, not at {getattr(self, field)}")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise UsageError(f"{_flag(field)} must be one of {', '.join(choices)}, not {getattr(self, field)!r}")


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")
