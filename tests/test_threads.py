"""Work shared out among threads."""

import pytest

from packnet_cli.artifact.threads import in_threads


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_results_come_in_order(count):
    assert in_threads(lambda item: item * item, range(count)) == [item * item for item in range(count)]


def test_what_one_thread_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // (item - 5), range(10))
