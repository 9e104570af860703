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
def test_default_taps_of_one_size_are_the_first_the_middle_and_the_last(readable, chosen):
    assert default_taps(dict.fromkeys(readable, 7)) == list(chosen)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([9, 2, 2, 2, 2], "bce"),
        ([9, 9, 2, 2, 2], "ace"),  # the third of five is not early any more
        ([2, 1, 1, 1], "acd"),
        ([9, 9, 2, 2, 3, 4, 5, 6, 7], "cei"),
    ],
)
def test_the_early_tap_is_the_one_with_least_to_read_in_the_first_quarter(sizes, chosen):
    assert default_taps(dict(zip("abcdefghi", sizes, strict=False))) == list(chosen)
