"""What the tasks say of pictures, as the command prints it."""

import csv
import io
import json
import math
import os
import struct

import pytest
import timm
import torch
from conftest import make_folder
from PIL import Image
from timm.data import create_transform, resolve_data_config

from packnet_cli.artifact import format
from packnet_cli.engine.using.auto import evaluate_auto
from packnet_cli.engine.using.evaluate import evaluate_tasks
from packnet_cli.engine.using.predict import predict
from packnet_cli.errors import UsageError

QUICK = ["--device", "cpu"]


@pytest.fixture
def pictures(tmp_path):
    """A folder with five pictures, and something else."""
    folder = make_folder(tmp_path / "pictures", classes=5, train=1, val=0) / "train"
    (folder / "notes.txt").write_text("no picture")
    return folder


def lines(result):
    """The JSON documents on stdout."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_probabilities_are_plain_timms_to_the_bit(full, tmp_path, pictures, packnet):
    """At the same batch size, for one task and for all, which one network runs in turn."""
    header = format.load_header(full)
    config = resolve_data_config(header.data_config)
    paths = sorted(pictures.rglob("*.png"))
    batch = torch.stack([create_transform(**config)(Image.open(path).convert("RGB")) for path in paths])
    answers = lines(packnet("predict", full, "--task", "all", pictures, "--json", *QUICK))
    assert [answer["image"] for answer in answers] == [str(path) for path in paths]
    for task in header.tasks:
        packnet("extract", full, "--task", task.name, "-o", tmp_path / "one.pt")
        count = len(task.classes)
        plain = timm.create_model("test_resnet", num_classes=count, checkpoint_path=str(tmp_path / "one.pt")).eval()
        with torch.inference_mode():
            expected = plain(batch).softmax(1).tolist()
        alone = lines(packnet("predict", full, "--task", task.name, pictures, "--json", *QUICK))
        for row, answer, lone in zip(expected, answers, alone, strict=True):
            assert answer["tasks"][task.index - 1] == lone["tasks"][0]
            assert {top["class"]: top["probability"] for top in lone["tasks"][0]["top"]} == dict(
                zip(task.classes, row, strict=True)
            )
            calibrated = [p ** (1 / task.temperature) for p in row]  # which is the logits over the temperature
            shares = [p / sum(calibrated) for p in calibrated]
            entropy = -sum(p * math.log(p) for p in shares) / math.log(count)
            assert lone["tasks"][0]["entropy"] == pytest.approx(entropy, abs=1e-5)


def test_each_image_is_decoded_once(full, pictures, packnet, monkeypatch):
    """However many tasks are asked, and in batches that do not come out even."""
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or open_image(path))
    answers = lines(packnet("predict", full, "--task", "all", pictures, "--json", "--batch-size", 2, *QUICK))
    assert [answer["image"] for answer in answers] == sorted(map(str, opened)) and len(opened) == 5


def test_auto_takes_the_task_of_the_lowest_entropy(full, pictures, packnet):
    """Of those that `all` shows."""
    everything = lines(packnet("predict", full, "--task", "all", pictures, "--json", *QUICK))
    chosen = lines(packnet("predict", full, "--task", "auto", pictures, "--json", *QUICK))
    for answer, auto in zip(everything, chosen, strict=True):
        assert auto["tasks"] == [min(answer["tasks"], key=lambda task: task["entropy"])]


def test_text_and_csv_say_the_same(full, pictures, packnet):
    """The likeliest first, as many as asked."""
    [answer] = lines(packnet("predict", full, "--task", "blue", pictures / "class0" / "0.png", "--json", *QUICK))
    top = answer["tasks"][0]["top"]
    assert [entry["probability"] for entry in top] == sorted((e["probability"] for e in top), reverse=True)
    arguments = ("predict", full, "--task", "blue", pictures / "class0", "--top", 2, *QUICK)
    rows = list(csv.DictReader(packnet(*arguments, "--csv").stdout.splitlines()))
    assert [(row["rank"], row["class"], float(row["probability"])) for row in rows] == [
        (str(rank), entry["class"], entry["probability"]) for rank, entry in enumerate(top[:2], start=1)
    ]
    image, *table = packnet(*arguments).stdout.splitlines()
    assert image.strip() == answer["image"]
    assert [line.split()[-1] for line in table] == [entry["class"] for entry in top[:2]]
    assert f"{100 * top[0]['probability']:.2f} %" in table[0] and "blue" in table[0]


def test_csv_with_a_carriage_return_in_a_name(full, pictures, packnet):
    """Which readers take for the end of a line, unless it is quoted."""
    picture = (pictures / "class0" / "0.png").rename(pictures / "a\rb.png")
    shown = packnet("predict", full, "--task", "blue", picture, "--top", 2, "--csv", *QUICK).stdout_bytes.decode()
    rows = list(csv.DictReader(io.StringIO(shown, newline="")))
    assert [row["image"] for row in rows] == 2 * [str(picture)] and shown.count("\r") == 2


def test_names_stand_as_they_are(packed, tmp_path, packnet):
    """However long, and also where they look like the code of an emoji."""
    names = [":cat:", "a" * 200 + " 1", "a" * 200 + " 2"]
    for split, count in (("train", 4), ("val", 1)):
        for name in names:
            (folder := tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (90 * number, 0, 0)).save(folder / f"{number}.png")
    image = tmp_path / "set" / "val" / ":cat:" / "0.png"
    added = packnet("add-task", packed, "--data", tmp_path / "set", "--name", ":dog:", "--epochs", 1, *QUICK)
    assert added.exit_code == 0, added.stderr
    assert packnet("rename", packed, "--task", 1, "--name", ":bird:").stdout.endswith("is now :bird:\n")
    _, *shown = packnet("predict", packed, "--task", 1, image, *QUICK).stdout.splitlines()
    assert {line.split(" %  ")[1] for line in shown} == set(names) and shown[0].startswith("  :bird:  ")


def test_paths_on_stdin(full, pictures, packnet):
    """One a line; folders too. Also with a byte order mark and both characters that may end a line."""
    paths = f"{pictures / 'class3'}\n\n{pictures / 'class1' / '0.png'}\n"
    for given in (paths, "\ufeff" + paths.replace("\n", "\r\n")):
        answers = lines(packnet("predict", full, "--task", 1, "-", "--json", *QUICK, input=given.encode()))
        assert [answer["image"][-12:] for answer in answers] == ["class3/0.png", "class1/0.png"]


def test_names_come_back_as_they_were_given(full, pictures, packnet, monkeypatch):
    """So that answers can be put beside the list that they are for; find's names begin with ./, and a file may be -."""
    monkeypatch.chdir(pictures / "class3")
    (pictures / "class3" / "0.png").rename("-")
    names = ["./-", ".//-", "../class3/./-", "./none.png"]
    typed = packnet("predict", full, "--task", 1, *names, "--json", *QUICK)
    piped = packnet("predict", full, "--task", 1, "-", "--json", *QUICK, input="\n".join(names).encode())
    for result in (typed, piped):
        assert [answer["image"] for answer in lines(result)] == names
        assert [bool(answer["tasks"]) for answer in lines(result)] == [True, True, True, False]
        assert "cannot read ./none.png: No such file" in result.stderr


