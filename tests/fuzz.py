"""Throw mutated artifacts at everything that reads one: `python tests/fuzz.py --count 20000 [--seed N]`.

Each case must end in a correct read or a PackNetError: no other exception, no hang, no memory beyond a bound, no file
outside the output path, nothing on the terminal that it would act upon. Prints how often each outcome came, the slowest
case and the largest, and leaves the files of failed cases in ./fuzz-failures.
"""

import argparse
import copy
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from packnet_cli import report
from packnet_cli.artifact import edit, format, header, summary, verify
from packnet_cli.errors import PackNetError
from packnet_cli.report import console

GOLDEN = Path(__file__).with_name("golden.st").read_bytes()


def compact(dtype):
    """The golden file as a compact one."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "golden.st"), Path(folder, "compact.st")
        source.write_bytes(GOLDEN)
        edit.make_compact(source, output, dtype=dtype)
        return output.read_bytes()


FILES = [GOLDEN, compact("float32"), compact("bfloat16")]
SECONDS, MEGABYTES = 60, 2048  # bounds of one case by the clock on the wall, and of the process
DTYPES = [*"F64 F32 F16 BF16 I64 I32 U8 BOOL C64 F8_E5M2 F4 XX".split(), "", None, 3]
NAMES = (
    "../../x /etc/passwd task.1.../x task.-1.w task.999.w task.01.w task.1 task.0.w shared. mask. __metadata__".split()
)
NAMES += ["", "\x1b[31m", "shared.w\n", "[bold]w", "\u202etxt", "shared.\ud800", "\x9b2J", "x" * 5000]
NUMBERS = [-1, 0, 1, 2, 255, 256, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 1e999, float("nan")]
SHAPES = [[], [0], [4], [2, 2], [1] * 100, [2**62, 4], [0, 2**63], [-4], [4.0], None, "4", [16]]
VALUES = [
    *NUMBERS,
    *NAMES,
    *SHAPES,
    True,
    "all",
    "7",
    "sha256:" + 64 * "0",
    {},
    {"a": {"b": 1}},
    {"": None},
    ["a", "a"],
]
METADATA = [None, {}, [], "x", {"packnet": 1}, {"packnet": ""}, {"packnet": "{}"}, {"a": "b"}]
HUGE = [  # what follows a seal that holds
    lambda: '"a":' + "[" * 1_000_000,
    lambda: '"a":' * 1_000_000,
    lambda: '"a":' + "[" * 60_000 + "]" * 60_000 + "}",
    lambda: '"a":[' + "[]," * 10_000_000 + "0]}",
    lambda: '"a":[' + '"ab",' * 6_000_000 + "0]}",
    lambda: '"a":"' + "x" * 40_000_000 + '"}',
    lambda: '"a":' + "9" * 100_000 + "}",
    lambda: '"format":1e999}',
    lambda: '"format":NaN}',
]


# --- mutations ------------------------------------------------------------------------------------------------------


def unpack(file):
    """The header of a safetensors file as an object, and its data."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), bytearray(file[8 + length :])


def pack(outer, data):
    text = json.dumps(outer).encode() if not isinstance(outer, bytes) else outer
    return struct.pack("<Q", len(text)) + text + data


