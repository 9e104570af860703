"""Ring of rows against a list that keeps everything."""

import numpy as np
import pytest

from edge_monitor.kernels.ring import latest, push


@pytest.mark.parametrize(("length", "columns"), [(1, 1), (2, 3), (7, 2), (32, 5)])
def test_latest_is_the_end_of_all_that_was_pushed(length, columns):
    rng = np.random.default_rng(length)
    ring = np.full((length, columns), -1.0)
    everything = [np.full(columns, -1.0)] * length
    for frame in range(3 * length + 2):
        row = rng.normal(size=columns)
        row[frame % columns] = rng.choice([np.nan, np.inf, 0.0])
        push(row, frame, ring)
        everything.append(row)
        for count in range(1, length + 1):
            for column in range(columns):
                out = np.empty(count)
                latest(ring, frame, column, out)
                np.testing.assert_array_equal(out, np.array(everything)[-count:, column])


def test_latest_of_nothing_writes_nothing():
    ring, out = np.ones((4, 2)), np.empty(0)
    latest(ring, 3, 1, out)
    np.testing.assert_array_equal(ring, np.ones((4, 2)))
