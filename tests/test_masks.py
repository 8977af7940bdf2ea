"""The algebra of the task-index mask."""

import numpy as np
import pytest

from packnet_cli.artifact import masks


def slow_release(mask, values, task, count):
    """The obvious twin of release_smallest: sort the task's weights by magnitude, then position, and free the first."""
    own = [i for i in range(mask.size) if mask.flat[i] == task]
    result = mask.copy()
    for i in sorted(own, key=lambda i: (abs(values.flat[i]), i))[:count]:
        result.flat[i] = 0
    return result


@pytest.mark.parametrize("seed", range(20))
def test_release_smallest_agrees_with_its_slow_twin(seed):
    """Any shape, any count, many ties."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, size=rng.integers(1, 4)))
    mask = rng.integers(0, 4, shape).astype(np.uint8)
    values = rng.integers(-3, 4, shape).astype(np.float32)
    before = mask.copy()
    for count in range(masks.count_owned(mask, 2) + 1):
        pruned = masks.release_smallest(mask, values, 2, count)
        np.testing.assert_array_equal(pruned, slow_release(mask, values, 2, count))
        assert masks.count_owned(mask, 2) - masks.count_owned(pruned, 2) == count
    np.testing.assert_array_equal(mask, before)  # nothing changes in place


@pytest.mark.parametrize("seed", range(4))
def test_release_is_exact_however_the_sample_misleads(seed, monkeypatch):
    """By pieces, and from a bracket that holds none of the cutoffs, or few."""
    monkeypatch.setattr(masks, "PIECE", 16)
    rng = np.random.default_rng(seed)
    mask, values = rng.integers(1, 3, 100).astype(np.uint8), rng.standard_normal(100).astype(np.float32)
    values[:7] = 0.0, -0.0, np.inf, -np.inf, 1e-42, 3e38, -1e-42
    keys = np.sort(np.abs(values[mask == 2])).view(np.uint32).tolist()
    for misled in ((0, keys[3]), (keys[-3], keys[-1]), (keys[9], keys[9]), (keys[5], keys[-5])):
        monkeypatch.setattr(masks, "_bracket", lambda *_, misled=misled: misled)
        for count in range(masks.count_owned(mask, 2) + 1):
            released = masks.release_smallest(mask, values, 2, count)
            np.testing.assert_array_equal(released, slow_release(mask, values, 2, count))


def test_the_sample_brackets_the_cutoff():
    """So few weights are partitioned; also of a matrix whose columns differ, of which every 2**n-th would meet few."""
    size = 4 * masks.SAMPLE
    columns = np.arange(64, dtype=np.float32)
    values = np.broadcast_to(columns, (size // 64, 64)).ravel() + np.random.default_rng(0).random(size, np.float32)
    low, high = masks._bracket(np.ones(size, np.uint8), values.view(np.int32), 1, 0.3)
    keys = values.view(np.uint32)
    assert np.count_nonzero(keys < low) < 0.3 * size < np.count_nonzero(keys <= high)
    assert np.count_nonzero((keys >= low) & (keys <= high)) < 0.05 * size


def test_release_takes_exactly_the_count_when_all_magnitudes_tie():
    """Ties go by position; a cutoff alone would release all four."""
    pruned = masks.release_smallest(np.ones(4, np.uint8), np.array([1, -1, 1, -1], np.float32), 1, 2)
    assert pruned.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("count", [-1, 3])
def test_release_refuses_more_than_there_is(count):
    """A task cannot release what it does not own."""
    with pytest.raises(ValueError, match="of 2 weights"):
        masks.release_smallest(np.array([1, 1, 2], np.uint8), np.zeros(3, np.float32), 1, count)


def test_a_task_that_owns_nothing_releases_nothing():
    """A layer in which nothing was free for the task is no special case."""
    mask = np.array([1, 1], np.uint8)
    assert masks.release_smallest(mask, np.ones(2, np.float32), 2, 0).tolist() == [1, 1]


def test_visible_is_own_and_earlier():
    """0 < m <= k, at both ends of what a uint8 holds."""
    mask = np.array([0, 1, 2, 3, 254, 255], np.uint8)
    assert masks.visible(mask, 2).tolist() == [False, True, True, False, False, False]
    assert masks.visible(mask, 255).tolist() == [False, True, True, True, True, True]


def test_keep_visible_is_exact():
    """Visible values keep their bits, a negative zero too; the rest is +0, even where it was not finite."""
    values = np.array([np.nan, -0.0, 1.5, np.inf], np.float32)
    kept = masks.keep_visible(values, np.array([0, 1, 1, 2], np.uint8), 1)
    assert kept.view(np.uint32).tolist() == np.array([0.0, -0.0, 1.5, 0.0], np.float32).view(np.uint32).tolist()


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (5, 2, 1, 3), (2, 3 * masks.PIECE), (0, 3), (3, 0)])
def test_keep_visible_in_pieces_is_the_whole(shape):
    """Whatever the shape, and also into an array whose axes lie in memory otherwise."""
    rng = np.random.default_rng(0)
    values, mask = rng.standard_normal(shape, np.float32), rng.integers(0, 4, shape, np.uint8)
    expected = np.where((mask > 0) & (mask <= 2), values, np.float32(0))
    out = np.full(shape[::-1], np.nan, np.float32).T
    assert masks.keep_visible(values, mask, 2, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(masks.keep_visible(values, mask, 2), expected)


@pytest.mark.parametrize("shape", [(), (7,), (5, 2 * masks.PIECE), (0, 3)])
def test_take_owned_is_where(shape):
    """To the bit, and whatever the memory layout; what is given stays as it is."""
    rng = np.random.default_rng(0)
    values, trained = (np.asarray(rng.standard_normal(shape), np.float32) for _ in range(2))
    mask = np.asarray(rng.integers(0, 4, shape), np.uint8)
    before = values.tobytes()
    for new, owners in ((trained, mask), (np.asfortranarray(trained), np.asfortranarray(mask))):
        taken = masks.take_owned(values, new, owners, 2)
        assert taken.shape == values.shape and taken.tobytes() == np.where(mask == 2, trained, values).tobytes()
    assert values.tobytes() == before


def test_owners_kept_sees_what_changed_hands():
    before = np.array([[0, 1], [2, 0]], np.uint8)
    assert masks.owners_kept(np.array([[3, 1], [2, 0]], np.uint8), before)
    for other in ([[0, 1], [3, 0]], [[0, 0], [2, 0]], [[3, 2], [2, 3]]):
        assert not masks.owners_kept(np.array(other, np.uint8), before)


def test_what_differs_in_a_bit_in_type_or_in_shape_is_not_the_same():
    """-0 equals 0, and all bits are 0 of either type; but a NaN is the same as itself."""
    zeros, odd = np.zeros(2, np.float32), np.array([np.nan, -0.0], np.float32)
    assert masks.same_bits(odd, odd.copy())
    for other in (-zeros, zeros.view(np.int32), zeros.reshape(1, 2)):
        assert not masks.same_bits(zeros, other)


def test_a_lone_number_is_an_array_too():
    mask = np.array(0, np.uint8)
    assert isinstance(masks.claim_free(mask, 3), np.ndarray) and masks.claim_free(mask, 3) == 3
    assert isinstance(masks.free_unseen(mask, 3), np.ndarray)


def test_claim_free_takes_only_the_free():
    """Everything free, and nothing else, is the new task's."""
    assert masks.claim_free(np.array([0, 1, 2, 0], np.uint8), 3).tolist() == [3, 1, 2, 3]