def mutate_bytes(rng, file):
    """Damage that knows nothing of the format."""
    file = bytearray(file)
    start = rng.randrange(len(file))
    stop = min(len(file), start + rng.choice([1, 1, 2, 8, 64, 1000]))
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 2, 8])):
            file[rng.randrange(len(file))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del file[start:]
    elif kind == 2:
        file[start:stop] = rng.randbytes(stop - start)
    elif kind == 3:
        del file[start:stop]
    elif kind == 4:
        file[start:start] = file[rng.randrange(len(file)) :][: stop - start]
    else:
        file[:8] = struct.pack("<Q", rng.choice([0, 1, 2**32, 2**63, 2**64 - 1, 10**8, rng.randrange(3000)]))
    return bytes(file)


def mutate_tensors(rng, file):
    """The header of safetensors: types, shapes, places, names."""
    outer, data = unpack(file)
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice([key for key in outer if key != "__metadata__"] or ["shared.w"])
        entry = outer.get(key, {})
        kind = rng.randrange(7)
        if kind == 0:
            entry["dtype"] = rng.choice(DTYPES)
        elif kind == 1:
            entry["shape"] = copy.deepcopy(rng.choice(SHAPES))
        elif kind == 2:
            entry["data_offsets"] = [rng.choice([0, 4, 8, 16, 32, 2**40, -1]), rng.choice([0, 4, 8, 16, 48, 2**40])]
        elif kind == 3:
            outer[rng.choice(NAMES)] = outer.pop(key, entry)
        elif kind == 4:
            outer.pop(key, None)
        elif kind == 5:
            outer[rng.choice(NAMES)] = {"dtype": rng.choice(DTYPES), "shape": [0], "data_offsets": [0, 0]}
        else:
            outer["__metadata__"] = copy.deepcopy(rng.choice(METADATA))
    return pack(outer, data)


def mutate_metadata(rng, file):
    """The metadata, mostly with a seal that holds: what a program with a fault, or an enemy, would write."""
    outer, data = unpack(file)
    fields = json.loads(outer["__metadata__"]["packnet"])
    del fields["seal"]
    for _ in range(rng.choice([1, 1, 2, 4])):
        spoil(rng, fields)
    if rng.random() < 0.5:  # let the digests of the tensors hold as well, after some of them changed
        spoil_numbers(rng, outer, data)
        fields["tensors"] = digests(outer, data)
    text = json.dumps(fields) if rng.random() < 0.1 else header.seal(fields)
    if rng.random() < 0.02:
        text = sealed(rng.choice(HUGE)())
    outer["__metadata__"]["packnet"] = text
    return pack(outer, data)


def sealed(text):
    """Any text, under a seal that holds, as the rest of an object."""
    return f'{{"seal":"{header._digest("{" + text)}",{text}'


def spoil(rng, value):
    """Change, add or take out something somewhere inside."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys) if keys else "new" if isinstance(value, dict) else None
        inner = value[key] if keys else None
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            value = inner
            continue
        if key is None:
            value.append(copy.deepcopy(rng.choice(VALUES)))
        elif keys and rng.random() < 0.2:
            del value[key]
        elif isinstance(value, dict) and rng.random() < 0.3:
            value[rng.choice([*NAMES, "1", "2", "seal", "checkpoint_path", "w"])] = copy.deepcopy(rng.choice(VALUES))
        else:
            value[key] = copy.deepcopy(rng.choice(VALUES))
        return


def spoil_numbers(rng, outer, data):
    """Indices 0 and beyond, weights that are not numbers."""
    for key, value in (
        ("mask.w", bytes([rng.choice([0, 1, 2, 3, 255])])),
        ("shared.w", struct.pack("<f", float("nan"))),
        ("bits.w", bytes([rng.randrange(256)])),
        ("values.w", struct.pack("<f", float("inf"))),
    ):
        if key in outer and rng.random() < 0.5:
            start = outer[key]["data_offsets"][0]
            data[start : start + len(value)] = value


def digests(outer, data):
    tensors = {}
    for key, entry in outer.items():
        if key != "__metadata__":
            dtype = {"F32": "<f4", "U16": "<u2", "U8": "u1", "I64": "<i8"}[entry["dtype"]]
            tensors[key] = np.frombuffer(data[slice(*entry["data_offsets"])], dtype).reshape(entry["shape"])
    return format.tensor_digests(tensors)


MUTATIONS = [mutate_bytes, mutate_tensors, mutate_metadata]


# --- what reads -----------------------------------------------------------------------------------------------------


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
        ("verify", lambda: report.verified(path, findings := verify.verify(path), as_json=False) or findings),
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
                edit.extract_safetensors(result, task, output)
                report.extracted(output, ".safetensors", result.header, task, as_json=False)
    assert set(os.listdir(folder)) <= {"in.st", "out.safetensors"}, os.listdir(folder)
    return outcomes


@dataclass
class Tally:
    """What came of the cases."""

    outcomes: Counter = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)  # seconds of processor time, case
    largest: tuple[int, int] = (0, -1)  # megabytes that the process grew by at most in one case, case
    failures: list[tuple[int, str, bytes]] = field(default_factory=list)


def run(count, seed=0):
    """Try `count` cases; each depends on its number and the seed alone."""
    tally = Tally()
    shown = io.StringIO()
    before = console.out, console.err, sys.stdout
    console.out = console.err = Console(file=shown, markup=False, highlight=False, soft_wrap=True)
    sys.stdout = shown
    try:
        with tempfile.TemporaryDirectory() as folder:
            for case in range(count):
                rng = random.Random(f"{seed}/{case}")
                file = rng.choice(MUTATIONS)(rng, rng.choice(FILES))
                began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                try:
                    with within(SECONDS):
                        tally.outcomes.update(read_everything(file, Path(folder)))
                    bad = {c for c in shown.getvalue() if not c.isprintable() and c != "\n"}
                    assert not bad, f"shown: {bad}"
                except Exception as error:
                    tally.failures.append((case, f"{type(error).__name__}: {error}", file))
                shown.seek(0)
                shown.truncate()
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024
                tally.slowest = max(tally.slowest, (time.process_time() - began, case))
                tally.largest = max(tally.largest, (grown, case))
    finally:
        console.out, console.err, sys.stdout = before
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    tally = run(options.count, options.seed)
    for outcome, times in sorted(tally.outcomes.items()):
        print(f"{times:7,} {outcome}")
    print(f"slowest: {tally.slowest[0]:.2f} s (case {tally.slowest[1]})")
    print(f"largest: {tally.largest[0]} MB more (case {tally.largest[1]})")
    for case, problem, file in tally.failures[:20]:
        Path("fuzz-failures").mkdir(exist_ok=True)
        Path("fuzz-failures", f"{case}.st").write_bytes(file)
        print(f"case {case}: {problem[:300]}")
    print(f"{len(tally.failures)} of {options.count:,} cases failed")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
