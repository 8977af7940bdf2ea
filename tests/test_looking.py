"""What `info` and `plot` show of an artifact."""

import base64
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from packnet_cli import extras, metrics, plot
from packnet_cli.artifact import format, masks, summary
from packnet_cli.plot import drawings
from packnet_cli.report import contents, logs


def test_layers_are_those_of_the_masks(full, packnet):
    """Counted one by one; layer10 comes after layer9."""
    told = json.loads(packnet("info", full, "--layers", "--json").stdout)
    artifact = format.load(full)
    assert {layer["name"] for layer in told["layers"]} == artifact.mask.keys()
    for layer in told["layers"]:
        mask = artifact.mask[layer["name"]]
        assert layer["weights"] == mask.size
        assert layer["owned"] == [masks.count_owned(mask, task) for task in (1, 2, 3)]
    assert "layers" not in json.loads(packnet("info", full, "--json").stdout)
    assert sorted(["b.10.w", "b.9.w", "a.w"], key=summary._natural) == ["a.w", "b.9.w", "b.10.w"]
    long = "b." + "1" * 5000  # of more digits than Python reads
    assert sorted([long, "b.10", "b.01", "b"], key=summary._natural) == ["b", "b.01", "b.10", long]


def test_bars_fit_into_80_columns(full, packnet):
    """One below the other, each as long as its task's share; the same for each layer with --layers."""
    text = packnet("info", full, "--layers").stdout
    assert max(map(len, text.splitlines())) <= 80
    tasks, layers = text.split("layer", 1)
    assert [line.count("█") for line in tasks.splitlines() if "█" in line] == [7, 3, 3]  # of 14
    assert layers.count("11111111112222233333") == len(format.load_header(full).tasks[0].owned)


def test_an_ordinary_name_fits_into_an_ordinary_terminal(full, packnet, monkeypatch):
    """Without the bars, if need be; and what a search has found is told apart from its fractions."""
    artifact = format.load(full)
    *others, last = artifact.header.tasks
    last = replace(last, name="caltech-birds-200-2011", search={"0.8125": 47.37})
    format.save(replace(artifact, header=replace(artifact.header, tasks=(*others, last))), full)
    monkeypatch.setenv("COLUMNS", "80")
    text = packnet("info", full).stdout
    table = text[text.index("┏") : text.rindex("┘")]
    assert last.name in table and "█" not in table and max(map(len, table.splitlines())) <= 80
    assert "top-1 at 0.8125     47.37 %" in packnet("info", full, "--task", last.name).stdout


def test_bytes_of_other_ways_are_counted_from_the_tensors(full, packed, tmp_path, packnet):
    """One network for each task, and adapters of rank 8 on one network; of a compact file the same."""
    artifact = format.load(full)
    states = [artifact.state(index) for index in (1, 2, 3)]
    heads = sum(array.nbytes for state in states for name, array in state.items() if name.startswith("fc."))
    network = sum(array.nbytes for name, array in states[0].items() if not name.startswith("fc."))
    adapter = 0
    for array in artifact.shared.values():
        matrix = array.reshape(len(array), -1)
        rank = min(8, *matrix.shape)
        adapter += np.zeros((len(matrix), rank), np.float32).nbytes + np.zeros((rank, matrix.shape[1]), "f4").nbytes
    expected = {"separate_networks": 3 * network + heads, "lora_adapters": network + 3 * adapter + heads}
    packnet("compact", full, "-o", tmp_path / "ship.st")
    for path in (full, tmp_path / "ship.st"):
        told = json.loads(packnet("info", path, "--json").stdout)["bytes"]
        assert told == {"file": path.stat().st_size} | expected
    assert [summary._lora_bytes(shape) for shape in ([], [3], [0, 4], [16, 4, 3, 3])] == [8, 16, 0, 4 * 8 * (16 + 36)]
    assert "LoRA adapter of rank 8" in packnet("info", full).stdout
    assert "LoRA" not in packnet("info", packed).stdout


