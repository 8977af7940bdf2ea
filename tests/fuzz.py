"""Throw hostile artifacts at everything that reads one: `python tests/fuzz.py --count 20000 [--seed N]`.

Half of them are mutations of whole files (mutations.py), half are built with their faults by hypothesis
(structures.py). Each case must end in a correct read or a PackNetError: no other exception, no hang, no memory beyond a
bound, no file outside the output path, nothing on the terminal that it would act upon. Prints how often each outcome
came, the slowest case and the largest, on Ctrl-C so far, and leaves the files of failed cases in ./fuzz-failures.
"""

import argparse
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from mutations import FILES, MUTATIONS
from rich.console import Console
from structures import faulty_files

from packnet_cli import report
from packnet_cli.artifact import format, ship, summary, verify
from packnet_cli.errors import PackNetError
from packnet_cli.report import console

SECONDS, MEGABYTES = 60, 2048  # bounds of one case by the clock on the wall, and of the process


@contextmanager
def within(seconds):
    """Raise TimeoutError in whoever takes longer."""

    def stop(number, frame):
        raise TimeoutError(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tell(path, as_json):
    """What `info` does."""
    report.summary(summary.summarize(path), layers=True, as_json=as_json)


def read_everything(file, folder):
    """Do with a file all that needs no torch; returns the outcomes. Raises whatever is no PackNetError."""
    path, output = folder / "in.st", folder / "out.safetensors"
    path.write_bytes(file)
    outcomes = []
    for name, read in (
        ("load", lambda: format.load(path)),
        ("info", lambda: [tell(path, as_json) for as_json in (False, True)]),
        ("verify", lambda: report.verified(path, findings := verify.verify(path), [], as_json=False) or findings),
    ):
        try:
            result = read()
            outcomes.append(f"{name}: {len(result) and 'findings' or 'whole'}" if name == "verify" else f"{name}: read")
        except PackNetError as error:
            report.error(str(error))
            outcomes.append(f"{name}: {type(error).__name__}")
            continue
        if name == "load":
            for task in result.header.tasks:
                ship.extract_safetensors(result, task, output)
                report.extracted(output, ".safetensors", result.header, task, as_json=False)
    assert set(os.listdir(folder)) <= {"in.st", "out.safetensors"}, os.listdir(folder)
    return outcomes


@dataclass
class Tally:
    """What came of the cases."""

    cases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)  # seconds of processor time, case
    largest: tuple[int, int] = (0, -1)  # megabytes that the process grew by at most in one case, case
    failures: list[tuple[int, str, bytes]] = field(default_factory=list)

    def add(self, file: bytes, folder: Path, shown: io.StringIO) -> None:
        """Try one case, whose terminal is `shown`."""
        began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with within(SECONDS):
                self.outcomes.update(read_everything(file, folder))
            bad = {c for c in shown.getvalue() if not c.isprintable() and c != "\n"}
            assert not bad, f"shown: {bad}"
        except Exception as error:
            self.failures.append((self.cases, f"{type(error).__name__}: {error}", file))
        shown.seek(0)
        shown.truncate()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024
        self.slowest = max(self.slowest, (time.process_time() - began, self.cases))
        self.largest = max(self.largest, (grown, self.cases))
        self.cases += 1


@contextmanager
def terminal() -> Iterator[io.StringIO]:
    """What would be shown, as text."""
    shown = io.StringIO()
    before = console.out, console.err, sys.stdout
    console.out = console.err = Console(file=shown, markup=False, highlight=False, soft_wrap=True)
    sys.stdout = shown
    try:
        yield shown
    finally:
        console.out, console.err, sys.stdout = before


def mutate(tally: Tally, count: int, start: int = 0) -> None:
    """Try `count` mutations of whole files; each depends on its number and the seed `start` alone."""
    with tempfile.TemporaryDirectory() as folder, terminal() as shown:
        for case in range(count):
            rng = random.Random(f"{start}/{case}")
            tally.add(rng.choice(MUTATIONS)(rng, rng.choice(FILES)), Path(folder), shown)


def build(tally: Tally, count: int, start: int = 0) -> None:
    """Try `count` files that are built with their faults; all depends on the seed `start`."""

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(faulty_files())
    def attempt(file):
        tally.add(file, Path(folder), shown)

    with tempfile.TemporaryDirectory() as folder, terminal() as shown:
        attempt()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    tally = Tally()
    with suppress(KeyboardInterrupt):  # which asks for what there is so far
        mutate(tally, options.count // 2, options.seed)
        build(tally, options.count - options.count // 2, options.seed)
    for outcome, times in sorted(tally.outcomes.items()):
        print(f"{times:7,} {outcome}")
    print(f"slowest: {tally.slowest[0]:.2f} s (case {tally.slowest[1]})")
    print(f"largest: {tally.largest[0]} MB more (case {tally.largest[1]})")
    for case, problem, file in tally.failures[:20]:
        Path("fuzz-failures").mkdir(exist_ok=True)
        Path("fuzz-failures", f"{case}.st").write_bytes(file)
        print(f"case {case}: {problem[:300]}")
    print(f"{len(tally.failures)} of {tally.cases:,} cases failed")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
