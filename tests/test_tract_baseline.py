"""Tracts of the region map, from images of a small network to what the device watches."""

import itertools

import models
import msgspec
import numpy as np
import pytest
from maps import no_residual, no_tracts
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit

from edge_monitor.config import FrameSettings
from edge_monitor.connectivity import ConnectivityTracker
from edge_monitor.offline.live_tracts import LiveTracts, estimate_live
from edge_monitor.offline.observe import observe
from edge_monitor.offline.tract_baseline import ACTIVE, FAITHFUL, trace_tracts, watch_tracts
from edge_monitor.offline.tracts import TractTracer
from edge_monitor.types import SpatialBlock, StatRow, TapSpec


def look(folder, model, n, shape, taps=None):
    """Rows and images of a network over images of changing brightness and contrast."""
    rng = np.random.default_rng(1)
    axes = (n, *(1,) * len(shape))
    light, contrast = rng.uniform(-0.5, 1.0, axes), rng.uniform(0.2, 2.0, axes)
    frames = light + contrast * rng.normal(size=(n, *shape))
    (folder / "model.onnx").write_bytes(model)
    np.save(folder / "frames.npy", frames.astype(np.float32))
    return observe(folder / "model.onnx", FrameSettings(frames=str(folder / "frames.npy")), taps)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return look(tmp_path_factory.mktemp("cnn"), models.cnn(), 60, (3, 16, 16))


@pytest.fixture(scope="module")
def traced(seen):
    return trace_tracts(seen)