def test_an_owner_is_a_character(packed, packnet):
    """In proportion, and what is free is a dot."""
    assert contents._owners([0.5, 0.25]) == "1111111111" + "22222" + "....."
    assert contents._owners([]) == "." * 20
    assert contents._owners([1 / 12] * 12)[-1] == "c"  # the twelfth task
    assert contents._owners([1 / 36] * 36)[-1] == "A"  # not 0 again, of which there is no task
    assert "." * 20 in packnet("info", packed, "--layers").stdout


def test_plot_draws_what_each_task_owns(full, tmp_path, packnet):
    """In the colours of its legend, on every layer; the same file twice is the same picture."""
    for name in ("a.png", "b.png", "a.svg", "b.svg", "a.html", "b.html"):
        result = packnet("plot", full, "-o", tmp_path / name)
        assert result.exit_code == 0 and "tasks: 3" in result.stdout, result.stderr
    for suffix in ("png", "svg", "html"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    shades = 255 * colormaps["viridis"].resampled(3)(range(3))[:, :3]
    first, second, third = ((abs(pixels - shade) < 1).all(1).sum() for shade in shades)
    assert 1.8 < first / second < 2.2 and 0.9 < second / third < 1.1  # half of the weights, and a quarter each


def test_plot_of_nothing_yet_and_of_odd_names(packed, folders, tmp_path, packnet):
    """No tasks; and a name that would be a formula."""
    assert packnet("plot", packed, "-o", tmp_path / "empty.svg").exit_code == 0
    arguments = ("--epochs", 1, "--batch-size", 8, "--workers", 0, "--device", "cpu", "--name", r"$\frac$ 鳥")
    assert packnet("add-task", packed, "--data", folders[0], *arguments).exit_code == 0
    result = packnet("plot", packed, "-o", tmp_path / "odd.png")
    assert result.exit_code == 0 and result.stderr == ""


def test_what_a_removed_task_left_is_nobodys(full, packnet):
    """And shifts no colour: the third task keeps its own share, and the second's place is grey."""
    numbers = summary.summarize(full)
    assert packnet("remove-task", full, "--task", "green", "--yes").exit_code == 0
    axes = draw(drawings._draw_layers, summary.summarize(full)).axes[0]
    assert [text.get_text() for text in axes.get_legend().texts] == ["1 red", "2 (removed)", "3 blue", "free"]
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers]).T / 100
    assert widths[:, :3] == pytest.approx(np.array([numbers.shares(layer) for layer in numbers.layers]))


def test_the_legend_of_many_tasks_is_cut(full):
    """So that it stays in the picture: every so many, and what is free."""
    numbers = summary.summarize(full)
    [task, *_] = numbers.header.tasks
    tasks = tuple(replace(task, index=index, owned=dict.fromkeys(task.owned, 0)) for index in range(1, 256))
    axes = draw(drawings._draw_layers, replace(numbers, header=replace(numbers.header, tasks=tasks))).axes[0]
    shown = [text.get_text() for text in axes.get_legend().texts]
    assert len(shown) <= drawings.ROWS + 1 and shown[:2] == ["1 red", "7 red"] and shown[-1] == "free"


def test_long_names_leave_room_for_the_picture(full):
    """They are cut in the legend and above the curves, too."""
    numbers = summary.summarize(full)
    tasks = tuple(replace(task, name=80 * "M") for task in numbers.header.tasks)
    numbers = replace(numbers, header=replace(numbers.header, tasks=tasks))
    legend = draw(drawings._draw_layers, numbers).axes[0].get_legend()
    titles = [drawing.title for drawing in drawings.drawings_of(numbers, {80 * "M": []})]
    assert max(len(text) for text in [*(text.get_text() for text in legend.texts), *titles]) < 50


@pytest.mark.parametrize("name", ["northern flowers and grasses", 30 * "M"])
def test_names_below_the_bars_have_room(full, name):
    """Else matplotlib, with a warning, gives up on the layout of all drawings, and labels are cut off."""
    numbers = summary.summarize(full)
    tasks = tuple(replace(task, name=name) for task in numbers.header.tasks)
    numbers = replace(numbers, header=replace(numbers.header, tasks=tasks))
    plot._stacked(drawings.drawings_of(numbers, {})).draw_without_rendering()


