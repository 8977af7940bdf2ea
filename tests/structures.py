"""Strategies of hypothesis: whole artifacts of any structure, and such with faults in what they say of themselves."""

import dataclasses
import json
import struct

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mutations import DTYPES, NAMES, NUMBERS, SHAPES, digests, seal

from packnet_cli.artifact import codec, compact, format, header, masks
from packnet_cli.artifact.format import Artifact, Header, Task

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [n for n in NAMES if n.isprintable()]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
floats = st.floats(width=32)  # NaN, infinities, -0 and subnormal ones among them
percentages = st.floats(0, 100)
shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
trees = st.recursive(st.integers(0, 4), lambda inner: st.lists(inner, min_size=2, max_size=2), max_leaves=5)

# --- whole artifacts ------------------------------------------------------------------------------------------------


@st.composite
def artifacts(draw):
    """What a writer may write: some layers, up to three tasks, of which older ones may be removed."""
    layers = draw(st.dictionaries(names, shapes, max_size=2)) | {draw(names): draw(shapes.filter(np.prod))}
    count = draw(st.integers(0, 3))
    gone = draw(st.sets(st.integers(1, max(1, count - 1)))) if count > 1 else set()
    shared = {name: draw(arrays(np.float32, shape, elements=floats)) for name, shape in layers.items()}
    mask = {name: draw(arrays(np.uint8, shape, elements=st.integers(0, count))) for name, shape in layers.items()}
    kinds = draw(st.dictionaries(names.filter(lambda name: name not in layers), some_array(), max_size=3))
    own = tuple({} if k in gone else {name: draw(kind) for name, kind in kinds.items()} for k in range(count + 1))
    artifact = format.make(draw(headers()), shared, mask, own)
    owned = {k: {name: masks.count_owned(array, k) for name, array in mask.items()} for k in range(1, count + 1)}
    titles = draw(
        st.lists(st.from_regex(r"[a-z][a-z\[\]/.☃]{0,8}", fullmatch=True), min_size=3, max_size=3, unique=True)
    )
    tasks = [
        draw(entries(index, f"{titles[index - 1]}!", owned[index], artifact.digest(index)))
        for index in owned
        if index not in gone
    ]
    removed = {index: owned[index] for index in gone}
    about = dataclasses.replace(artifact.header, tasks=tuple(tasks), removed=removed)
    return dataclasses.replace(artifact, header=about)


def some_array():
    """A strategy for the arrays of one type and shape, which each task has one of."""
    kinds = st.sampled_from([(np.float32, floats), (np.int64, st.integers(-9, 9))])
    return st.builds(lambda kind, shape: arrays(kind[0], shape, elements=kind[1]), kinds, shapes)


def headers():
    kwargs = st.dictionaries(st.sampled_from(["pad_type", "drop_rate", "x"]), documents, max_size=2)
    size = st.lists(st.integers(1, 512), min_size=3, max_size=3)
    config = st.builds(
        lambda more, size: more | {"input_size": size}, st.dictionaries(names, documents, max_size=2), size
    )
    return st.builds(Header, st.just("net"), kwargs, st.just(("fc",)), names, config)


def entries(index, name, owned, digest):
    return st.builds(
        Task,
        index=st.just(index),
        name=st.just(name),
        classes=st.lists(names, min_size=1, max_size=3).map(tuple),
        prune=st.floats(0, 1, exclude_max=True),
        owned=st.just(owned),
        accuracy=st.dictionaries(names, percentages, max_size=2),
        top1=st.none() | percentages,
        top5=st.none() | percentages,
        images=st.integers(0, 2**40),
        data=names,
        recipe=st.dictionaries(names, documents, max_size=3),
        search=st.dictionaries(names, percentages, max_size=2),
        digest=st.just(digest),
        skipped=st.integers(0, 9),
    )


def parts(artifact: Artifact, dtype: str | None):
    """The metadata's fields and the tensors of an artifact, or of the compact file of one."""
    about, tensors = artifact.header, artifact.tensors()
    if dtype:
        how, tensors = compact.shrink(about, tensors, dtype)
        about = dataclasses.replace(about, tensors=format.tensor_digests(tensors), compact=how)
    fields = json.loads(header.write(about))
    del fields["seal"]
    return fields, tensors


# --- faults ---------------------------------------------------------------------------------------------------------


