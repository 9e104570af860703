"""What is tapped when nobody says what."""

import pytest

from edge_monitor.taps.candidates import default_taps


@pytest.mark.parametrize(
    ("readable", "chosen"),
    [
        ("", ""),
        ("a", "a"),
        ("ab", "ab"),
        ("abc", "abc"),
        ("abcde", "ace"),
        ("abcdefg", "adg"),
    ],
)
def test_default_taps_are_the_first_the_middle_and_the_last_in_order(readable, chosen):
    assert default_taps(list(readable)) == list(chosen)
