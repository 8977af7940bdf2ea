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


def test_claim_free_takes_only_the_free():
    """Everything free, and nothing else, is the new task's."""
    assert masks.claim_free(np.array([0, 1, 2, 0], np.uint8), 3).tolist() == [3, 1, 2, 3]


def test_free_unseen_frees_what_comes_later():
    """And with task 0 everything."""
    mask = np.array([0, 1, 2, 255], np.uint8)
    assert masks.free_unseen(mask, 1).tolist() == [0, 1, 0, 0]
    assert masks.free_unseen(mask, 0).tolist() == [0, 0, 0, 0]


def test_release_count_rounds():
    """round(p * n), as the command line promises."""
    assert [masks.release_count(n, 0.75) for n in (0, 1, 2, 3, 1000)] == [0, 1, 2, 2, 750]