@st.composite
def faulty_files(draw):
    """The bytes of an artifact that has none, one or a few faults, most of them under a seal that holds."""
    artifact, dtype = draw(artifacts()), draw(st.sampled_from([None, None, "float32"]))
    fields, tensors = parts(artifact, dtype if artifact.header.tasks else None)
    outer, data = laid_out(tensors)
    for fault in draw(st.lists(st.sampled_from(FAULTS), max_size=3)):
        fault(draw, fields, outer, data)
    if draw(st.booleans()):  # the tensors as they are now, well digested
        with_faults = {key: entry for key, entry in outer.items() if isinstance(entry, dict)}
        try:
            fields["tensors"] = digests(with_faults, bytes(data))
        except (KeyError, ValueError, TypeError):  # there is no such tensor
            pass
    text = seal(fields)
    if draw(st.integers(0, 19)) == 0:
        text = draw(st.sampled_from([text[:-1], text.replace("a", "b", 1), text + " ", text[:80], ""]))
    outer["__metadata__"] = {"packnet": text} | ({"more": "x"} if draw(st.integers(0, 19)) == 0 else {})
    head = json.dumps(outer).encode(errors="surrogatepass")
    return struct.pack("<Q", len(head)) + head + data


def laid_out(tensors):
    """The header of safetensors and the data, as its own writer lays them out but for the order."""
    outer, data = {}, bytearray()
    letters = {"float32": "F32", "uint8": "U8", "int64": "I64"}
    for key, array in tensors.items():
        start = len(data)
        data += array.tobytes()
        outer[key] = {
            "dtype": letters[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, len(data)],
        }
    return outer, data


def wrong_tensor(draw, fields, outer, data):
    """Another type, shape or place: also one that lies over another's, leaves a gap, or ends beyond the file."""
    if outer:
        entry = outer[draw(st.sampled_from(sorted(outer)))]
        start, stop = entry["data_offsets"]
        other = draw(st.sampled_from(sorted(outer)))
        change = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        entry[change] = {
            "dtype": lambda: draw(st.sampled_from(DTYPES)),
            "shape": lambda: draw(st.sampled_from([*SHAPES, entry["shape"][::-1], [*entry["shape"], 1]])),
            "data_offsets": lambda: draw(
                st.sampled_from(
                    [outer[other]["data_offsets"], [start + 1, stop + 1], [stop, start], [start, stop + 4], [0, 2**63]]
                )
            ),
        }[change]()


def wrong_names(draw, fields, outer, data):
    """A tensor renamed, gone, or one too many."""
    key = draw(st.sampled_from(sorted(outer) or ["shared.w"]))
    entry = outer.pop(key, {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2})
    room = draw(
        st.sampled_from(["", "shared.", "mask.", "values.", "bits.", "task.0.", "task.1.", "task.4.", "task.256."])
    )
    for name in draw(st.lists(names | st.sampled_from(NAMES), max_size=2)):
        outer[room + name] = dict(entry)


def wrong_bytes(draw, fields, outer, data):
    """Other weights, indices or bits than were written; more of them, or fewer."""
    if data:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    change = draw(st.integers(0, 5))
    if change == 0:
        data += b"more"
    elif change == 1:
        del data[-1:]


def wrong_field(draw, fields, outer, data):
    """Anything in place of anything, in the metadata."""
    place = fields
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
            place[key] = draw(documents | st.sampled_from(NUMBERS) | st.sampled_from([inner, [inner], {"1": inner}]))
            return
        place = inner


def wrong_tasks(draw, fields, outer, data):
    """Indices, names and counts that do not go together."""
    tasks = fields["tasks"]
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        return
    task = draw(st.sampled_from(tasks))
    change = draw(st.integers(0, 4))
    if change == 0:
        task["index"] = draw(st.sampled_from([0, 1, 2, 3, 4, 255, 256, -1, True]))
    elif change == 1:
        tasks.append(task)
    elif change == 2:
        tasks.reverse()
    elif change == 3:
        tasks.remove(task)
    else:
        task["owned"] = draw(st.dictionaries(names, st.integers(0, 9), max_size=2))


def wrong_tree(draw, fields, outer, data):
    """A compact file with another tree, shape or type of numbers; or a plain one that says it is compact."""
    how = fields.get("compact")
    if not isinstance(how, dict):
        fields["format"] = draw(st.sampled_from([0, 1, 2, 3]))
        how = fields["compact"] = {"dtype": "float32", "shapes": {}, "trees": {}, "originals": {}}
    if all(isinstance(how.get(part), dict) for part in ("shapes", "trees")):
        name = draw(st.sampled_from(sorted(how["trees"]) or ["w"]))
        how["trees"][name] = draw(trees)
        if draw(st.booleans()):
            how["shapes"][name] = draw(st.sampled_from(SHAPES))
        how["dtype"] = draw(st.sampled_from([*codec.DTYPES, "int8"]))


def wrong_depth(draw, fields, outer, data):
    """Nested a little deeper than a reader may have stack for."""
    inner = []
    for _ in range(draw(st.sampled_from([10, 900, 1100]))):
        inner = [inner]
    text = draw(st.sampled_from(["recipe", "model_kwargs"]))
    fields[text] = {"x": inner}


FAULTS = [wrong_tensor, wrong_names, wrong_bytes, wrong_field, wrong_field, wrong_tasks, wrong_tree, wrong_depth]
