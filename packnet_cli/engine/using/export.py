"""Export one task from the packed model, in a format that another program opens.

Each format holds the task's weights; all but the bare checkpoint also hold what is needed to use them: class names in
order of label, preprocessing, how to build the network. A file for another runtime is kept only if its logits match.
"""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from packnet_cli.artifact import atomic, ship
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.engine import network
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import NetworkError, reason

TOLERANCE = 1e-3  # for logits of another runtime, relative to the greatest logit (at least 1)


def write_checkpoint(artifact: Artifact, task: Task, output: Path) -> None:
    """Write one task's state dict as a .pt file, to be read with torch.load(weights_only=True)."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in artifact.state(task.index).items()}
    buffer = io.BytesIO()  # torch's error on a full disk looks like a bug
    torch.save(state, buffer)
    with atomic.replacing(output) as temporary:
        temporary.write_bytes(buffer.getvalue())  # a view would outlive an error, and the buffer then complain


def write_folder(artifact: Artifact, task: Task, output: Path) -> None:
    """Write a timm model as the Hugging Face hub stores it: config.json, model.safetensors and a model card, README.md.

    Raises ArtifactError if `output` exists and is not an empty folder.
    """
    model = Packed(artifact).model(task.index)
    with atomic.replacing_folder(output) as temporary:
        config = temporary / "config.json"  # timm says it takes text; 1.0.26 takes only a Path
        names, arguments = {"label_names": list(task.classes)}, artifact.header.model_kwargs
        save_config_for_hf(model, config, model_config=names, model_args=arguments)
        _mend(config, artifact)
        # Not by timm's save_for_hf, which fails if a tensor has several names.
        metadata = {"format": "pt"} | ship.metadata(artifact, task)  # for who takes the weights alone
        save_file(network.read(model, copy=False), temporary / "model.safetensors", metadata)
        (temporary / "README.md").write_text(_model_card(artifact, task), encoding="utf-8", errors="backslashreplace")


def write_program(artifact: Artifact, task: Task, output: Path) -> None:
    """Write a .pt2 file for torch.export.load, for any batch size; its `packnet.json` has classes and preprocessing.

    Raises NetworkError if torch cannot export the network or the program's logits differ.
    """
    model = Packed(artifact).model(task.index)
    images = _examples(artifact, 2)
    with _exporting(artifact):
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        buffer = io.BytesIO()  # given a path, torch insists on the suffix .pt2
        torch.export.save(program, buffer, extra_files={"packnet.json": json.dumps(ship.about(artifact, task))})
    with atomic.replacing(output) as temporary:
        temporary.write_bytes(buffer.getvalue())
        with _exporting(artifact):
            reloaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
        _check(artifact, model, lambda batch: reloaded(batch).detach().numpy())


def write_onnx(artifact: Artifact, task: Task, output: Path) -> None:
    """Write an ONNX model, `images` (N, C, H, W) to `logits` (N, classes); its metadata has classes and preprocessing.

    Needs the extra "onnx". Raises NetworkError if torch cannot export the network or onnxruntime's logits differ.
    """
    import onnx
    import onnxruntime

    model = Packed(artifact).model(task.index)
    with _exporting(artifact):
        program = torch.onnx.export(
            model,
            (_examples(artifact, 2),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {"packnet": json.dumps(ship.about(artifact, task))})
    with atomic.replacing(output) as temporary:
        with _exporting(artifact):  # files over 2 GB and operators unknown to onnxruntime fail
            onnx.save(proto, temporary)
            session = onnxruntime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])
        _check(artifact, model, lambda batch: session.run(None, {"images": batch.numpy()})[0])


WRITERS = {  # by the suffix of the output; a folder has none
    "": write_folder,
    ".pt": write_checkpoint,
    ".pth": write_checkpoint,
    ".pt2": write_program,
    ".onnx": write_onnx,
}

# --- shared ---------------------------------------------------------------------------------------------------------


def _examples(artifact: Artifact, count: int) -> torch.Tensor:
    """Images of noise, always the same, in the network's input shape: (count, C, H, W)."""
    size = artifact.header.data_config["input_size"]
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(0))


@contextmanager
def _exporting(artifact: Artifact) -> Iterator[None]:
    """Turn any error of an exporter into a NetworkError; hide its warnings, which are for its own developers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:  # of the disk
        raise
    except Exception as error:
        raise NetworkError(f"torch cannot export {artifact.header.arch} like this: {reason(error)}") from None


@torch.inference_mode()
def _check(artifact: Artifact, model: nn.Module, compute: Callable[[torch.Tensor], Any]) -> None:
    """Raise NetworkError unless `compute` gives the packed network's logits, at two batch sizes."""
    for count in (1, 3):
        images = _examples(artifact, count)
        expected = model(images).numpy()
        worst = np.abs(compute(images) - expected).max()
        if not worst <= TOLERANCE * max(1, np.abs(expected).max()):
            raise NetworkError(f"the exported network computes other logits, by up to {worst:.2g}; nothing was written")


def _mend(config: Path, artifact: Artifact) -> None:
    """Remove from timm's config.json what keeps other programs from opening the folder."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    # With four channels, earlier versions of timm would initialise the first convolution anew instead of loading it.
    if artifact.header.data_config["input_size"][0] == 4:
        fields["pretrained_cfg"].pop("first_conv", None)
    fields.get("model_args", {}).pop("num_classes", None)  # also at the top level; transformers rejects duplicates
    config.write_text(json.dumps(fields, indent=2), encoding="utf-8")


def _model_card(artifact: Artifact, task: Task) -> str:
    header = artifact.header
    classes = "\n".join(f"{number}. {_as_markdown(name)}" for number, name in enumerate(task.classes))
    accuracy = "Its accuracy has not been measured."
    if task.top1 is not None:
        top5 = "" if task.top5 is None else f"; top-5: {task.top5:.2f} %"
        accuracy = f"Top-1 accuracy on {task.images:,} held-out images: {task.top1:.2f} %{top5}."
    return f"""\
---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
---
# {_as_markdown(task.name)}

A {header.arch} for {len(task.classes)} classes, one of the tasks of a packed model, made by the method of PackNet
([arXiv 1711.05769](https://arxiv.org/abs/1711.05769)). The network started from: {_as_markdown(ship.source(header))}

{accuracy}

## Use

```python
import timm

model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

## Classes

{classes}
"""


def _as_markdown(text: str) -> str:
    """A name in one line, with Markdown characters escaped, and at its beginning what would begin a list of its own."""
    line = re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", line)
