"""The fault head's training: what goes into the bank, and that device and training see the same numbers."""

import msgspec
import numpy as np
import pytest
import small_world
from small_world import injector, region_map, scene

from edge_monitor.fault_head import n_inputs
from edge_monitor.kernels.perceptron import KNEE
from edge_monitor.offline.fault_bank import (
    CALLED,
    EXACT,
    FIRST,
    STRIDE,
    Bank,
    gather_clean,
    gathered,
    head_faults,
    make_bank,
)
from edge_monitor.offline.faults import FAULTS, Stage
from edge_monitor.offline.head_training import HIDDEN, KEPT_BACK, bounded, fit_head
from edge_monitor.offline.injection import Injection, levels_of, warm
from edge_monitor.pipeline import Monitor

NAMES = ("blackout", "stuck-high unit", "gaussian noise")


def short():
    """The scene's first second: training needs no more."""
    cut = scene()
    n = 18 + 30
    return msgspec.structs.replace(
        cut, frames=cut.frames[:n], again=cut.again[:30], contexts=cut.contexts[:n]
    )


def bank(scenes, names=NAMES, **options):
    return make_bank(injector(), region_map(), scenes, names=names, **options)


def test_a_head_learns_what_guards_cannot_know():
    names = head_faults()
    assert not EXACT & set(names)
    stream = {fault.name for fault in FAULTS if fault.stage is Stage.STREAM}
    assert not stream & set(names)
    assert "true freeze" in names
    assert set(names) - {"true freeze"} == {fault.name for fault in FAULTS} - EXACT - stream


def test_a_bank_holds_every_third_frame_of_every_fault():
    made = bank([short()])
    each = len(range(FIRST, 30, STRIDE))
    assert made.names == NAMES
    assert made.inputs.shape == (3 * each, n_inputs(region_map().taps))
    assert made.labels.tolist() == [1] * each + [2] * each + [3] * each
    assert set(made.scenes.tolist()) == {0}


def test_a_bank_is_the_same_for_the_same_seed():
    one, same, other = (bank([short()], seed=seed).inputs for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other, equal_nan=True)


def test_a_fault_that_the_source_cannot_have_is_left_out_and_the_others_stay():
    file = msgspec.structs.replace(short(), again=None)
    made = bank([file, file], names=("true freeze", "blackout"))
    assert set(made.labels.tolist()) == {2}
    assert set(made.scenes.tolist()) == {0, 1}


def test_faults_that_go_by_one_name_have_one_class():
    names = ("true freeze", "blackout", *CALLED.values())
    made = bank([short()], names=names)
    assert made.names == (CALLED["true freeze"], "blackout")
    assert set(made.labels.tolist()) == {1, 2}
    assert (made.labels == 1).sum() == 2 * (made.labels == 2).sum()


def test_nothing_is_gathered_until_everything_is_known():
    monitor, found = Monitor(region_map()), []
    for row in scene().rows:
        sample = gathered(monitor.step(row))
        found.append(sample is not None)
    assert not found[0]
    assert found[-1]
    assert found == sorted(found)  # known from some frame on
    clean = gather_clean(region_map(), scene().rows)
    assert clean.shape == (sum(found[::STRIDE]), n_inputs(region_map().taps))


def test_what_the_device_computes_is_what_was_trained():
    """Kernel and training squash alike: the head's own network gives the monitor's score and its name."""
    head = region_map().faults
    monitor = Monitor(region_map())
    compared = 0
    for row in scene().rows:
        report = monitor.step(row)
        sample = gathered(report)
        if sample is None:
            continue
        x = bounded(sample, head.mean, head.scale).astype(np.float64)
        hidden = np.maximum(x @ head.hidden[:-1] + head.hidden[-1], 0.0)
        logits = hidden @ head.output[:-1] + head.output[-1]
        faults = np.exp(logits[1:] - logits[1:].max())
        score = logits[1:].max() + np.log(faults.sum()) - logits[0]
        assert report.guess.score == pytest.approx(score, abs=1e-3)  # the device computes in float32
        likeliest = head.names[int(faults.argmax())]
        assert report.guess.name in {None, likeliest} or np.sort(faults)[-2] > 0.5
        compared += 1
    assert compared > 100


def separable(n_scenes=20, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 2], 10 * n_scenes)
    inputs = rng.normal(0, 1, (labels.size, 5))
    inputs[np.arange(labels.size), labels] += 8.0
    inputs[::7, 3] = np.nan
    return Bank(("a", "b"), inputs, labels, np.tile(np.arange(n_scenes), 20)), rng.normal(0, 1, (500, 5))


def test_a_head_tells_faults_apart_on_scenes_it_was_not_trained_on():
    made, clean = separable()
    head = fit_head(made, clean)
    assert head.accuracy > 0.95
    assert head.names == ("a", "b")
    assert head.hidden.shape == (6, HIDDEN)
    assert head.output.shape == (HIDDEN + 1, 3)
    np.testing.assert_allclose(head.mean, clean.mean(axis=0))
    np.testing.assert_allclose(head.scale, clean.std(axis=0))


def test_accuracy_is_that_of_scenes_kept_back():
    made, clean = separable()
    swapped = np.where(made.scenes % KEPT_BACK == KEPT_BACK - 1, 3 - made.labels, made.labels)
    lying = fit_head(msgspec.structs.replace(made, labels=swapped), clean)
    assert lying.accuracy < 0.05  # trained on the others, which say the opposite


def test_a_head_is_the_same_for_the_same_seed():
    made, clean = separable()
    one, same, other = (fit_head(made, clean, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.hidden, same.hidden)
    assert not np.array_equal(one.hidden, other.hidden)


def test_inputs_that_are_never_known_or_never_vary_are_no_trouble():
    made, clean = separable()
    clean[:, 0], clean[:, 4] = np.nan, 3.0
    head = fit_head(made, clean)
    for part in (head.mean, head.scale, head.hidden, head.output):
        assert np.isfinite(part).all()
    assert (head.scale > 0).all()


def test_what_is_not_known_pulls_neither_mean_nor_scale():
    """An input that is NaN in half of the clean frames has the level and the spread of the other half."""
    made, clean = separable()
    clean = clean * 0.5 + 20.0
    clean[::2, 1] = np.nan
    head = fit_head(made, clean)
    np.testing.assert_allclose(head.mean, np.nanmean(clean, axis=0), rtol=1e-12)
    np.testing.assert_allclose(head.scale, np.nanstd(clean, axis=0), rtol=1e-12)


def test_without_faults_or_clean_frames_there_is_no_head():
    made, clean = separable()
    nothing = Bank((), np.empty((0, 5)), np.empty(0, np.int64), np.empty(0, np.int64))
    assert fit_head(nothing, clean) is None
    assert fit_head(made, clean[:0]) is None


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300, np.nan])
def test_wild_inputs_are_bounded(value):
    found = bounded(np.array([value]), np.zeros(1), np.ones(1))
    assert np.isfinite(found).all()
    assert abs(found[0]) <= KNEE


def test_a_fault_scores_higher_than_clean_driving():
    """Two scenes are little to learn from, but a black picture has to look more like a fault than none."""
    monitor = Monitor(region_map())
    clean = [monitor.step(row).guess.score for row in small_world.observed().rows[:500]][-300:]
    warm(monitor, scene())
    faulty = injector().rows(scene(), [Injection("blackout", levels_of(3.0, scene().length), 1)])[:60]
    dark = [monitor.step(row).guess.score for row in faulty][10:]
    assert np.median(dark) > np.quantile(clean, 0.9)
