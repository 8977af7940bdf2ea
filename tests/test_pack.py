"""What the verbs do beyond the promise: the pretrained network as a task, prune, a head alone, the search."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import CPU, QUICK, make_folder, noting
from PIL import Image

from packnet_cli.artifact import atomic, edit, format, masks, plan, ship, verify
from packnet_cli.engine import pack, result
from packnet_cli.engine.claim import claim_free
from packnet_cli.engine.data import feed, splits
from packnet_cli.engine.training import train
from packnet_cli.engine.training.rates import lr_scale
from packnet_cli.engine.using import auto, evaluate, predict
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import CapacityError, ConflictError, DataError, NetworkError, TaskError, UsageError
from packnet_cli.progress import Accuracy, Step
from packnet_cli.recipe import RECIPES

RUN = dict(recipe=QUICK, machine=CPU)
SMALL = dict(data_config={"img_size": 32})


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A network with a classifier of its own for four classes, in a file."""
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp("weights") / "four.pt"
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), file)
    return file


# --- the pretrained network as task 1 -------------------------------------------------------------------------------


def test_base_keeps_its_own_classifier(tmp_path, folders, weights):
    """Unpruned it answers as timm does with these weights; then half of each layer is released, the rest retrained."""
    path = tmp_path / "packed.st"
    artifact = pack.init(path, "test_resnet", weights=weights, prune=0.5, data=folders[2], **SMALL, **RUN)
    task = artifact.header.task(1)
    assert (task.name, task.prune, len(task.classes)) == ("blue", 0.5, 4)
    assert list(task.accuracy) == ["dense", "pruned", "retrained"]
    for mask in artifact.mask.values():
        assert masks.count_owned(mask, masks.FREE) == round(mask.size / 2)
    plain = timm.create_model("test_resnet", num_classes=4, checkpoint_path=str(weights)).eval()
    alone = pack.init(tmp_path / "b.st", "test_resnet", weights=weights, prune=0, **SMALL, **RUN)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(Packed(alone).model(1)(images), plain(images))


def test_base_without_images(tmp_path, weights):
    """Released in one shot; what it keeps is as it was, and nothing is said of its accuracy."""
    artifact = pack.init(tmp_path / "packed.st", "test_resnet", weights=weights, prune=0.5, **SMALL, **RUN)
    [task] = artifact.header.tasks
    assert (task.name, task.classes, task.top1, task.images, task.data) == ("pretrained", tuple("0123"), None, 0, "")
    given = torch.load(weights, weights_only=True)
    for name, array in artifact.state(1).items():
        kept = artifact.mask[name] == 1 if name in artifact.mask else np.ones(array.shape, bool)
        np.testing.assert_array_equal(array[kept], given[name].numpy()[kept])
        assert not array[~kept].any()
    with pytest.raises(DataError, match="no images on record; say where they are with --data"):
        evaluate.evaluate_tasks(tmp_path / "packed.st", "1")
    [result] = evaluate.evaluate_tasks(tmp_path / "packed.st", "all")
    assert result.accuracy is None


def test_base_by_distilling(tmp_path, folders, weights, monkeypatch):
    """Any images will do: the unpruned network says what to answer, and no label is looked at, nor counted as right."""
    labels_seen, accuracies = [], []
    loss = train.Teacher.loss

    def spy(teacher, images, labels, logits):
        labels_seen.extend(labels.tolist())
        return loss(teacher, images, labels, logits)

    monkeypatch.setattr(train.Teacher, "loss", spy)
    artifact = pack.init(
        tmp_path / "packed.st",
        "test_resnet",
        weights=weights,
        prune=0.5,
        distill=folders[0],
        progress=lambda task, phase, at: accuracies.append(at.accuracy),
        **SMALL,
        **RUN,
    )
    assert len(set(labels_seen)) == 1 and set(accuracies) == {None}
    assert artifact.header.task(1).top1 is None
    untouched = pack.init(tmp_path / "b.st", "test_resnet", weights=weights, prune=0.5, **SMALL, **RUN)
    assert artifact.header.task(1).digest != untouched.header.task(1).digest
    held_out = tmp_path / "held-out"  # images to measure on alone
    shutil.copytree(folders[2] / "val", held_out / "val")
    measured = pack.init(
        tmp_path / "c.st",
        "test_resnet",
        weights=weights,
        prune=0.5,
        distill=folders[0],
        data=held_out,
        **SMALL,
        **RUN,
    )
    assert measured.header.task(1).images == 12
    for name, array in artifact.own[0].items():  # norms and biases stay as they are known to be right
        assert artifact.own[1][name].tobytes() == array.tobytes()