@pytest.mark.parametrize(("read_ahead", "read"), [(False, 2), (True, 4)])
def test_whoever_types_paths_need_not_type_the_next_batch_for_an_answer(full, pictures, read_ahead, read):
    """Of files, the next batch is read meanwhile."""
    paths = iter(sorted(pictures.rglob("*.png")))
    next(predict(full, paths, "red", batch_size=2, device="cpu", read_ahead=read_ahead))
    assert len(list(paths)) == 5 - read


def test_paths_on_stdin_stand_alone(full, packnet):
    """A file of that name would else be taken for them, or they would never be read."""
    result = packnet("predict", full, "--task", 1, "-", "a.png", *QUICK, input=b"b.png")
    assert result.exit_code == 2 and "leave out the other images" in result.stderr


def test_an_unreadable_image_is_named_and_the_others_go_on(full, pictures, packnet):
    """With exit code 6 at the end."""
    (pictures / "class2" / "0.png").write_text("hello")
    (pictures / "empty").mkdir()
    arguments = (pictures / "none.png", pictures, pictures / "empty", "--batch-size", 2)
    result = packnet("predict", full, "--task", "red", *arguments, "--json", *QUICK)
    answers = lines(result)
    assert result.exit_code == 6 and len(answers) == 7
    assert [bool(answer["problem"]) for answer in answers] == [not answer["tasks"] for answer in answers]
    assert sum(bool(answer["problem"]) for answer in answers) == 3
    missing, broken, empty, total = result.stderr.splitlines()
    assert packnet("predict", full, "--task", "red", *arguments, "--csv", *QUICK).stdout.count("\n") == 1 + 4 * 3
    assert "none.png: No such file" in missing and "class2/0.png: not an image, or damaged" in broken
    assert "empty: the folder holds no images" in empty and "3 of 7 images" in total