def transitions(flat, taps):
    shapes = [(a.n_voxels, b.n_voxels) for a, b in itertools.pairwise(taps)]
    parts = np.split(flat, np.cumsum([a * b for a, b in shapes])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def test_strengths_are_means_of_exact_tracts(seen, traced):
    tracer = TractTracer(seen.model_bytes, seen.taps)
    exact = [tracer.trace(frame) for frame in seen.images.frames]
    assert traced.images == len(exact) == 60
    assert traced.problems == ("",) * (len(seen.taps) - 1)
    for k, strength in enumerate(transitions(traced.strength, seen.taps)):
        assert_allclose(strength, np.mean([matrices[k] for matrices in exact], axis=0), rtol=1e-12)


def test_gates_and_fidelity_belong_to_their_voxels(seen, traced):
    """With the gates of the map, the best gain gives the estimate whose correlation the map states."""
    tracer = TractTracer(seen.model_bytes, seen.taps)
    exact = [tracer.trace(frame) for frame in seen.images.frames]
    voxels = seen.images.voxels
    positive = (voxels[:, :, 0] + voxels[:, :, 1]) / 2
    mean = voxels[:, :, 1] / np.concatenate([tap.voxel_counts() for tap in seen.taps])
    first = np.cumsum([0, *(tap.n_voxels for tap in seen.taps)])
    assert np.isnan(traced.gate[: first[1]]).all()
    assert np.isfinite(traced.gate[first[1] :]).all()
    half = len(exact) // 2
    for k, fidelity in enumerate(transitions(traced.fidelity, seen.taps)):
        live = LiveTracts(
            np.ones(fidelity.shape), traced.gate[first[k + 1] : first[k + 2]], fidelity, fidelity
        )
        estimate = estimate_live(
            live, positive[half:, first[k] : first[k + 1]], mean[half:, first[k + 1] : first[k + 2]]
        )
        truth = np.array([matrices[k] for matrices in exact[half:]])
        for g, h in np.ndindex(fidelity.shape):
            if not np.isnan(fidelity[g, h]) and estimate[:, g, h].std() > 0:
                assert fidelity[g, h] == pytest.approx(
                    np.corrcoef(estimate[:, g, h], truth[:, g, h])[0, 1], abs=1e-9
                )
    assert (traced.fidelity > FAITHFUL).any()


def test_before_clean_rows_are_seen_nothing_is_watched(seen, traced):
    assert np.isnan(traced.median).all()
    assert np.isnan(traced.scale).all()
    assert np.isnan(traced.active).all()
    watched = watch_tracts(traced, seen.taps, seen.rows)
    assert np.isfinite(watched.scale).any()
    # Rows without blocks, as of a device: what the workstation watched is nothing to go by.
    again = watch_tracts(watched, seen.taps, [msgspec.structs.replace(seen.rows[0], spatial=None)])
    for name in ("median", "scale", "active"):
        assert np.isnan(getattr(again, name)).all(), name


def test_an_untraceable_transition_is_named_and_not_watched(tmp_path):
    """The one before it is traced and watched all the same."""
    seen = look(tmp_path, models.gated(), 40, (3, 8, 8), ["silu", "relu"])
    traced = trace_tracts(seen)
    assert traced.problems == ("", "silu -> relu: Mul (node node_scaled) is not supported")
    first = np.cumsum([tap.n_voxels for tap in seen.taps])
    assert np.isfinite(traced.gate[first[0] : first[1]]).all()
    assert np.isnan(traced.gate[first[1] :]).all()
    watched = watch_tracts(traced, seen.taps, seen.rows)
    for name in ("strength", "fidelity", "median", "scale"):
        before, behind = transitions(getattr(watched, name), seen.taps)
        assert np.isfinite(before).any(), name
        assert np.isnan(behind).all(), name


def test_a_drive_beyond_single_precision_is_named_and_does_not_stop_the_others(tmp_path):
    """Bounded activations, but thirty gains of 100 in a row: 10^60 at the end of the path."""
    g = models._Graph(0)
    g.conv("input", "conv", 3, 4)
    g.node("Relu", ["conv"], "first")
    x = "first"
    for i in range(30):
        g.node("Mul", [x, g.constant(f"gain{i}", 100.0)], f"loud{i}")
        g.node("Tanh", [f"loud{i}"], f"tanh{i}")
        x = f"tanh{i}"
    g.node("Flatten", [x], "flat")
    g.gemm("flat", "answer", 256, 2)
    data = g.model([("input", [1, 3, 8, 8])], [("answer", [1, 2])])
    seen = look(tmp_path, data, 20, (3, 8, 8), ["first", "tanh29"])
    traced = trace_tracts(seen)
    assert traced.problems == ("", "first -> tanh29: finite in none of 20 frames")
    before, behind = transitions(traced.strength, seen.taps)
    assert np.isfinite(before).all()
    assert np.isnan(behind).all()


def test_a_model_that_cannot_be_traced_at_all_is_still_calibrated(seen):
    broken = msgspec.structs.replace(seen, model_bytes=models.two_inputs())
    traced = trace_tracts(broken)
    assert len(traced.problems) == len(seen.taps) - 1
    assert all(traced.problems)
    assert np.isnan(traced.strength).all()
    assert np.isnan(watch_tracts(traced, seen.taps, seen.rows).scale).all()


def test_same_images_same_numbers_with_progress(seen, traced):
    told = []
    again = trace_tracts(seen, lambda *arguments: told.append(arguments))
    assert told == [("tracts", k, 60) for k in range(1, 61)]
    for name in ("strength", "fidelity", "gate"):
        assert_array_equal(getattr(again, name), getattr(traced, name), err_msg=name)


# What is watched.


def loops(traced, taps, rows):
    """Median, scale and least active log r of every tract, one at a time."""
    counts = np.concatenate([tap.voxel_counts() for tap in taps])
    sums = np.array([row.spatial.voxels / row.spatial.frames for row in rows])
    positive, mean = (sums[:, :, 0] + sums[:, :, 1]) / 2, sums[:, :, 1] / counts
    active = np.full(counts.size, np.nan)
    for g, r in enumerate(positive.T):
        if (r > 0).any():
            active[g] = np.quantile(np.log(r[r > 0]), ACTIVE)
    median, scale = [], []
    first = 0
    for a, b in itertools.pairwise(taps):
        second = first + a.n_voxels
        for g, h in itertools.product(range(first, second), range(second, second + b.n_voxels)):
            alpha, beta = traced.gate[h]
            heard = positive[:, g] > 0
            heard[heard] = np.log(positive[heard, g]) >= active[g]
            log_drive = np.log(positive[heard, g]) + np.log(expit(alpha + beta * mean[heard, h]))
            median.append(np.median(log_drive) if heard.any() else np.nan)
            scale.append(1.4826 * np.median(np.abs(log_drive - median[-1])) if heard.any() else np.nan)
        first = second
    return np.array(median), np.array(scale), active


def test_baselines_equal_numpys_medians(seen, traced):
    watched = watch_tracts(traced, seen.taps, seen.rows)
    median, scale, active = loops(traced, seen.taps, seen.rows)
    on = ~np.isnan(watched.scale)
    assert 0.2 < on.mean() < 1.0
    assert_allclose(watched.median[on], median[on], rtol=1e-9)
    assert_allclose(watched.scale[on], scale[on], rtol=1e-9)
    assert_allclose(watched.active, active, rtol=1e-12)
    for name in ("strength", "fidelity", "gate", "problems", "images"):
        assert getattr(watched, name) is getattr(traced, name), name


def test_only_faithful_tracts_that_carry_something_are_watched(seen, traced):
    fidelity = traced.fidelity.copy()
    strength = traced.strength.copy()
    free = np.flatnonzero(~np.isnan(watch_tracts(traced, seen.taps, seen.rows).scale))
    fidelity[free[0]], fidelity[free[1]], fidelity[free[2]] = np.nan, FAITHFUL - 1e-9, FAITHFUL
    strength[free[3]] = 0.0
    changed = msgspec.structs.replace(traced, fidelity=fidelity, strength=strength)
    scale = watch_tracts(changed, seen.taps, seen.rows).scale
    assert_array_equal(np.isnan(scale[free[:5]]), [True, True, False, True, False])
    unfaithful = ~(traced.fidelity >= FAITHFUL)
    assert unfaithful.any()
    assert np.isnan(scale[unfaithful]).all()


# A source that falls silent in clean frames as well: two taps of two units.

PAIR = (TapSpec("input", (2, 1, 1), (2, 1, 1)), TapSpec("layer", (2, 1, 1), (2, 1, 1)))


def pair_row(values, frames=1):
    values = np.asarray(values, np.float64)
    sums = frames * np.stack([np.abs(values), values, values**2], axis=1)
    block = SpatialBlock(frames, np.ones(2, bool), sums, sums[:, 0].copy())
    return StatRow(0, 0, 0, np.ones(2), np.zeros(2, np.int64), 0, spatial=block)


def pair_tracts():
    return msgspec.structs.replace(
        no_tracts(PAIR),
        strength=np.ones(4),
        fidelity=np.ones(4),
        gate=np.array([[np.nan, np.nan], [np.nan, np.nan], [0.5, 1.0], [-1.0, 2.0]]),
        problems=("",),
    )


def often_silent(n=300, share=0.3):
    """Unit 0 of the input is below or at 0 in many frames, unit 1 is never above it."""
    rng = np.random.default_rng(2)
    values = np.exp(rng.normal(0, 0.3, (n, 4)))
    silent = rng.random(n) < share
    values[silent, 0] = rng.choice([0.0, -1.0], silent.sum())
    values[:, 1] = -1.0
    values[:, 3] -= 1.0  # of either sign: the gate looks at the mean, not at its size
    return values


def test_silence_is_no_weak_drive():
    """Frames in which the source is silent neither widen its range nor make silence count as active."""
    values = often_silent()
    rows = [pair_row(x) for x in values]
    watched = watch_tracts(pair_tracts(), PAIR, rows)
    median, scale, active = loops(pair_tracts(), PAIR, rows)
    assert_allclose(watched.median[:2], median[:2], rtol=1e-12)
    assert_allclose(watched.scale[:2], scale[:2], rtol=1e-12)
    assert_allclose(watched.active, active, rtol=1e-12)
    assert np.isnan(watched.active[1])
    assert np.isnan(watched.scale[2:]).all()
    tracker = ConnectivityTracker(PAIR, no_residual(PAIR), watched)
    answers = [tracker.update(row.spatial, None, np.ones(2, bool)) for row in rows]
    z = np.array([answer.tract_z for answer in answers])
    assert np.isnan(z[values[:, 0] <= 0]).all()
    assert np.isnan(z[:, 2:]).all()
    assert 0.9 < np.isfinite(z[values[:, 0] > 0, :2]).mean() < 1.0
    assert np.nanmax(np.abs(z)) < 6


def test_blocks_of_several_frames_count_as_their_mean():
    values = often_silent()
    one = watch_tracts(pair_tracts(), PAIR, [pair_row(x) for x in values])
    four = watch_tracts(pair_tracts(), PAIR, [pair_row(x, frames=4) for x in values])
    for name in ("median", "scale", "active"):
        assert_allclose(getattr(four, name), getattr(one, name), rtol=1e-12, err_msg=name)


def test_a_tract_that_never_varies_is_not_watched():
    watched = watch_tracts(pair_tracts(), PAIR, [pair_row([1.0, 2.0, 3.0, 4.0])] * 20)
    assert np.isnan(watched.scale).all()
    assert_allclose(watched.active[:2], np.log([1.0, 2.0]))
    assert_allclose(watched.median[0], np.log(expit(0.5 + 3.0)))


def test_rows_without_a_whole_block_are_left_out():
    rows = [pair_row(x) for x in often_silent()]
    junk = pair_row([1e9, 1e9, -1e9, 1e9])
    lacking = msgspec.structs.replace(junk.spatial, taps=np.array([True, False]))
    mixed = [
        *(msgspec.structs.replace(junk, spatial=None) for _ in range(100)),
        *rows,
        *(msgspec.structs.replace(junk, spatial=lacking) for _ in range(100)),
    ]
    plain, spoiled = (watch_tracts(pair_tracts(), PAIR, each) for each in (rows, mixed))
    for name in ("median", "scale", "active"):
        assert_array_equal(getattr(spoiled, name), getattr(plain, name), err_msg=name)