def test_what_is_measured_on_is_not_distilled_on(tmp_path, folders, weights, monkeypatch):
    """Where one folder serves for both, by a link, too, or by links to its images, of other names."""
    seen = []
    batches = feed.batches

    def spy(split, *how, augmentation=None, **more):
        seen.append({os.path.realpath(path) for path in split.paths})
        return batches(split, *how, augmentation=augmentation, **more)

    monkeypatch.setattr(feed, "batches", spy)
    (tmp_path / "link").symlink_to(folders[2])
    how = dict(weights=weights, prune=0.5, data=folders[2], **SMALL, **RUN)
    pack.init(tmp_path / "packed.st", "test_resnet", distill=tmp_path / "link", **how)
    trained, measured = seen
    assert (len(trained), len(measured)) == (24, 12) and not trained & measured
    (tmp_path / "pool").mkdir()
    for number, image in enumerate(sorted(folders[2].rglob("*.png"))):
        (tmp_path / "pool" / f"link{number}.png").symlink_to(image)
    pack.init(tmp_path / "pooled.st", "test_resnet", distill=tmp_path / "pool", **how)
    assert seen[2:] == [trained, measured]
    with pytest.raises(DataError, match="holds the held-out images of .* and no others"):
        pack.init(tmp_path / "more.st", "test_resnet", distill=folders[2] / "val", **how)


def test_base_classes(tmp_path, folders, weights):
    """By a file, else by sorted folders if there are as many as outputs; else it says how to list them.

    Also where timm sorts otherwise: 2 before 10, and a before B.
    """
    names = tmp_path / "names.txt"
    names.write_text("class3\nclass2\nclass1\nclass0\n\n \n", encoding="utf-8-sig")  # as some editors leave it
    how = dict(weights=weights, prune=0.5, **SMALL, **RUN)
    artifact = pack.init(tmp_path / "a.st", "test_resnet", data=folders[0], class_names=names, **how)
    assert artifact.header.task(1).classes == ("class3", "class2", "class1", "class0")
    with pytest.raises(DataError, match="3 class folders and the classifier 4 outputs.*--class-names"):
        pack.init(tmp_path / "b.st", "test_resnet", data=folders[0], **how)
    for name, doubt in (("class10", "'class2' before 'class10'"), ("Dog", "'class0' before 'Dog'")):
        shutil.copytree(folders[2], tmp_path / name)
        for part in ("train", "val"):
            (tmp_path / name / part / "class1").rename(tmp_path / name / part / name)
        with pytest.raises(DataError, match=f"in doubt: timm sorts {doubt}, .*--class-names"):
            pack.init(tmp_path / "b.st", "test_resnet", data=tmp_path / name, **how)
    names.write_text("one\ntwo\n")
    with pytest.raises(DataError, match="lists 2 different names; the classifier has 4 outputs"):
        pack.init(tmp_path / "b.st", "test_resnet", class_names=names, **how)
    names.write_text("one\ntwo\n\nfour\n")
    with pytest.raises(DataError, match="line 3: no name"):
        pack.init(tmp_path / "b.st", "test_resnet", class_names=names, **how)
    assert not (tmp_path / "b.st").exists()


def test_imagenet_classes_are_wnids(tmp_path):
    """A part of the 1000 classes is enough, each under its own output."""
    file = tmp_path / "imagenet.pt"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    folder = make_folder(tmp_path / "images")
    for part in ("train", "val"):
        for number, wnid in enumerate(("n01440764", "n02102040", "n03888257")):
            (folder / part / f"class{number}").rename(folder / part / wnid)
    artifact = pack.init(tmp_path / "a.st", "test_resnet", weights=file, prune=0.5, data=folder, **SMALL, **RUN)
    [task] = artifact.header.tasks
    assert task.name == "imagenet" and len(task.classes) == 1000
    assert [task.classes.index(wnid) for wnid in ("n01440764", "n02102040", "n03888257")] == [0, 217, 701]
    [result] = evaluate.evaluate_tasks(tmp_path / "a.st", device="cpu", workers=0)
    assert result.accuracy.images == 9 and len(result.missing) == 997


def test_base_needs_something_pretrained(tmp_path, weights):
    """Random weights, or a file without a classifier, hold no task to keep."""
    with pytest.raises(UsageError, match="random weights"):
        pack.init(tmp_path / "a.st", "test_resnet", pretrained=False, prune=0.5, **RUN)
    state = torch.load(weights, weights_only=True)
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "body.pt")
    with pytest.raises(NetworkError, match="has no classifier to keep"):
        pack.init(tmp_path / "a.st", "test_resnet", weights=tmp_path / "body.pt", prune=0.5, **RUN)


@pytest.mark.parametrize("force", [False, True])
def test_init_leaves_alone_what_comes_to_its_place_meanwhile(full, tmp_path, folders, weights, monkeypatch, force):
    """Another program may put a packed model there, or change the one that was to be replaced."""
    path, other, start_from = tmp_path / "packed.st", full.read_bytes(), pack.start_from
    if force:
        path.write_bytes(other)

    def slowly(*args, **more):
        path.write_bytes(other)
        return start_from(*args, **more)

    monkeypatch.setattr(pack, "start_from", slowly)
    for how in ({}, dict(prune=0.5, data=folders[2])):
        with pytest.raises(ConflictError, match="changed by another program"):
            pack.init(path, "test_resnet", weights=weights, force=force, **how, **SMALL, **RUN)
        assert path.read_bytes() == other
        if not force:
            path.unlink()


def test_the_first_task_starts_from_the_pretrained_values(packed, folders):
    """Restarting at zero is for what an earlier task released: the first task has the whole network to start from."""
    start = format.load(packed)
    after = pack.add_task(packed, folders[0], **(RUN | {"recipe": dataclasses.replace(QUICK, lr=0.0, restart="zero")}))
    for layer, array in after.shared.items():
        assert array.tobytes() == start.shared[layer].tobytes()


