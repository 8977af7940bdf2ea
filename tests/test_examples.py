"""The examples run, at a tiny size."""

import runpy
from pathlib import Path

import timm
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_compare_fills_its_table(tmp_path, folders, capsys):
    """Two tasks, each packed, individual and as a bare classifier."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pt")
    compare = runpy.run_path(str(EXAMPLES / "compare.py"))["compare"]
    compare(
        folders[:2],
        "test_resnet",
        prune=[0.5, 0],
        weights=tmp_path / "weights.pt",
        img_size=32,
        mean=0.5,
        epochs=1,
        retrain_epochs=1,
    )
    table = capsys.readouterr().out.splitlines()[-2:]
    for line, (name, packed) in zip(table, (("red", 3), ("green", 1)), strict=True):
        _, task, ours, individual, classifier, _ = (cell.strip() for cell in line.split("|"))
        assert task == name and len(ours.split("/")) == packed
        assert all(0 <= float(number) <= 100 for number in (*ours.split("/"), individual, classifier))
