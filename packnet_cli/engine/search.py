"""How much a task can release: the largest prune fraction that it recovers from."""

from packnet_cli.engine.measure import Loader, evaluate
from packnet_cli.engine.training.state import Found
from packnet_cli.engine.training.task import TaskInTraining

TRIES = 4  # retrainings: a resolution of 1/16
ROUNDING = 1e-9  # of percentages, far less than an image


def prune_as_far_as(task: TaskInTraining, max_drop: float, selection: Loader) -> Found:
    """Prune and retrain `task` by the largest fraction that costs at most `max_drop` points, found by bisection.

    Accuracy is measured on `selection`, images that are neither trained on nor reported. The fraction is 0 if all those
    tried cost more.
    """
    if task.found:  # by a run that could not write its result
        return task.found
    best = dense = task.snapshot()
    curve = {"0": evaluate(task.model, selection).top1}
    low, high = 0.0, 1.0
    for _ in range(TRIES):
        fraction = (low + high) / 2
        task.go_back_to(dense)
        task.prune_and_retrain(fraction, f"retrain at {fraction:g}")
        curve[f"{fraction:g}"] = top1 = evaluate(task.model, selection).top1
        if curve["0"] - top1 <= max_drop + ROUNDING:
            low, best = fraction, task.snapshot()
        else:
            high = fraction
    task.go_back_to(best)
    task.end_search((low, curve))
    return low, curve