def test_what_is_left_out_is_said(packed, tmp_path):
    """Files of other names in a class folder, links to folders, which are not followed, and images beside it."""
    folder, said = make_folder(tmp_path / "set"), []
    inside = folder / "train" / "class0"
    pack.add_task(packed, folder, name="clean", prune=0.5, recipe=QUICK, machine=CPU, say=noting(said))
    assert said == [f"clean: 3 classes, 18 images to train on, 9 held out ({folder / 'val'})"]
    with Image.open(inside / "0.png") as image:
        image.save(inside / "0.gif")
    (inside / "notes.heic").write_text("x")
    (inside / ".hidden").write_text("x")
    (inside / "more").symlink_to(folder / "val")
    task = pack.add_task(packed, folder, recipe=QUICK, machine=CPU, say=noting(said)).header.tasks[-1]
    [line] = [line for line in said if line.startswith("skipped (a link, no image file extension, or in no ")]
    assert str(inside) in line and line.endswith(" and 1 more")
    assert task.skipped == 0 and len(splits.open_training(folder, val_split=0.2, seed=0).train.paths) == 19
    pack.prune_task(packed, task.name, prune=0.5, recipe=QUICK, machine=CPU, say=noting(said))
    assert said.count(line) == 2
    (inside / "0.png").rename(folder / "train" / "0.png")
    pack.prune_task(packed, task.name, prune=0.5, recipe=QUICK, machine=CPU, say=noting(said))
    assert f"in no class folder): {folder / 'train' / '0.png'} and 2 more" in "".join(said)


def test_what_is_on_record_of_a_task(full, folders):
    """Is what a later evaluation finds."""
    for found, folder in zip(evaluate.evaluate_tasks(full, device="cpu", workers=0), folders, strict=True):
        task = found.task
        assert Accuracy(task.top1, task.top5, task.images) == found.accuracy
        assert [*task.accuracy.values()][-1] == task.top1 and not task.skipped and not task.search
        held_out = splits.open_training(folder, val_split=0.2, seed=0).held_out
        assert (task.data, task.held_out) == (str(folder), held_out.digest)
        assert task.recipe == dataclasses.asdict(QUICK) | {"amp": False}


def test_how_it_was_trained_is_on_record(packed, folders, monkeypatch):
    """In bfloat16, and where the images are, from wherever that is asked."""
    monkeypatch.chdir(folders[0].parent)
    machine, data = dataclasses.replace(CPU, amp=True), folders[0].relative_to(folders[0].parent)
    task = pack.add_task(packed, data, recipe=QUICK, machine=machine).header.task(1)
    assert task.recipe["amp"] and task.data == str(folders[0])


def test_the_first_process_alone_writes_what_all_have(full, tmp_path, monkeypatch):
    compared, artifact = [], format.load(full)
    monkeypatch.setattr(result, "check_equal", compared.append)
    for rank in (1, 0):
        monkeypatch.setattr(result, "rank", lambda rank=rank: rank)
        result.save(artifact, tmp_path / "new.st", atomic.stamp(tmp_path / "new.st"))
        assert (tmp_path / "new.st").exists() == (rank == 0)
    assert compared == 2 * ["".join(task.digest for task in artifact.header.tasks)]


def test_that_a_task_will_own_little_is_said_before_it_is_trained(tmp_path, packed, folders, weights):
    """Of a kept base, too; not of a fraction that is yet to be searched for, and not where enough is left."""
    thin = " % of the weights, and can learn little more than its head"
    for prune, hint in ((0.99, "; a smaller --prune leaves it more"), (0.5, None)):
        said = []
        pack.init(
            tmp_path / f"{prune}.st", "test_resnet", weights=weights, prune=prune, say=noting(said), **SMALL, **RUN
        )
        assert [line for line in said if thin in line] == ([f"pretrained will own 1{thin}{hint}"] if hint else [])
    said = []
    pack.add_task(packed, folders[0], name="one", prune=0.99, say=noting(said), **RUN)
    before = [line for line in said if thin in line]
    pack.add_task(packed, folders[0], name="two", head_only=True, say=noting(said), **RUN)
    assert before == [f"one will own 1{thin}; a smaller --prune leaves it more"] == [x for x in said if thin in x]


def test_that_the_first_task_keeps_everything_is_said(packed, folders):
    """Of the first alone: that the last of several is not pruned is as it should be."""
    said: list[str] = []
    how = {"recipe": QUICK, "machine": CPU, "say": noting(said)}
    pack.add_task(packed, folders[0], prune=0.5, **how)
    pack.add_task(packed, folders[1], **how)
    assert len(said) == 2 and "without" not in "".join(said)
    other = packed.with_name("other.st")
    pack.init(other, "test_resnet", pretrained=False, data_config={"img_size": 32})
    pack.add_task(other, folders[0], **how)
    assert said[3:] == ["the first task keeps all weights, and leaves none to another: --prune would release some"]


