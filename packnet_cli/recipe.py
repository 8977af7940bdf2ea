"""The settings of one task's training. Imports no torch, so that --help can show the defaults quickly."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from packnet_cli.errors import UsageError

CHOICES = {
    "sched": ("step", "cosine", "tanh", "poly", "none"),
    "anneal": ("once", "twice", "first"),
    "lr_scale": ("free", "none"),
    "rank": ("adaptive", "layer", "global"),
    "restart": ("pretrained", "zero"),
    "norm": ("task", "frozen"),
}


AUTO = "auto"  # on the command line: the batch size or prune fraction is searched for
FIRST_PHASE = ("epochs", "lr", "anneal", "restart")  # settings used only before weights are released
SPLIT_SETTINGS = ("seed", "val_split")  # settings that determine a task's held-out images
MAX_COUNT = 2**32  # exclusive; numpy's seeds have 32 bits
FEW_STEPS = 2000  # of training; the paper's datasets take from 1,280 (Flowers) to 5,100 (Cars)


class UsualRate(float):
    """A recipe's own rate, a third of it on networks such as VGG and ViT; one that the user gives stays as it is."""


class AtMost(int):
    """A batch size to be reduced until it fits the device's memory: what `--batch-size auto` asks for."""


def _setting(default: Any, help: str) -> Any:
    """A field of Recipe, with the --help text of its flag."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """Every setting that a task's accuracy depends on; the artifact records them. Epochs and rates are the paper's.

    Raises UsageError for a value that cannot be used.
    """

    epochs: int = _setting(20, "Epochs on all free weights.")
    retrain_epochs: int = _setting(10, "Epochs after the first release of weights.")
    lr: float = _setting(1e-3, "Learning rate.")
    retrain_lr: float = _setting(1e-4, "Learning rate after the first release of weights.")
    head_lr: float = _setting(1.0, "Learning rate of the head, as a multiple of the others'.")
    layer_decay: float = _setting(1.0, "Learning rate of each layer, as a multiple of the next one's, up to 1.")
    lr_scale: str = _setting(
        "free", "free: raise the rates for a task that trains few weights, up to tenfold (not on VGG); none: do not."
    )
    batch_size: int = _setting(32, "Images in a batch; auto: the recipe's, or fewer if memory is short.")
    opt: str = _setting("momentum", "timm optimizer: momentum (SGD with 0.9), adamw, ...")
    weight_decay: float = _setting(0.0, "Weight decay of matrices and filters; none of biases and norms.")
    sched: str = _setting("step", "timm schedule; step: a tenth of the rate in the second half; poly: linear.")
    anneal: str = _setting(
        "twice", "once: one schedule over training and retraining; twice: one for each; first: for training alone."
    )
    crop_scale: float = _setting(0.08, "Smallest part of an image that a training crop shows.")
    hflip: float = _setting(0.5, "How often a training image is mirrored, 0 to 1; 0 for digits, text or arrows.")
    vflip: float = _setting(0.0, "How often one is mirrored top to bottom; 0.5 for images without an up and down.")
    prune_steps: int = _setting(6, "Release weights in so many steps, one an epoch.")
    rank: str = _setting("layer", "Release alike in each layer, or where it hurts least: adaptive (LAMP), global.")
    keep_at_least: int = _setting(0, "Leave a task at least so many of its weights in each layer.")
    skip_layers: str = _setting("", "Do not prune the layers whose names match, as in 'blocks.0.*,conv_stem*'.")
    distill_weight: float = _setting(
        0.9,
        "Part of the retraining loss that asks for the unpruned network's answers, 0 to 1; without labels all of it.",
    )
    restart: str = _setting(
        "pretrained", "Start free weights at their dormant values, at first the pretrained ones, or at zero."
    )
    norm: str = _setting("task", "Norm and biases trained by each task, or frozen after the first.")
    val_split: float = _setting(0.2, "Part held out of each class where there is no val/ folder.")
    seed: int = _setting(0, "Seed of head, order, augmentation and the part held out.")

    @classmethod
    def recorded(cls, settings: dict[str, Any]) -> "Recipe":
        """The recipe recorded in an artifact, to train with again, less settings that this version lacks."""
        return cls(**{name: value for name, value in settings.items() if name in cls.__dataclass_fields__})

    def to_prune(self, trained: "Recipe") -> "Recipe":
        """These settings, to prune a task that was `trained` with others: its first phase and split are kept.

        If that phase alone had a schedule, retraining has one only if another is given.
        """
        kept = {name: getattr(trained, name) for name in (*FIRST_PHASE, *SPLIT_SETTINGS)}
        if trained.anneal == "first" and (self.anneal, self.sched) != (trained.anneal, trained.sched):
            kept["anneal"] = "twice"  # the same in the first phase
        return replace(self, **kept)

    def with_split_of(self, other: "Recipe") -> "Recipe":
        """These settings, except those that determine a task's held-out images, which are `other`'s."""
        return replace(self, **{name: getattr(other, name) for name in SPLIT_SETTINGS})

    def __post_init__(self) -> None:
        least = {"epochs": 1, "retrain_epochs": 0, "batch_size": 1, "prune_steps": 1, "keep_at_least": 0, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{flag(name)} must be at least {bound}, not {getattr(self, name)}")
            if getattr(self, name) >= MAX_COUNT:
                raise UsageError(f"{flag(name)} must be less than {MAX_COUNT}")
        # A rate times all its multiples still fits in a float32.
        for name, most in {"lr": 1e30, "retrain_lr": 1e30, "head_lr": 1e6, "weight_decay": 1e30}.items():
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{flag(name)} must be a number from 0 to {most:g}, not {getattr(self, name)}")
        for name in ("val_split", "crop_scale"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} must lie between 0 and 1, not at {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"--layer-decay must be a number above 0, up to 1, not {self.layer_decay}")
        for name in ("hflip", "vflip", "distill_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{flag(name)} must be a number from 0 to 1, not {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{flag(name)} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")


# At the paper's rates SGD does not get far in the few steps that a dataset of a thousand images gives. Like the
# paper's, this is without weight decay, so that AdamW takes the steps of Adam.
ADAMW = Recipe(
    opt="adamw",
    lr=UsualRate(1e-3),
    retrain_lr=UsualRate(1e-3),
    layer_decay=0.95,
    sched="cosine",
    anneal="once",
    crop_scale=0.35,
)

# The choices of --recipe; every other flag then changes one setting.
RECIPES = {
    "sgd": Recipe(),
    "adamw": ADAMW,
    "paper": Recipe(anneal="first", distill_weight=0.0, prune_steps=1, restart="zero", norm="frozen", lr_scale="none"),
}

SETTINGS = {setting.name: setting for setting in fields(Recipe)}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