def test_counts_across_layers_by_magnitude():
    """The smallest of all layers together, whatever layer they lie in."""
    layers = {"a": np.array([5, 1, 3], np.float32), "b": np.array([2, 4], np.float32), "c": np.empty(0, np.float32)}
    for count, expected in ((0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), (4, [2, 2, 0]), (5, [3, 2, 0])):
        assert list(masks.counts_across(layers, count, adaptive=False).values()) == expected


@pytest.mark.parametrize("shape", [(), (7,), (5, 2 * masks.PIECE), (0, 3)])
def test_counts_by_owner_are_those_of_each_task(shape):
    mask = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert masks.count_by_owner(mask) == [masks.count_owned(mask, task) for task in range(256)]


def test_counts_across_layers_by_lamp():
    """Against the definition, written out; and a layer's largest weight outlives all others, however small it is."""
    rng = np.random.default_rng(0)
    layers = {
        "a": rng.random(40, np.float32),
        "b": rng.random(9, np.float32) ** 3,
        "c": rng.random(4, np.float32) / 1e4,
    }
    scores = [
        (w**2 / sum(v**2 for v in own.tolist() if v >= w), name) for name, own in layers.items() for w in own.tolist()
    ]
    for count in range(len(scores) + 1):
        smallest = [name for _, name in sorted(scores)[:count]]
        counts = masks.counts_across(layers, count, adaptive=True)
        assert counts == {name: smallest.count(name) for name in layers}, count
    assert all(masks.counts_across(layers, 50, adaptive=True)[name] < own.size for name, own in layers.items())


@pytest.mark.parametrize("adaptive", [False, True])
def test_counts_across_layers_add_up(adaptive):
    """Exactly as many as asked for: with ties, with zeros, and where a sample stands for a large layer."""
    rng = np.random.default_rng(0)
    layers = {
        "tied": np.ones(1000, np.float32),
        "zero": np.zeros(77, np.float32),
        "large": rng.random(masks.SAMPLE * 3 + 5, np.float32),
    }
    whole = sum(own.size for own in layers.values())
    for count in (0, 1, 500, whole // 2, whole - 1, whole):
        counts = masks.counts_across(layers, count, adaptive=adaptive)
        assert sum(counts.values()) == count
        assert all(0 <= counts[name] <= own.size for name, own in layers.items())


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_sample_stands_for_its_whole_layer(adaptive, monkeypatch):
    """Against a layer that is looked at whole, it releases about as many as if all of it were looked at."""
    rng = np.random.default_rng(0)
    layers = {"large": rng.random(20_000, np.float32), "small": rng.random(900, np.float32) / 4}
    whole = masks.counts_across(layers, 3000, adaptive=adaptive)
    monkeypatch.setattr(masks, "SAMPLE", 1000)
    sampled = masks.counts_across(layers, 3000, adaptive=adaptive)
    assert 0 < whole["small"] < 900 and sampled == {name: pytest.approx(n, rel=0.1) for name, n in whole.items()}


def test_free_unseen_frees_what_comes_later():
    """And with task 0 everything."""
    mask = np.array([0, 1, 2, 255], np.uint8)
    assert masks.free_unseen(mask, 1).tolist() == [0, 1, 0, 0]
    assert masks.free_unseen(mask, 0).tolist() == [0, 0, 0, 0]


def test_release_in_any_memory_layout():
    """Ties go by position, also where an array is not laid out row by row."""
    mask, values = np.ones((3, 4), np.uint8), np.ones((3, 4), np.float32)
    rows = masks.release_smallest(mask, values, 1, 5)
    columns = masks.release_smallest(np.asfortranarray(mask), np.asfortranarray(values), 1, 5)
    assert rows.tolist() == columns.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