# --- prune ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", ["pretrained", "zero"])
def test_prune_the_newest(packed, folders, restart):
    """It releases exactly that part of what it owns, with the values it had; earlier tasks keep every bit."""
    recipe = dataclasses.replace(QUICK, restart=restart)
    pack.add_task(packed, folders[0], prune=0.5, **(RUN | {"recipe": recipe}))
    before = pack.add_task(packed, folders[1], **(RUN | {"recipe": recipe}))
    after = pack.prune_task(packed, "green", prune=0.75, machine=CPU)
    assert format.digest(after.state(1)) == before.header.task(1).digest
    assert not verify.altered_tasks(after)
    assert [task.name for task in after.header.tasks] == ["red", "green"]
    assert after.header.task(2).prune == 0.75 and list(after.header.task(2).accuracy) == [
        "dense",
        "pruned",
        "retrained",
    ]
    for layer, mask in after.mask.items():
        owned = masks.count_owned(before.mask[layer], 2)
        assert masks.count_owned(mask, masks.FREE) == round(0.75 * owned)
        freed = mask == masks.FREE
        assert after.shared[layer][freed].tobytes() == before.shared[layer][freed].tobytes()
    again = pack.add_task(packed, folders[2], **RUN)
    assert not verify.altered_tasks(again) and again.free_count() == 0


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_what_is_pruned_in_steps_is_measured_after_the_last(packed, folders, steps):
    """One at the start of each epoch, and all of it by the last epoch, which is the second; measured once."""
    recipe, phases = dataclasses.replace(QUICK, prune_steps=steps), []

    def progress(task, phase, at):
        phases.extend([phase] * (isinstance(at, Accuracy) or phase not in phases[-1:]))

    after = pack.add_task(packed, folders[0], prune=0.5, recipe=recipe, machine=CPU, progress=progress)
    assert phases == ["train", "dense", *["retrain"] * (steps > 1), "pruned", "retrain", "retrained"]
    assert after.free_counts() == {layer: round(mask.size / 2) for layer, mask in after.mask.items()}


def test_a_class_with_one_image_is_named(packed, tmp_path):
    """Before training: nothing of it is held out."""
    folder, said = make_folder(tmp_path / "some"), []
    shutil.rmtree(folder / "val")
    for number in range(1, 6):
        (folder / "train" / "class1" / f"{number}.png").unlink()
    pack.add_task(packed, folder, recipe=QUICK, machine=CPU, say=noting(said))
    assert said[:1] == ["some: 3 classes, 11 images to train on, 2 held out at random"]
    assert said[1] == "1 of 3 classes have no image to hold out, 'class1' among them: trained on, not measured"


def test_prune_again_and_again(packed, folders):
    """Fractions that come to all but nothing are still less than 1."""
    recipe = dataclasses.replace(QUICK, retrain_epochs=0)
    pack.add_task(packed, folders[0], prune=0.5, recipe=recipe, machine=CPU)
    for kept in (128, 64, 32, 16, 8, 4):
        recipe = dataclasses.replace(recipe, keep_at_least=kept)
        pack.prune_task(packed, "red", prune=0.999, recipe=recipe, machine=CPU)
    assert format.load(packed).header.task(1).prune < 1


def test_prune_by_distilling_keeps_what_the_task_remembers(packed, folders, tmp_path):
    """It is still measured on its own images, if they are still there."""
    pack.add_task(packed, folders[0], **RUN)
    task = pack.prune_task(packed, "red", prune=0.5, distill=folders[1], machine=CPU).header.task(1)
    assert task.data == str(folders[0]) and task.images == 9 and task.top1 is not None
    said = []
    away = folders[0].rename(tmp_path / "away")
    try:
        pack.prune_task(packed, "red", prune=0.5, distill=folders[1], machine=CPU, say=noting(said))
    finally:
        away.rename(folders[0])
    assert format.load(packed).header.task(1).top1 is None and "are no longer at" in said[0]


def test_prune_by_distilling_where_nothing_is_held_out(packed, folders, tmp_path):
    """Of one image in each class, which was added unmeasured, too."""
    pack.add_task(packed, make_folder(tmp_path / "lone", train=1, val=0) / "train", **RUN)
    task = pack.prune_task(packed, "train", prune=0.5, distill=folders[1], machine=CPU).header.task(1)
    assert task.top1 is None and task.data == str(tmp_path / "lone" / "train")


@pytest.mark.parametrize("first", [{}, {"distill": 1}])
def test_prune_on_labels_what_was_kept_without(tmp_path, folders, weights, first):
    """That a network was not retrained, or by its teacher alone, holds for the images that there were."""
    path, names = tmp_path / "packed.st", tmp_path / "names.txt"
    names.write_text("class0\nclass1\nclass2\nclass3\n")
    first = {name: folders[number] for name, number in first.items()}
    pack.init(path, "test_resnet", weights=weights, class_names=names, prune=0.5, **first, **SMALL, **RUN)
    phases = []
    task = pack.prune_task(
        path, "1", prune=0.5, data=folders[2], machine=CPU, progress=lambda task, phase, at: phases.append(phase)
    ).header.task(1)
    assert "retrain" in phases and task.recipe["distill_weight"] < 1


