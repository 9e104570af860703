"""Asking for memory early: it has no effect but on time."""

import numpy as np
import pytest

from edge_monitor.kernels.cache import LINE, fetch_row


@pytest.mark.parametrize(("first", "n"), [(0, 0), (0, 1), (3, LINE), (5, 2 * LINE + 1), (0, 40), (39, 1)])
def test_fetching_changes_nothing(first, n):
    array = np.arange(40.0)
    fetch_row(array, first, n)
    np.testing.assert_array_equal(array, np.arange(40.0))


def test_fetching_beyond_the_end_is_harmless():
    """A hint never faults."""
    array = np.zeros(1)
    fetch_row(array, -(2**40), 1)
    assert array.tolist() == [0.0]
