"""Fits of the functional residual: planted laws, ridge regression by another implementation, odd rows."""

import itertools

import msgspec
import numpy as np
import pytest
from maps import no_tracts
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from edge_monitor.connectivity import ConnectivityTracker
from edge_monitor.kernels.residual import WARM, WARM_SLOW
from edge_monitor.offline.residual import FLOOR, LEAST_SLOW, MIN_ROWS, RIDGE, fit_residual
from edge_monitor.types import PICTURE, SpatialBlock, StatRow, TapSpec

TAPS = (
    TapSpec("input", (3, 4, 4), (3, 2, 2)),
    TapSpec("conv", (8, 4, 4), (4, 2, 2)),
    TapSpec("wide", (70, 1, 1), (4, 1, 1)),
)
ENDS = np.cumsum([0, *(tap.n_features for tap in TAPS)])
PARTS = [slice(a, b) for a, b in itertools.pairwise(ENDS.tolist())]
ALL = np.ones(len(TAPS), bool)


def row_of(levels, taps=TAPS, frames=1):
    """A row with these features, all taps one after the other; channels of one group are alike."""
    channels, voxels = [], []
    for tap, x in zip(taps, np.split(levels, np.cumsum([t.n_features for t in taps])[:-1]), strict=True):
        edges = tap.group_edges()
        group = np.searchsorted(edges, np.arange(tap.n_channels), side="right") - 1
        channels.append(x[group] * (tap.size // tap.n_channels))
        voxels.append(x[len(edges) - 1 :] * tap.voxel_counts())
    sums = frames * np.concatenate(voxels)
    present = np.ones(len(taps), bool)
    block = SpatialBlock(
        frames, present, np.stack([sums, sums, sums], axis=1), frames * np.concatenate(channels)
    )
    return StatRow(0, 0, 0, np.ones(len(taps)), np.zeros(len(taps), np.int64), 0, spatial=block)


def planted(n, seed=0, noise=0.02, law_seed=7):
    """Levels (n, n_features) that follow a linear law in logs from one tap to the next."""
    laws, rng = np.random.default_rng(law_seed), np.random.default_rng(seed)
    sizes = [tap.n_features for tap in TAPS]
    x = rng.uniform(-1, 1, (n, 4)) @ laws.normal(0, 0.4, (4, sizes[0]))
    logs = [x + noise * rng.normal(size=x.shape)]
    for m, k in itertools.pairwise(sizes):
        x = logs[-1] @ laws.normal(0, m**-0.5, (m, k)) + laws.normal(0, 1, k)
        logs.append(x + noise * rng.normal(size=x.shape))
    return np.exp(np.hstack(logs))


def rows_of(levels, **options):
    return [row_of(x, **options) for x in levels]


def matrices(fit):
    """Weights of every tap."""
    shapes = [(1, ENDS[1]), *((2 * a.n_features + 1, b.n_features) for a, b in itertools.pairwise(TAPS))]
    parts = np.split(fit.weights, np.cumsum([m * n for m, n in shapes])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def off(fit, levels):
    """What the fit leaves over of every log feature, in double precision."""
    logs = np.log(levels + fit.floor)
    bounded = np.clip(logs, fit.low, fit.high)
    left = logs.copy()
    for k, weights in enumerate(matrices(fit)):
        before = bounded[:, PARTS[k - 1]] if k else np.empty((len(logs), 0))
        inputs = np.hstack([before, np.exp(before), np.ones((len(logs), 1))])
        left[:, PARTS[k]] -= inputs @ weights
    return left


def live(fit, levels, **options):
    """Residual of every tap and row, as the device says."""
    tracker = ConnectivityTracker(TAPS, fit, no_tracts(TAPS))
    return np.array([tracker.update(row.spatial, None, ALL).residual for row in rows_of(levels, **options)])


@pytest.fixture(scope="module")
def clean():
    return planted(1200)


@pytest.fixture(scope="module")
def fit(clean):
    return fit_residual(TAPS, rows_of(clean))


def test_a_planted_law_is_recovered(fit):
    """On rows never seen, hardly more is left over than the noise that nobody can predict."""
    left = off(fit, planted(400, seed=1))
    for part in PARTS[1:]:
        assert 0.02 < left[:, part].std() < 1.6 * 0.02 * np.sqrt(2)
    logs = np.log(planted(400, seed=1))
    assert logs[:, PARTS[1]].std(axis=0).mean() > 10 * left[:, PARTS[1]].std()


def test_tap_0_is_compared_with_its_own_mean(clean, fit):
    n = len(clean) * 2 // 3
    assert_allclose(matrices(fit)[0][0], np.log(clean + fit.floor)[:n, PARTS[0]].mean(axis=0), rtol=1e-12)


def test_clean_rows_have_a_residual_of_at_most_about_one(clean, fit):
    """At most 1 on the rows that set the scale, which a warm-up precedes; hardly more on fresh ones."""
    own = live(fit, clean[len(clean) * 2 // 3 :])
    assert np.isnan(own[:7]).all()
    assert np.nanmax(own) <= 1 + 1e-3
    assert np.nanmax(own, axis=0).min() > 0.6
    fresh = live(fit, planted(400, seed=2))[8:]
    assert np.mean(fresh < 1) > 0.97
    assert fresh.max() < 1.4


@pytest.mark.parametrize("tap", [1, 2])
def test_what_breaks_the_law_stands_out(fit, tap):
    for feature in range(ENDS[tap], ENDS[tap + 1], 5):
        broken = planted(40, seed=3)
        broken[:, feature] *= 0.5
        residual = live(fit, broken)[-1]
        assert residual[tap] > 1.5
        assert residual[tap - 1] < 1.4


def test_scenes_cancel(fit):
    """A scene as bright as any before moves the features themselves far more than what is left of them."""
    levels = planted(400, seed=4)
    raw = np.log(levels) - np.log(levels).mean(axis=0)
    assert (off(fit, levels)[:, PARTS[1]].std(axis=0) < 0.5 * raw[:, PARTS[1]].std(axis=0)).all()


def test_ridge_equals_scikit_learns(clean, fit):
    """The same penalty on the same standardised inputs."""
    n = len(clean) * 2 // 3
    logs = np.log(clean + fit.floor)
    assert_allclose(fit.low, logs[:n].min(axis=0), rtol=1e-12)
    assert_allclose(fit.high, logs[:n].max(axis=0), rtol=1e-12)
    fresh = np.clip(np.log(planted(50, seed=5) + fit.floor), fit.low, fit.high)
    for k, weights in enumerate(matrices(fit)[1:]):
        before, own = PARTS[k], PARTS[k + 1]
        scaler = StandardScaler()
        x = scaler.fit_transform(np.hstack([logs[:n, before], np.exp(logs[:n, before])]))
        ridge = Ridge(alpha=RIDGE * n, solver="svd").fit(x, logs[:n, own])
        inputs = np.hstack([fresh[:, before], np.exp(fresh[:, before])])
        expected = ridge.predict(scaler.transform(inputs))
        assert_allclose(inputs @ weights[:-1] + weights[-1], expected, rtol=1e-8, atol=1e-9)
        assert_allclose(weights[:-1], ridge.coef_.T / scaler.scale_[:, None], rtol=1e-7, atol=1e-9)


def test_frames_per_block_do_not_matter(clean, fit):
    """Sums over several frames are divided by them, at calibration as on the device."""
    tripled = fit_residual(TAPS, rows_of(clean, frames=3))
    for name in fit.__struct_fields__:
        assert_allclose(getattr(tripled, name), getattr(fit, name), rtol=1e-6, atol=1e-9, err_msg=name)
    fresh = planted(30, seed=6)
    assert_allclose(live(fit, fresh, frames=4), live(fit, fresh), rtol=1e-3, atol=1e-4)


def test_the_unit_of_activations_does_not_matter(clean):
    """Floors are shares of the clean levels."""
    fits = [fit_residual(TAPS, rows_of(clean[:300] * unit)) for unit in (1.0, 1e-4, 1e6)]
    fresh = planted(30, seed=7)
    expected = live(fits[0], fresh)
    for fit, unit in zip(fits[1:], (1e-4, 1e6), strict=True):
        assert_allclose(live(fit, fresh * unit), expected, rtol=1e-2, atol=1e-3)


def test_live_residual_is_as_precise_as_the_fit(clean):
    """Also where a feature hardly varies, whatever follows from its tiny changes in calibration."""
    for share in (1e-2, 1e-3, 1e-5, 1e-7, 1e-10):
        levels = clean[:600].copy()
        steady = np.random.default_rng(8).normal(size=(600, 4))
        levels[:, :4] = 5.0 * (1 + share * steady)
        levels[:, PARTS[1]] *= np.exp(0.3 * steady.sum(axis=1))[:, None]
        fit = fit_residual(TAPS, rows_of(levels))
        expected = reference(fit, levels)
        assert_allclose(live(fit, levels)[8:], expected[8:], atol=0.01)


def reference(fit, levels):
    """Residual of every tap and row in double precision."""
    whitening = np.split(fit.whitening, np.cumsum([tap.n_features**2 for tap in TAPS])[:-1])
    smooth, rows = np.zeros(ENDS[-1]), []
    for left in np.clip(off(fit, levels), -20, 20):
        smooth = smooth + 2 / 9 * (left - smooth)
        rows.append(
            [
                np.linalg.norm(smooth[part] @ matrix.reshape(tap.n_features, -1))
                for part, matrix, tap in zip(PARTS, whitening, TAPS, strict=True)
            ]
        )
    return np.array(rows)


@pytest.mark.parametrize("value", [0.0, 1e-20, 0.7])
def test_dead_features_predict_nothing_and_are_noticed_when_they_wake(clean, value):
    """One channel of the input's, one of a layer's, and a whole tap that never varied."""
    dead = [1, ENDS[1] + 2, *range(ENDS[2], ENDS[3])]
    levels = clean[:600].copy()
    levels[:, dead] = value
    fit = fit_residual(TAPS, rows_of(levels))
    for name in fit.__struct_fields__:
        assert np.isfinite(getattr(fit, name)).all(), name
    weights = matrices(fit)
    n = [tap.n_features for tap in TAPS]
    assert_array_equal(weights[1][[1, n[0] + 1]], 0.0)
    assert_array_equal(weights[2][[2, n[1] + 2]], 0.0)
    assert np.nanmax(live(fit, levels[400:])) < 1.01
    awake = planted(40, seed=9)
    awake[:, dead] = value
    awake[:, ENDS[1] + 2] = 2.0
    residual = live(fit, awake)[-1]
    assert residual[1] > 3
    assert residual[2] < 1.4


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 24, 25, MIN_ROWS - 1])
def test_too_few_rows_give_a_map_that_alarms_at_nothing(n):
    fit = fit_residual(TAPS, rows_of(planted(n)))
    for name in fit.__struct_fields__:
        assert np.isfinite(getattr(fit, name)).all(), name
    assert (fit.floor > 0).all()
    assert (fit.limit > 0).all()
    assert_array_equal(live(fit, planted(12, seed=10))[8:], 0.0)


@pytest.mark.parametrize("n", [MIN_ROWS, MIN_ROWS + 1, 60])
def test_just_enough_rows(n):
    """Fewer than features: shrinkage keeps the whitening finite, and what was seen stays in range."""
    fit = fit_residual(TAPS, rows_of(planted(n)))
    for name in fit.__struct_fields__:
        assert np.isfinite(getattr(fit, name)).all(), name
    own = live(fit, planted(n)[n * 2 // 3 :])[7:]
    assert 0.1 < own.max() <= 1 + 1e-3


def test_rows_without_a_whole_block_are_left_out(clean, fit):
    rows = rows_of(clean)
    junk = row_of(clean[0] * 1e6)
    lacking = msgspec.structs.replace(junk.spatial, taps=np.array([True, False, True]))
    mixed = []
    for i, row in enumerate(rows):
        mixed.append(row)
        if i % 5 == 0:
            mixed.append(msgspec.structs.replace(junk, spatial=None))
            mixed.append(msgspec.structs.replace(junk, spatial=lacking))
    again = fit_residual(TAPS, mixed)
    for name in fit.__struct_fields__:
        assert_array_equal(getattr(again, name), getattr(fit, name), err_msg=name)


def test_same_rows_same_numbers(clean, fit):
    again = fit_residual(TAPS, rows_of(clean))
    for name in fit.__struct_fields__:
        assert_array_equal(getattr(again, name), getattr(fit, name), err_msg=name)


def test_floors_are_a_share_of_the_fitted_part(clean, fit):
    mean = clean[: len(clean) * 2 // 3].mean(axis=0)
    tap_mean = np.concatenate([np.full(p.stop - p.start, mean[p].mean()) for p in PARTS])
    assert_allclose(fit.floor, FLOOR * mean + 1e-3 * tap_mean, rtol=1e-9)


def test_workstation_weights_are_kept_while_the_whitening_is_fitted_again(clean, fit):
    """The device's kernels give all of a tap 1 % more and twice the noise."""
    rng = np.random.default_rng(11)
    device = planted(600, seed=12)
    device[:, PARTS[1]] *= 1.01 * np.exp(0.05 * rng.normal(size=(600, TAPS[1].n_features)))
    again = fit_residual(TAPS, rows_of(device), workstation=fit)
    for name in ("floor", "low", "high", "weights"):
        assert_array_equal(getattr(again, name), getattr(fit, name), err_msg=name)
    assert np.nanmax(live(fit, device)[:, 1]) > 1.5
    assert np.nanmax(live(again, device[400:])) <= 1 + 1e-3
    assert (again.limit[PARTS[1]] > fit.limit[PARTS[1]]).mean() > 0.9


def test_workstation_weights_survive_a_device_without_rows(fit):
    again = fit_residual(TAPS, [], workstation=fit)
    assert_array_equal(again.weights, fit.weights)
    assert_array_equal(again.whitening, 0.0)


# The picture: features of the input behind its voxels, and its sudden shift.

PICTURED = (msgspec.structs.replace(TAPS[0], picture=(2, 1)), *TAPS[1:])
N_PICTURE = PICTURED[0].n_statistics
STATISTICS = slice(ENDS[1], ENDS[1] + N_PICTURE)


def pictures(n, seed=0, noise=0.03):
    """Statistics that follow the scene slowly, each with its own noise; the motion behind them is unknown."""
    rng = np.random.default_rng(seed)
    scene = np.cumsum(0.02 * rng.normal(size=n))
    scene -= np.linspace(0, scene[-1], n)
    logs = scene[:, None] * np.tile([0.5, 0.4, 0.6, 0.2, 0.2, 0.0, 0.0], N_PICTURE // len(PICTURE))
    table = np.full((n, PICTURED[0].n_picture), np.nan)
    table[:, :N_PICTURE] = np.exp(logs + noise * rng.normal(size=logs.shape)) * np.linspace(
        0.01, 0.2, N_PICTURE
    )
    return table


def pictured(levels, table):
    return [msgspec.structs.replace(row, picture=x) for row, x in zip(rows_of(levels), table, strict=True)]


@pytest.fixture(scope="module")
def seen():
    """Rows with statistics, and what was learned from them."""
    rows = pictured(planted(2400), pictures(2400))
    return rows, fit_residual(PICTURED, rows)


def shifts(fit, rows):
    """Shift after every row, NaN while unknown."""
    tracker = ConnectivityTracker(PICTURED, fit, no_tracts(PICTURED))
    return np.array([tracker.update(row.spatial, row.picture, ALL).shift[0] for row in rows])


def test_statistics_stand_behind_the_voxels_of_the_input(seen):
    rows, fit = seen
    n = len(rows) * 2 // 3
    table = np.array([row.picture[:N_PICTURE] for row in rows])[:n]
    plain = [msgspec.structs.replace(row, picture=None) for row in rows]
    kinds = table.mean(axis=0).reshape(-1, len(PICTURE)).mean(axis=0)
    assert_allclose(fit.floor[STATISTICS], FLOOR * table.mean(axis=0) + 1e-3 * np.tile(kinds, 2), rtol=1e-9)
    logs = np.log(table + fit.floor[STATISTICS])
    assert_allclose(fit.low[STATISTICS], logs.min(axis=0), rtol=1e-12)
    assert_allclose(fit.weights[STATISTICS], logs.mean(axis=0), rtol=1e-12)
    assert_allclose(fit.floor[STATISTICS.stop :], fit_residual(TAPS, plain).floor[ENDS[1] :], rtol=1e-12)


def test_rows_without_a_picture_before_them_are_left_out(seen):
    rows, fit = seen
    blind = msgspec.structs.replace(rows[0], picture=None)
    first = msgspec.structs.replace(rows[0], picture=np.r_[np.nan, rows[0].picture[1:]])
    again = fit_residual(PICTURED, [blind, first, *rows[:700], blind, *rows[700:], first])
    for name in fit.__struct_fields__:
        assert_array_equal(getattr(again, name), getattr(fit, name), err_msg=name)


def test_clean_rows_shift_by_at_most_about_one(seen):
    rows, fit = seen
    found = shifts(fit, rows)
    assert np.isnan(found[: WARM_SLOW - 1]).all()
    assert 0.4 < np.nanmax(found[len(rows) * 2 // 3 + LEAST_SLOW :]) <= 1.01
    fresh = shifts(fit, pictured(planted(900, seed=20), pictures(900, seed=20)))[WARM_SLOW:]
    assert np.mean(fresh < 1) > 0.97
    assert fresh.max() < 1.6


@pytest.mark.parametrize("statistic", range(len(PICTURE)))
def test_a_statistic_that_jumps_is_a_shift_until_it_is_the_usual(seen, statistic):
    fit = seen[1]
    levels, table = planted(700, seed=21), pictures(700, seed=21)
    table[200:, statistic] *= 1.8
    found = shifts(fit, pictured(levels, table))
    assert found[150:200].max() < 1.6
    assert found[200 : 200 + WARM].max() > 2.0
    assert found[500:].max() < 1.6


@pytest.mark.parametrize("n", [0, 25, MIN_ROWS, 3 * (MIN_ROWS + WARM_SLOW), 600, 3 * (LEAST_SLOW + MIN_ROWS)])
def test_a_stream_too_short_for_the_slow_mean_has_no_shift(seen, n):
    """Nothing is measured on rows in which the slow mean still remembers where it began."""
    fit = fit_residual(PICTURED, seen[0][:n])
    assert_array_equal(fit.shift, 0.0)
    assert_array_equal(shifts(fit, seen[0][:120])[WARM_SLOW:], 0.0)