def test_prune_by_the_recipe_that_the_task_was_added_by(packed, folders):
    """Also where that was not to retrain at all, or by a teacher alone."""
    recipe = dataclasses.replace(QUICK, retrain_epochs=0, distill_weight=1.0)
    pack.add_task(packed, folders[0], recipe=recipe, machine=CPU)
    phases = []
    after = pack.prune_task(
        packed, "red", prune=0.5, machine=CPU, progress=lambda task, phase, at: phases.append(phase)
    )
    assert phases == ["pruned"] and after.header.task(1).recipe == dataclasses.asdict(recipe) | {"amp": False}


def test_prune_measures_on_what_the_task_never_saw(packed, folders):
    """Whatever seed and part are given: these, and what its training alone followed from, stay those on record."""
    first = dataclasses.replace(QUICK, retrain_epochs=0)
    before = pack.add_task(packed, folders[0] / "train", recipe=first, machine=CPU)
    given = dict(seed=1, val_split=0.5, epochs=9, lr=1.0, restart="zero", anneal="once", opt="adamw", retrain_lr=0.5)
    recipe, said = dataclasses.replace(first, **given), []
    after = pack.prune_task(packed, "train", prune=0.0, recipe=recipe, machine=CPU, say=noting(said))
    assert said == ["epochs, lr, anneal, restart, seed, val_split: kept as they were when task 1 (train) was added"]
    assert after.header.tasks[0].accuracy["dense"] == after.header.tasks[0].top1 == before.header.tasks[0].top1
    assert after.header.tasks[0].images == before.header.tasks[0].images
    changed = dataclasses.replace(first, opt="adamw", retrain_lr=0.5)
    assert after.header.tasks[0].recipe == dataclasses.asdict(changed) | {"amp": False}


def test_prune_compares_accuracies_of_the_same_images(packed, folders, tmp_path):
    """On others the task is measured anew before it is pruned; that it may have been trained on some is said."""
    folder, said = make_folder(tmp_path / "some") / "train", []
    recipe = dataclasses.replace(QUICK, retrain_epochs=0)
    images = pack.add_task(packed, folder, recipe=recipe, machine=CPU).header.task(1).images
    for image in list(folder.rglob("*.png")):
        shutil.copy(image, image.with_name(f"more-{image.name}"))
    for data, count, warned in ((None, 2 * images, True), (folders[0], 9, False)):
        said.clear()
        phases = []
        pack.prune_task(
            packed,
            "train",
            prune=0.1,
            data=data,
            machine=CPU,
            progress=lambda task, phase, at: phases.append(phase),  # noqa: B023
            say=lambda line, warning=False: said.append(line) if warning else None,
        )
        assert phases == ["dense", "pruned"] and format.load_header(packed).task(1).images == count
        assert any("it may have been trained on some" in line for line in said) == warned


def test_prune_keeps_norms_frozen_when_the_first_task_is_gone(packed, folders):
    """The removed task's weights, and so its norms, are still what the others compute with."""
    recipe = dataclasses.replace(QUICK, norm="frozen")
    for folder in folders[:2]:
        pack.add_task(packed, folder, prune=0.5, recipe=recipe, machine=CPU)
    edit.remove_task(packed, 1)
    before = format.load(packed).own[2]
    after = pack.prune_task(packed, "green", prune=0.5, machine=CPU).own[2]
    assert all(after[name].tobytes() == before[name].tobytes() for name in before if not name.startswith("fc."))


def test_prune_starts_from_what_the_task_is(packed, folders):
    """With nothing to release and no epochs, nothing changes at all."""
    before = pack.add_task(packed, folders[0], prune=0.5, **RUN)
    recipe = dataclasses.replace(QUICK, retrain_epochs=0, restart="zero", norm="frozen")
    after = pack.prune_task(packed, "red", prune=0.0, recipe=recipe, machine=CPU)
    assert after.header.task(1).digest == before.header.task(1).digest


def test_a_task_is_the_same_pruned_at_once_or_afterwards(packed, folders, tmp_path):
    """By its own recipe, and its own images."""
    pack.add_task(packed, folders[0], prune=0.5, **RUN)
    other = shutil.copy(packed, tmp_path / "other.st")
    at_once = pack.add_task(packed, folders[1], prune=0.75, **RUN).header.task(2)
    pack.add_task(other, folders[1], **RUN)
    afterwards = pack.prune_task(other, "2", prune=0.75, recipe=QUICK, machine=CPU).header.task(2)
    assert (afterwards.digest, afterwards.accuracy) == (at_once.digest, at_once.accuracy)


def test_only_the_newest_can_be_pruned(full):
    """Later tasks run on the weights of earlier ones."""
    before = full.read_bytes()
    with pytest.raises(TaskError, match=r"later tasks run on its weights. Only the newest can, 3 \(blue\)"):
        pack.prune_task(full, "red", prune=0.5)
    assert full.read_bytes() == before


# --- a head alone ---------------------------------------------------------------------------------------------------


def test_head_only(full, folders):
    """In a full file: it costs no weights, and everything but the head is the newest task's, to the bit."""
    with pytest.raises(CapacityError, match="packnet prune .* or train a classifier alone with --head-only"):
        pack.add_task(full, folders[0], name="more", **RUN)
    before = format.load(full)
    after = pack.add_task(full, folders[0], name="more", head_only=True, **RUN)
    assert not any(after.header.task(4).owned.values())
    for name, array in after.state(3).items():
        assert name.startswith("fc.") or array.tobytes() == after.state(4)[name].tobytes()
    assert not verify.altered_tasks(after)
    assert all(np.array_equal(after.mask[layer], before.mask[layer]) for layer in before.mask)
    with pytest.raises(CapacityError, match="owns no weights"):
        pack.prune_task(full, "more", prune=0.5)


