"""Recipes from flags, from a file, and by name: who wins, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import CPU, FLAGS

from packnet_cli.cli.settings import read_config, recipe_from, recipes_from
from packnet_cli.engine import pack
from packnet_cli.engine.data import splits
from packnet_cli.engine.fit import choose_recipe
from packnet_cli.errors import UsageError
from packnet_cli.recipe import RECIPES, SETTINGS, Recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    """What none of them says is the default, or for `prune` what the task was trained by."""
    config = write(tmp_path, 'lr = 1\nrank = "global"\nepochs = 3\n')
    recipe = recipe_from({"recipe": "paper", "config": config, "epochs": 7})
    assert recipe == dataclasses.replace(RECIPES["paper"], rank="global", lr=1.0, epochs=7)
    assert type(recipe.lr) is float
    assert recipe_from({"config": config}, Recipe(seed=5)) == Recipe(seed=5, lr=1.0, rank="global", epochs=3)


def test_every_setting_may_stand_there(tmp_path):
    """Under its own name; also behind the mark that Windows' editors put before UTF-8."""
    lines = "".join(f"{name} = {json.dumps(setting.default)}\n" for name, setting in SETTINGS.items())
    for text in (lines, f"\ufeff{lines}"):
        assert Recipe(**read_config(write(tmp_path, text))) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("retrain_epoch = 3", "no setting is called 'retrain_epoch'; did you mean retrain_epochs"),
        ("xyz = 3", "there are epochs, retrain_epochs, lr"),
        ("lr = 'fast'", "lr takes a number, not 'fast'"),
        ("epochs = 1.5", "epochs takes a whole number"),
        ("epochs = true", "epochs takes a whole number"),
        ("opt = 1", "opt takes a text"),
        ("[epochs]\nx = 1", "epochs takes a whole number"),
        ("epochs 3", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, message):
    """Each is one clear error."""
    with pytest.raises(UsageError, match=message):
        read_config(write(tmp_path, text))


def test_a_value_that_cannot_be_is_of_the_file_or_the_command_line(tmp_path):
    """And is told of as such."""
    config = write(tmp_path, "crop_scale = 3")
    with pytest.raises(UsageError, match="recipe.toml: --crop-scale must lie"):
        recipe_from({"config": config})
    with pytest.raises(UsageError, match="^--crop-scale must lie"):
        recipe_from({"config": write(tmp_path, "epochs = 2"), "crop_scale": 3.0})


def test_whole_numbers_have_an_end():
    """Of seeds numpy has so many, and no more; numbers of hundreds of digits nothing can count with."""
    assert Recipe(seed=2**32 - 1).seed == 2**32 - 1
    for name in ("seed", "epochs", "retrain_epochs", "batch_size", "prune_steps", "keep_at_least"):
        for many in (2**32, 10**400):
            with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be less than 4294967296"):
                Recipe(**{name: many})


def test_the_commands(tmp_path, packed, folders, packnet):
    """The recipe in effect is in the artifact, and info --task shows it."""
    add = ("add-task", packed, "--data", folders[0], *FLAGS[2:])
    for wrong in (tmp_path / "none.toml", tmp_path, write(tmp_path, "epochs = 0")):
        result = packnet(*add, "--config", wrong)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and result.stdout == ""
    config = write(tmp_path, "epochs = 1\nlr = 0.01\nseed = 3\n")
    assert packnet(*add, "--config", config, "--lr", 0.02).exit_code == 0
    told = json.loads(packnet("info", packed, "--task", "red", "--json").stdout)["task"]
    assert (told["recipe"]["lr"], told["recipe"]["seed"], told["recipe"]["epochs"]) == (0.02, 3, 1)
    assert told["classes"] == ["class0", "class1", "class2"] and told["data"] == str(folders[0])
    shown = packnet("info", packed, "--task", 1).stdout
    for words in ("red", "class0 to class2", "top-1 dense", told["digest"], str(folders[0]), "retrain_epochs"):
        assert words in shown
    assert packnet("info", packed, "--task", "blue").exit_code == 4
    assert packnet("info", packed, "--task", "red", "--layers").exit_code == 2


