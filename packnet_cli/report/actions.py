"""Report what a command did to or with a packed model, and what it wrote."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from packnet_cli.report import console, documents

if TYPE_CHECKING:
    from packnet_cli.artifact.format import Header, Task
    from packnet_cli.artifact.ship import Sizes
    from packnet_cli.artifact.verify import Finding
    from packnet_cli.engine.using.evaluate import Evaluation


def extracted(output: Path, form: str, header: "Header", task: "Task", *, as_json: bool) -> None:
    """What was written, and how to open it. `form` is its suffix, empty for a folder."""
    arguments = [repr(header.arch), f"num_classes={len(task.classes)}", f"checkpoint_path={str(output)!r}"]
    arguments += [f"{key}={value!r}" for key, value in header.model_kwargs.items()]
    plain = f"timm.create_model({', '.join(arguments)})"
    opened = {
        "": f"timm.create_model({f'local-dir:{output}'!r}, pretrained=True)",
        ".onnx": f"onnxruntime.InferenceSession({str(output)!r}).run(None, {{'images': images}})",
        ".pt2": f"torch.export.load({str(output)!r}).module()",
    }
    if as_json:
        document = {"output": str(output), "task": documents.named(task), "num_classes": len(task.classes)}
        console.print_json(document | {"opened_by": opened.get(form, plain)})
        return
    console.tell(f"{output}: task {task}, {len(task.classes)} classes. To open it:")
    console.tell(f"  {opened.get(form, plain)}")
    if form:  # a folder's config.json holds the preprocessing
        config, shown = header.data_config, ("input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode")
        console.tell(f"  with images of {', '.join(f'{key} {config[key]}' for key in shown if key in config)}")


def compacted(
    output: Path,
    before: "Sizes",
    after: "Sizes",
    accuracies: "list[tuple[Evaluation, Evaluation]]",
    *,
    as_json: bool,
) -> None:
    """The sizes of both files by part, and each task's accuracy in both, where measured."""
    if as_json:
        pairs = [{"before": documents.accuracy(one), "after": documents.accuracy(other)} for one, other in accuracies]
        console.print_json({"output": str(output), "bytes": documents.sizes(before, after), "tasks": pairs})
        return
    table = console.new_table("", "before, MB", "after, MB")
    names = {
        "weights": "weights (after: those that are owned)",
        "owners": "task-index masks",
        "tasks": "the tasks' own tensors",
        "start": "for a first task to start from",
        "metadata": "metadata",
        "total": "in all",
    }
    for part, name in names.items():
        console.add_row(table, name, f"{getattr(before, part) / 1e6:,.3f}", f"{getattr(after, part) / 1e6:,.3f}")
    console.show(table)
    if accuracies:
        table = console.new_table("task", "name", "top-1 % before", "top-1 % after", "images")
        for one, other in accuracies:
            images = f"{one.accuracy.images:,}" if one.accuracy else "0"
            top1 = [console.percent(result.accuracy.top1 if result.accuracy else None) for result in (one, other)]
            console.add_row(table, str(one.task.index), one.task.name, *top1, images)
        console.show(table)
    console.tell(f"{output}: compact, for use; keep the file that it was made of to add tasks to")


def verified(
    path: Path,
    damage: "list[Finding]",
    changed: "list[Finding]",
    *,
    measured: int = 0,
    rounded_to: str | None = None,
    as_json: bool,
) -> None:
    """What is wrong with the file, or, if it is whole, which accuracies have `changed`.

    `rounded_to` is the dtype of a compact file if its numbers were rounded.
    """
    findings = damage + changed
    if as_json:
        console.print_json(
            {"whole": not damage, "rounded_to": rounded_to, "findings": [asdict(finding) for finding in findings]}
        )
        return
    for finding in findings:
        console.tell(finding.problem)
    if not findings:
        rounded = f", once that was rounded to {rounded_to}" if rounded_to else ""
        accurate = f"; {measured} measured, of the recorded accuracy" if measured else ""
        console.tell(f"{path} is whole, and every task in it to the bit what was added{rounded}{accurate}")


def explain_removal(header: "Header", task: "Task", freed: int) -> None:
    """What removing a task would do, on stderr, before the user confirms it."""
    later = ", ".join(str(other) for other in header.tasks if other.index > task.index)
    console.say(f"task {task}: its name, its head and its own tensors go for good.")
    if later:
        owned = console.count(sum(task.owned.values()))
        console.say(f"Its {owned} weights do not become free: later tasks run on them: {later}.")
    elif freed:
        console.say(
            f"{console.count(freed)} weights become free, and keep what it left there, from which the next task starts."
        )


def removed(path: Path, task: "Task | None", freed: int, *, as_json: bool) -> None:
    """That a task was removed, or, if `task` is None, that none was."""
    if as_json:
        console.print_json({"removed": task and documents.named(task), "freed_weights": freed})
        return
    if task is None:
        console.say("nothing was written")
        return
    weights = ""  # a task trained as a head alone owns none
    if freed or any(task.owned.values()):
        weights = f"; {console.count(freed)} weights are free again" if freed else "; later tasks keep its weights"
    console.tell(f"{path}: task {task} removed{weights}")


def renamed(path: Path, task: "Task", *, as_json: bool) -> None:
    if as_json:
        console.print_json({"task": documents.named(task)})
        return
    console.tell(f"{path}: task {task.index} is now {task.name}")