def test_head_only_needs_something_to_see(packed, folders):
    """In an empty file every weight is 0 to a task that owns none."""
    with pytest.raises(UsageError, match="--head-only needs a task"):
        pack.add_task(packed, folders[0], head_only=True, **RUN)
    with pytest.raises(UsageError, match="nothing to prune"):
        pack.add_task(packed, folders[0], head_only=True, prune=0.5, **RUN)


# --- how much to prune ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 0.0), (0.3, 0.25), (0.5, 0.5), (1.0, 0.9375)])
def test_search_for_the_fraction(packed, folders, monkeypatch, limit, expected):
    """It ends at the largest fraction tried that costs no more than allowed, and with the network pruned by that.

    On record is what was measured of that one; what is shown of the others says which they are.
    """
    accuracy, measured = Accuracy(50.0, 100.0, 6), {}

    def top1(model, batches, *, amp=False):
        """Pretend that up to `limit` pruning costs nothing, and beyond it everything."""
        zeros = np.mean(
            [float((w == 0).float().mean()) for n, w in model.named_parameters() if "conv" in n and w.ndim == 4]
        )
        return dataclasses.replace(accuracy, top1=50.0 if zeros <= limit + 0.01 else 0.0)

    monkeypatch.setattr("packnet_cli.engine.search.evaluate", top1)
    artifact = pack.add_task(
        packed, folders[0], max_drop=1.0, progress=lambda task, phase, at: measured.update({phase: at}), **RUN
    )
    task = artifact.header.task(1)
    assert task.prune == expected and len(task.search) == 5
    ends = [f"{phase} at {expected:g}" for phase in ("pruned", "retrained") if expected]
    assert [*task.accuracy.values()] == [measured[phase].top1 for phase in ("dense", *ends)]
    assert {phase.partition(" at ")[2] for phase in measured} == {"", *task.search} - {"0"}
    for mask in artifact.mask.values():
        assert masks.count_owned(mask, masks.FREE) == round(expected * mask.size)
    assert not verify.altered_tasks(artifact)


def test_a_search_allows_exactly_so_many_points(packed, folders, monkeypatch):
    """A percentage of images is rounded: 14 right of 300 less 11 right are 1.0000000000000004 points."""
    right = iter([14, *(4 * [11])])
    monkeypatch.setattr(
        "packnet_cli.engine.search.evaluate", lambda *given: Accuracy(100 * next(right) / 300, 100.0, 300)
    )
    recipe = dataclasses.replace(QUICK, retrain_epochs=0)
    task = pack.add_task(packed, folders[0], max_drop=1.0, recipe=recipe, machine=CPU).header.task(1)
    assert task.prune == 0.9375


@pytest.mark.parametrize("rank", ["global", "adaptive"])
@pytest.mark.parametrize("spared", [{"keep_at_least": 300}, {"skip_layers": "layer1.*,layer4.*"}])
def test_what_spared_layers_keep_others_release(packed, folders, rank, spared):
    """Where layers compete, too, as many weights go as would from each layer alike."""
    recipe = dataclasses.replace(QUICK, rank=rank, retrain_epochs=0, **spared)
    before = format.load(packed).free_counts()
    artifact = pack.add_task(packed, folders[0], prune=0.9, recipe=recipe, machine=CPU)
    assert artifact.free_count() == sum(plan.release_counts(before, 0.9, recipe).values())
    most = plan.release_counts(before, 1, recipe)
    assert all(count <= most[layer] for layer, count in artifact.free_counts().items())


@pytest.mark.parametrize("changes", [{"rank": "global"}, {"keep_at_least": 300}, {"skip_layers": "conv1*"}])
def test_which_weights_go(packed, folders, changes):
    """Ranked over all layers as many go in all; a floor and a list of layers spare some."""
    artifact = pack.add_task(packed, folders[0], prune=0.5, **(RUN | {"recipe": dataclasses.replace(QUICK, **changes)}))
    sizes = {layer: mask.size for layer, mask in artifact.mask.items()}
    owned = artifact.header.task(1).owned
    if "rank" in changes:
        assert artifact.free_count() == sum(round(size / 2) for size in sizes.values())
        assert any(owned[layer] != size - round(size / 2) for layer, size in sizes.items())
    elif "keep_at_least" in changes:
        assert all(owned[layer] == max(size - round(size / 2), min(300, size)) for layer, size in sizes.items())
        assert any(count == 300 for count in owned.values())
    else:
        assert all((owned[layer] == size) == layer.startswith("conv1") for layer, size in sizes.items())


