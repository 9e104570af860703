"""Remarks on the clean frames themselves: still pictures, held ones, a loop."""

import numpy as np
import pytest

from edge_monitor.offline.frame_remarks import frame_remarks
from edge_monitor.types import StatRow


def rows_of(pictures):
    """Rows that show the pictures of these numbers."""
    nothing = np.zeros(0)
    return [
        StatRow(i, i, 0, nothing, nothing.astype(np.int64), fingerprint=1000 + picture)
        for i, picture in enumerate(pictures)
    ]


def remarks_on(pictures):
    return list(frame_remarks(rows_of(pictures)))


@pytest.mark.parametrize("pictures", [range(400), [*range(396), 5, 5, 5, 5]])
def test_fresh_frames_and_a_few_repeats_are_not_worth_a_word(pictures):
    assert remarks_on(pictures) == []


def test_a_picture_that_never_varies():
    (told,) = remarks_on([7] * 400)
    assert told.startswith("all 400 frames are the same picture bit for bit")


def test_held_frames_are_counted_and_their_setting_is_named():
    """A camera of half the rate: every picture comes twice."""
    told, setting = remarks_on(np.repeat(np.arange(200), 2).tolist())
    assert told.startswith(
        "200 of 400 frames repeat an earlier one bit for bit, 200 of them the one just before"
    )
    assert "INPUT_FROZEN" in setting
    assert "repeats_by_nature: true" in setting


def test_a_loop_of_frames_is_no_frozen_camera():
    (told,) = remarks_on([*range(100)] * 4)
    assert told.startswith(
        "300 of 400 frames repeat an earlier one bit for bit, 0 of them the one just before"
    )