def test_a_link_to_nothing_and_what_may_not_be_read_are_named_too(full, pictures, packnet, monkeypatch):
    """A folder below, and a file on the command line; root reads them all, hence the patches."""
    (pictures / "class0" / "link.png").symlink_to("nowhere.png")
    folder, file = pictures / "class1", pictures / "class2" / "0.png"
    scandir, open_image, access = os.scandir, Image.open, os.access

    def unless_secret(function, path, *more):
        if str(path) in (str(folder), str(file)):
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *more)

    monkeypatch.setattr(os, "scandir", lambda path: unless_secret(scandir, path))
    monkeypatch.setattr(Image, "open", lambda path: unless_secret(open_image, path))
    monkeypatch.setattr(os, "access", lambda path, *more: str(path) != str(file) and access(path, *more))
    result = packnet("predict", full, "--task", 1, file, pictures, "--json", *QUICK)
    assert result.exit_code == 6 and [bool(answer["tasks"]) for answer in lines(result)].count(True) == 3
    *problems, total = result.stderr.splitlines()
    assert [line.partition(": cannot read ")[2] for line in problems] == [
        f"{path}: {problem}"
        for path, problem in (
            (file, "Permission denied"),
            (pictures / "class0" / "link.png", "No such file or directory"),
            (folder, "Permission denied"),
            (file, "Permission denied"),
        )
    ]
    assert "4 of 7 images" in total


def test_whatever_a_decoder_raises(full, pictures, packnet):
    """Of a DDS file of a kind that PIL knows not, NotImplementedError."""
    header = [124, 0x1007, 1, 1, 0, 0, 0, *[0] * 11, 32, 4, int.from_bytes(b"XXXX", "little"), *[0] * 10]
    (pictures / "odd.dds").write_bytes(b"DDS " + struct.pack(f"<{len(header)}I", *header))
    with pytest.raises(NotImplementedError):
        Image.open(pictures / "odd.dds")
    result = packnet("predict", full, "--task", 1, pictures / "odd.dds", pictures, "--json", *QUICK)
    assert result.exit_code == 6 and len(lines(result)) == 6
    assert "odd.dds: Unimplemented pixel format" in result.stderr and result.stderr.count("\n") == 2


def test_predict_refuses(full, packed, pictures, packnet):
    """Two forms at once, and a file without tasks."""
    result = packnet("predict", full, "--task", 1, pictures, "--json", "--csv")
    assert result.exit_code == 2 and "--csv" in result.stderr
    result = packnet("predict", packed, "--task", "all", pictures)
    assert result.exit_code == 4 and "no task yet" in result.stderr
    assert packnet("predict", full, "--task", 1, pictures, "--batch-size", 0).exit_code == 2
    result = packnet("predict", full, "--task", "purple", pictures, "--csv")
    assert result.exit_code == 4 and result.stdout == ""


def test_the_library_refuses_what_the_command_line_does(full, pictures):
    """Of a program, too, no wrong number becomes an error of Python's, or an answer about nothing."""
    for size in (0, -1):
        for answers in (
            lambda size=size: predict(full, [pictures], "red", batch_size=size),
            lambda size=size: list(evaluate_tasks(full, batch_size=size)),
            lambda size=size: evaluate_auto(str(full), batch_size=size),
        ):
            with pytest.raises(UsageError, match=f"--batch-size must be at least 1, not {size}"):
                answers()
    with pytest.raises(UsageError, match="--workers must be at least 0, not -1"):
        list(evaluate_tasks(full, workers=-1))