@pytest.mark.parametrize(("lr_scale", "expected"), [("free", [1, 4, 10]), ("none", [1, 1, 1])])
def test_the_fewer_weights_are_free_the_faster_they_learn(packed, folders, monkeypatch, lr_scale, expected):
    """In both phases, up to tenfold; the head at its own multiple of that."""
    seen = []
    monkeypatch.setattr(
        "packnet_cli.engine.training.task.train",
        lambda model, batches, freezer, optimization, **_: seen.append(optimization) or iter(()),
    )
    recipe = dataclasses.replace(QUICK, prune_steps=1, lr_scale=lr_scale, head_lr=3)
    for folder, prune in zip(folders, (0.25, 0.25, 0), strict=True):
        pack.add_task(packed, folder, prune=prune, **RUN | {"recipe": recipe})
    rates = [one.lr * one.lr_scale for one in seen]
    scales = [rate / plain for rate, plain in zip(rates, [QUICK.lr, QUICK.retrain_lr] * 3, strict=False)]
    assert scales == pytest.approx([expected[0], expected[0], expected[1], expected[1], expected[2]], rel=1e-3)
    assert all(one.rates == {"fc.weight": 3, "fc.bias": 3} for one in seen)


@pytest.mark.parametrize("head_lr", [1, 3])
def test_the_earlier_a_layer_is_the_more_slowly_it_learns(packed, folders, monkeypatch, head_lr):
    """With --layer-decay, each layer as much as its norm; the head at its own multiple. The plain rate is shown."""
    seen = []
    monkeypatch.setattr(
        "packnet_cli.engine.training.task.train",
        lambda model, batches, freezer, optimization, **_: seen.append((model, freezer, optimization)) or iter(()),
    )
    recipe = dataclasses.replace(QUICK, layer_decay=0.5, head_lr=head_lr)
    pack.add_task(packed, folders[0], **RUN | {"recipe": recipe})
    model, freezer, optimization = seen[0]
    groups = optimization.optimizer(model, freezer.trained()).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] / QUICK.lr for group in groups for parameter in group["params"]}
    assert rates.keys() == dict(model.named_parameters()).keys()
    assert rates["fc.weight"] == rates["fc.bias"] == pytest.approx(head_lr)
    layers = ["layer4.0.conv1", "layer3.0.conv1", "layer2.0.conv1", "layer1.0.conv1", "conv1.0"]
    assert [rates[f"{layer}.weight"] for layer in layers] == [0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert rates["layer4.0.bn1.weight"] == rates["layer4.0.bn2.bias"] == 0.5
    assert groups[0]["lr"] == QUICK.lr * (1 if head_lr == 1 else 0.5)


@pytest.mark.parametrize(("hflip", "vflip"), [(0, 0), (1, 0), (0, 1)])
def test_training_flips_images_as_the_recipe_says(packed, tmp_path, monkeypatch, hflip, vflip):
    """These are brightest in the upper left."""
    for number in range(2):
        (folder := tmp_path / "bright" / f"class{number}").mkdir(parents=True)
        for image in range(6):
            picture = Image.new("RGB", (32, 32))
            picture.paste("white", (0, 0, 12, 12))
            picture.save(folder / f"{image}.png")
    seen = []
    monkeypatch.setattr(
        "packnet_cli.engine.training.task.train", lambda model, batches, *_, **__: seen.append(batches) or iter(())
    )
    recipe = dataclasses.replace(QUICK, crop_scale=0.999, hflip=hflip, vflip=vflip)
    pack.add_task(packed, tmp_path / "bright", **RUN | {"recipe": recipe})
    for images, _ in seen[0]:
        rows, columns = images.mean((0, 1, 3)), images.mean((0, 1, 2))  # (H,), (W,)
        assert (rows[:10].mean() < rows[-10:].mean()) == bool(vflip)
        assert (columns[:10].mean() < columns[-10:].mean()) == bool(hflip)


def test_a_fraction_and_a_search_for_it_do_not_go_together(packed, folders):
    """Of the two it would have to drop one."""
    with pytest.raises(UsageError, match="either a fraction"):
        pack.add_task(packed, folders[0], prune=0.9, max_drop=5.0, **RUN)


def test_a_network_that_ends_without_norms_learns_at_the_plain_rate(packed, folders):
    """As VGG, which dies at higher ones: two packed layers in a row come last before the head."""
    claim = claim_free(pack.add_task(packed, folders[0], prune=0.25, **RUN), QUICK)
    one, two, norm, head = (
        [f"{layer}.weight", f"{layer}.bias"] for layer in ("conv1.0", "layer4.0.conv2", "bn1", "fc")
    )
    for names, expected in (
        (one + two + norm + head, 4),
        (one + norm + two + head, 4),
        (norm + one + two + head, 1),
        (head + norm + one[:1] + two, 1),
    ):
        assert lr_scale(claim, QUICK, names) == pytest.approx(expected, rel=1e-3), names


@pytest.mark.parametrize(("how", "phases"), [({"prune": 0.5}, 1), ({"prune": 0.0}, 1), ({"max_drop": 9.0}, 5)])
def test_one_schedule_over_training_and_retraining(packed, folders, how, phases):
    """The rate goes on from where training left it. What is searched for has a schedule for each retraining."""
    recipe = dataclasses.replace(QUICK, epochs=2, retrain_lr=QUICK.lr, sched="cosine", anneal="once", lr_scale="none")
    rates = []

    def progress(task, phase, seen):
        if isinstance(seen, Step) and seen.step == 1:
            rates.append(seen.lr / recipe.lr)

    pack.add_task(packed, folders[0], **RUN | {"recipe": recipe} | how, progress=progress)
    falling = [1, 0.854, 0.5, 0.146] if how == {"prune": 0.5} else [1, 0.5]
    assert rates == pytest.approx(phases * falling, abs=1e-3)


def test_each_epoch_of_each_phase_and_seed_has_random_numbers_of_its_own(packed, folders, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "packnet_cli.engine.training.task.train",
        lambda *_, seed, epochs, **__: seen.extend(range(seed, seed + epochs)) or iter(()),
    )
    for seed in (0, 1):
        recipe = dataclasses.replace(QUICK, seed=seed, prune_steps=1)
        pack.add_task(packed, folders[seed], prune=0.5, recipe=recipe, machine=CPU)
    assert len(set(seen)) == len(seen) == 2 * (QUICK.epochs + QUICK.retrain_epochs)


def test_the_papers_rates(tmp_path, folders, weights):
    """Of the base and of new tasks a tenth in the second half; retraining these is at a constant rate, also later."""
    path, tenths = tmp_path / "packed.st", {"recipe": dataclasses.replace(RECIPES["paper"], epochs=2, retrain_epochs=2)}
    rates = []

    def progress(task, phase, seen):
        if isinstance(seen, Step) and seen.step == seen.steps:
            rates.append(round(1e4 * seen.lr, 3))

    how = {"prune": 0.5, "progress": progress, "machine": CPU}
    pack.init(path, "test_resnet", weights=weights, data=folders[2], **SMALL, **tenths, **how)
    assert rates == [1, 0.1]
    pack.add_task(path, folders[0], **tenths, **how)
    assert rates[2:] == [10, 1, 1, 1]
    pack.prune_task(path, "red", **how)
    assert rates[6:] == [1, 1]


@pytest.mark.parametrize("given", [{"sched": "poly"}, {"anneal": "twice"}])
def test_another_schedule_to_prune_by_is_followed(packed, folders, given):
    """Also of a task that was retrained without one, whose first phase that leaves as it was."""
    trained, said, rates = dataclasses.replace(QUICK, anneal="first", retrain_epochs=2), [], []
    pack.add_task(packed, folders[0], prune=0.5, recipe=trained, machine=CPU)

    def progress(task, phase, seen):
        if isinstance(seen, Step):
            rates.append(seen.lr)

    how = {"recipe": dataclasses.replace(trained, **given), "progress": progress, "say": said.append, "machine": CPU}
    after = pack.prune_task(packed, "red", prune=0.5, **how)
    assert rates[-1] < rates[0]
    assert after.header.task("red").recipe["anneal"] == "twice"
    assert not any("anneal" in line for line in said)


def test_prune_leaves_what_removed_tasks_left_behind(full):
    """A task in the middle is gone, its weights are still the newest one's to see, and nobody's to release."""
    edit.remove_task(full, "green")
    before = format.load(full)
    after = pack.prune_task(full, "blue", prune=0.5, machine=CPU)
    assert format.load(full).header.removed == before.header.removed != {}
    for layer, mask in after.mask.items():
        assert (mask[before.mask[layer] == 2] == 2).all()
        assert masks.count_owned(mask, masks.FREE) == round(0.5 * masks.count_owned(before.mask[layer], 3))
    assert not verify.verify(full)


def test_prune_leaves_out_the_images_that_were_left_out(packed, tmp_path):
    """A task that was added without unreadable images is retrained without them."""
    folder = make_folder(tmp_path / "some")
    (folder / "train" / "class0" / "0.png").write_bytes(b"no image")
    pack.add_task(packed, folder, skip_bad_images=True, recipe=QUICK, machine=CPU)
    assert pack.prune_task(packed, "1", prune=0.5, machine=CPU).header.tasks[0].skipped == 1


def test_a_path_may_be_text_and_a_task_a_number(tmp_path, folders):
    """To every verb, as to timm's functions."""
    path, weights, names, small = (f"{tmp_path / name}" for name in ("packed.st", "w.pt", "names.txt", "small.st"))
    data = f"{folders[0]}"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), weights)
    (tmp_path / "names.txt").write_text("class0\nclass1\nclass2\n")
    files = dict(weights=weights, class_names=names, data=data, distill=data)
    pack.init(path, "test_resnet", prune=0.5, **files, **SMALL, **RUN)
    pack.add_task(path, data, name="more", **RUN)
    pack.prune_task(path, 2, prune=0.5, data=data, distill=data, machine=CPU)
    for where in (None, data):
        results = evaluate.evaluate_tasks(path, 2, data=where, device="cpu", workers=0)
        assert [result.accuracy.images for result in results] == [9]
    assert [choice.images for choice in auto.evaluate_auto(path, device="cpu", workers=0)] == [9, 9]
    edit.rename(path, 2, "last")
    ship.make_compact(path, small)
    assert next(evaluate.evaluate_tasks(small, as_in=path, device="cpu", workers=0)).accuracy.images == 9
    first = next(predict.find_images([data]))
    assert [answer.path for answer in predict.predict(small, [f"{first}"], 2, device="cpu")] == [f"{first}"]
    edit.remove_task(path, 2)
    assert verify.verify(path) == []
