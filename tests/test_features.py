"""Features of every tap against their slow twin."""

import naive
import numpy as np
from five_taps import (
    N_FEATURES,
    N_STATISTICS,
    PICTURE,
    TAPS,
    block_of,
    draw,
    draw_picture,
    split,
    statistics_of,
)
from maps import no_tracts
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.features import FeatureBank


def test_levels_equal_their_twin():
    rng = np.random.default_rng(1)
    floor = rng.uniform(0, 1, sum(N_FEATURES))
    bank = FeatureBank(TAPS, floor, no_tracts(TAPS).gate)
    for frames in (1, 2, 5):
        activations = draw(rng, frames)
        present = rng.random(len(TAPS)) < 0.7
        for picture in (draw_picture(rng), draw_picture(rng), PICTURE, None):
            usable = present.copy()
            usable[0] &= picture is not None and np.isfinite(picture[:N_STATISTICS]).all()
            known = PICTURE if picture is None else picture
            parts = zip(
                activations, TAPS, split(floor, N_FEATURES), usable, statistics_of(TAPS, known), strict=True
            )
            expected = [
                naive.levels(a, tap.grid, x) + f if there else np.full(tap.n_features, np.nan)
                for a, tap, f, there, x in parts
            ]
            found = present.copy()
            got = bank.update(block_of(activations, present=present), picture, found)
            assert_allclose(got[: bank.n_features], np.concatenate(expected), rtol=1e-12)
            assert_array_equal(found, usable)
