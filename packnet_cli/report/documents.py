"""The --json documents, whose fields the README lists: each function makes one, or a part shared by several."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packnet_cli.artifact.format import Task
    from packnet_cli.artifact.plan import Plan
    from packnet_cli.artifact.ship import Sizes
    from packnet_cli.artifact.summary import Summary
    from packnet_cli.engine.using.auto import Choice
    from packnet_cli.engine.using.evaluate import Evaluation
    from packnet_cli.engine.using.predict import Answer

Document = dict[str, Any]


def named(task: "Task") -> Document:
    return {"index": task.index, "name": task.name}


def info(numbers: "Summary", *, layers: bool) -> Document:
    header = numbers.header
    document = {
        "arch": header.arch,
        "model_kwargs": header.model_kwargs,
        "source": header.source,
        "data_config": header.data_config,
        "packed_weights": numbers.packed_weights,
        "free_fraction": numbers.free_fraction,
        "removed_fraction": numbers.removed_fraction,
        "bytes": {
            "file": numbers.file_bytes,
            "separate_networks": numbers.separate_bytes,
            "lora_adapters": numbers.lora_bytes,
        },
        "compact": header.compact and header.compact.dtype,
        "tasks": [task(numbers, each) for each in header.tasks],
    }
    by_layer = [
        {"name": layer, "weights": size, "owned": numbers.owned(layer)} for layer, size in numbers.layers.items()
    ]
    return document | ({"layers": by_layer} if layers else {})


def task(numbers: "Summary", task: "Task") -> Document:
    compact = numbers.header.compact
    return named(task) | {
        "num_classes": len(task.classes),
        "top1": task.top1,
        "top5": task.top5,
        "images": task.images,
        "skipped_images": task.skipped,
        "accuracy": task.accuracy,
        "prune": task.prune,
        "owned_weights": sum(task.owned.values()),
        "owned_fraction": numbers.owned_fraction(task),
        "temperature": task.temperature,
        "data": task.data,
        "recipe": task.recipe,
        "digest": task.digest,
        "original_digest": compact.originals.get(task.index) if compact else task.digest,
    }


def plan(planned: "Plan") -> Document:
    weights = planned.packed_weights
    tasks = [
        {
            "index": share.index,
            "name": share.name,
            "prune": share.prune,
            "owned_weights": share.total,
            "owned_fraction": share.total / weights,
            "owned": share.owned,
        }
        for share in planned.shares
    ]
    return {
        "tasks": tasks,
        "free": planned.free,
        "free_fraction": sum(planned.free.values()) / weights,
        "bytes": planned.file_bytes,
        "removed_fraction": planned.removed / weights,
    }


def accuracy(result: "Evaluation") -> Document:
    return named(result.task) | {
        "top1": result.accuracy and result.accuracy.top1,
        "top5": result.accuracy and result.accuracy.top5,
        "images": result.accuracy.images if result.accuracy else 0,
        "missing_classes": list(result.missing),
        "problem": result.problem,
        "doubt": result.doubt,
    }


def choice(choice: "Choice") -> Document:
    return named(choice.task) | {"right_task": choice.right_task, "top1": choice.top1, "images": choice.images}


def predictions(answer: "Answer", top: int) -> Document:
    tasks = [
        named(prediction.task)
        | {
            "entropy": prediction.entropy,
            "top": [{"class": name, "probability": probability} for name, probability in prediction.top(top)],
        }
        for prediction in answer.predictions
    ]
    return {"image": str(answer.path), "problem": answer.problem or None, "tasks": tasks}


def sizes(before: "Sizes", after: "Sizes") -> Document:
    return {"before": asdict(before) | {"total": before.total}, "after": asdict(after) | {"total": after.total}}