def test_init_says_what_it_does_not_use_of_a_file(tmp_path, packnet):
    """The same file may be for add-task, too, which trains before it prunes."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    config = write(tmp_path, "lr = 0.1\nepochs = 2\nretrain_epochs = 0\n")
    how = ("--arch", "test_resnet", "--weights", tmp_path / "w.pth", "--prune", 0.5, "--config", config)
    result = packnet("init", tmp_path / "packed.st", *how)
    assert result.exit_code == 0
    assert f"{config}: epochs, lr not used, as init --prune only retrains" in result.stderr


def test_there_is_a_choice_unless_recipe_or_optimizer_is_given(tmp_path):
    """All other settings change what they say alone, whichever recipe it will be, also where they are the default."""
    for given in ({}, {"lr": 0.001}, {"crop_scale": 0.5, "epochs": 3}, {"config": write(tmp_path, 'sched = "step"')}):
        changed = {"sched": "step"} if "config" in given else given
        assert recipes_from(given) == (Recipe(**changed), dataclasses.replace(RECIPES["adamw"], **changed))
    named = {"config": write(tmp_path, 'opt = "momentum"')}
    for given in ({"opt": "momentum"}, {"opt": "adamw", "lr": 0.1}, {"recipe": "sgd"}, {"recipe": "paper"}, named):
        recipe, few_steps = recipes_from(given)
        assert recipe == few_steps == recipe_from(given)


@pytest.mark.parametrize(
    ("arch", "epochs", "opt"),
    [
        ("test_resnet", 1, "adamw"),
        ("test_resnet", 2000, "momentum"),
        ("test_vit", 1, "adamw"),
        ("test_nfnet", 1, "momentum"),
    ],
)
def test_few_steps_on_a_network_with_norms_take_adamw(tmp_path, folders, arch, epochs, opt):
    """18 images make a step an epoch; what was chosen is said."""
    artifact, said = pack.init(tmp_path / "packed.st", arch, pretrained=False), []
    images = splits.open_training(folders[0], val_split=0.2, seed=0)
    recipes = Recipe(epochs=epochs), dataclasses.replace(RECIPES["adamw"], epochs=epochs)
    assert choose_recipe(artifact, images, *recipes, said.append).opt == opt
    taken, other = "adamw, lr 0.001, cosine schedule", "momentum, lr 0.001, step schedule"
    said_so = f"few steps (1): recipe adamw ({taken}), not sgd ({other})"
    assert said == [said_so][: opt == "adamw"]


@pytest.mark.parametrize("name", ["lr", "retrain_lr", "head_lr", "weight_decay"])
def test_a_rate_that_no_weight_can_hold(name):
    """It is refused, before float32 overflows half-way."""
    with pytest.raises(UsageError, match="must be a number from 0 to .*, not 1e.39"):
        Recipe(**{name: 1e39})


@pytest.mark.parametrize("decay", [0, -0.5, 1.01, float("nan")])
def test_a_decay_that_is_none(decay):
    """At 0 all layers but the head would stand still."""
    with pytest.raises(UsageError, match="--layer-decay must be a number above 0, up to 1, not"):
        Recipe(layer_decay=decay)


def test_the_chosen_optimizer_is_on_record(tmp_path, folders):
    pack.init(tmp_path / "packed.st", "test_resnet", pretrained=False)
    one_epoch = {"recipe": Recipe(epochs=1), "few_steps": dataclasses.replace(RECIPES["adamw"], epochs=1)}
    artifact = pack.add_task(tmp_path / "packed.st", folders[0], **one_epoch, machine=CPU)
    assert artifact.header.tasks[0].recipe["opt"] == "adamw"


def test_what_is_held_out_does_not_depend_on_which_recipe_is_taken(tmp_path, folders):
    """`eval` finds the images again by the recipe on record: none of them may have been trained on."""
    pack.init(tmp_path / "packed.st", "test_resnet", pretrained=False)
    recipes = {"recipe": Recipe(epochs=1, seed=2), "few_steps": Recipe(epochs=1, seed=1, val_split=0.5)}
    artifact = pack.add_task(tmp_path / "packed.st", folders[0], **recipes, machine=CPU)
    recorded = artifact.header.tasks[0].recipe
    assert (recorded["seed"], recorded["val_split"]) == (2, 0.2)
