"""Output: results on stdout, progress and errors on stderr. Its functions are given results and fetch none."""

from packnet_cli.report.actions import compacted, explain_removal, extracted, removed, renamed, verified
from packnet_cli.report.answers import chosen, evaluated, predictions
from packnet_cli.report.console import confirm, error, failed, say, talk, warning
from packnet_cli.report.contents import added, plan, plotted, started, summary, task
from packnet_cli.report.passes import passing
from packnet_cli.report.training import training

__all__ = [
    "added",
    "chosen",
    "compacted",
    "confirm",
    "error",
    "evaluated",
    "explain_removal",
    "extracted",
    "failed",
    "passing",
    "plan",
    "plotted",
    "predictions",
    "removed",
    "renamed",
    "say",
    "started",
    "summary",
    "talk",
    "task",
    "training",
    "verified",
    "warning",
]
