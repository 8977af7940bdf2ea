"""Damage and malice at random: mutations of whole files, of their bytes, their tensors, their metadata."""

import copy
import json
import struct
import tempfile
from pathlib import Path

import numpy as np

from packnet_cli.artifact import format, header, ship

GOLDEN = Path(__file__).with_name("golden.st").read_bytes()


def compact(dtype):
    """The golden file as a compact one."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "golden.st"), Path(folder, "compact.st")
        source.write_bytes(GOLDEN)
        ship.make_compact(source, output, dtype=dtype)
        return output.read_bytes()


FILES = [GOLDEN, compact("float32"), compact("bfloat16")]
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
    text = json.dumps(fields) if rng.random() < 0.1 else seal(fields)
    if rng.random() < 0.02:
        text = sealed(rng.choice(HUGE)())
    outer["__metadata__"]["packnet"] = text
    return pack(outer, data)


def seal(fields):
    """Any fields as a writer lays them out, under a seal that holds."""
    return sealed(json.dumps(fields, sort_keys=True, separators=(",", ":"))[1:])


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