def draw(how, *arguments):
    """A figure on which one drawing is drawn."""
    figure = Figure()
    how(*arguments, figure)
    return figure


def log_of_two_phases(folder, task):
    """Three epochs, a measurement and one epoch more."""
    epochs = [("train", 1, 3.0), ("train", 2, 2.0), ("train", 3, 1.0), ("dense", None, 70.0), ("retrain", 1, 0.5)]
    with logs.log_to(folder) as write:
        for phase, epoch, number in epochs:
            numbers = {"epoch": epoch, "loss": number, "accuracy": 50.0, "lr": 0.1} if epoch else {"top1": number}
            write({"event": "epoch" if epoch else "accuracy", "task": task, "phase": phase, **numbers})
    return folder


def test_training_curves(full, tmp_path, packnet):
    """Of the tasks in the file, in every form: the phases one after the other, and what was measured between them."""
    log = log_of_two_phases(log_of_two_phases(tmp_path / "log", "red"), "other")
    loss, accuracy, rate = draw(drawings._draw_curves, metrics.read(log)["red"]).axes
    curves = [(list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines]
    assert curves == [([1, 2, 3], [3.0, 2.0, 1.0]), ([4], [0.5])]
    assert (list(accuracy.lines[-1].get_xdata()), list(accuracy.lines[-1].get_ydata())) == ([3], [70.0])
    assert [text.get_text() for text in rate.get_legend().texts] == ["train", "retrain", "held out"]
    [first, *_] = metrics.read(log)["red"]
    loss, *_ = draw(drawings._draw_curves, [first]).axes  # of a single epoch
    assert all(tick == int(tick) for tick in loss.get_xticks())
    for suffix, kind in (("png", b"PNG"), ("SVG", b"<svg"), ("html", b"<html")):
        sizes = []
        for arguments in ((), ("--log", log)):
            output = tmp_path / f"x.{suffix}"
            assert packnet("plot", full, "-o", output, *arguments).exit_code == 0
            assert kind in output.read_bytes()[:1000]
            sizes.append(output.stat().st_size)
        assert sizes[1] > 1.1 * sizes[0]
    assert (tmp_path / "x.html").read_text().count("<img") == 3  # none of the other task
    told = packnet("plot", full, "-o", tmp_path / "y.html", "--log", log).stderr
    assert "under the present names of these tasks: green," in told
    assert packnet("rename", full, "--task", "red", "--name", "crimson").exit_code == 0
    result = packnet("plot", full, "-o", tmp_path / "y.html", "--log", log)
    assert result.exit_code == 2 and "it has red, other" in result.stderr and result.stderr.count("\n") == 1
    assert packnet("plot", full, "-o", tmp_path / "y.html", "--log", tmp_path).exit_code == 2


def test_a_page_fetches_nothing_and_runs_nothing(full, tmp_path, packnet):
    """Every picture is within it, and a name from outside is text."""
    name = "<script>alert(1)</script>"
    assert packnet("rename", full, "--task", "red", "--name", name).exit_code == 0
    assert packnet("plot", full, "-o", tmp_path / "x.html").exit_code == 0
    text = (tmp_path / "x.html").read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 2 and "url(" not in text
    for source in sources:
        kind, content = source.split(",")
        svg = base64.b64decode(content)
        assert kind == "data:image/svg+xml;base64" and b"<svg" in svg and b"<script" not in svg


def test_plot_refuses(full, tmp_path, packnet, monkeypatch):
    """A form that it does not write, a folder that is not there, and a missing extra."""
    result = packnet("plot", full, "-o", tmp_path / "x.gif")
    assert result.exit_code == 2 and ".png, .svg or .html" in result.stderr
    assert packnet("plot", full, "-o", tmp_path / "none" / "x.png").exit_code == 3
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = packnet("plot", full, "-o", tmp_path / "x.png")
    assert result.exit_code == 2 and "pip install 'packnet-cli[plot]'" in result.stderr
    assert os.listdir(tmp_path) == ["full.st"]
