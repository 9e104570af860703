"""Picture faults: bounds, determinism, growth with the level, and what each one promises."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_monitor.errors import InputError
from edge_monitor.offline.faults import FAULTS, VARIANTS, Stage
from edge_monitor.offline.picture_faults import _EXTENDED, picture_fault, rounded
from edge_monitor.sources.scenes import Road

NAMES = [fault.name for fault in FAULTS if fault.stage is Stage.PICTURE]
FROZEN = [name for name in NAMES if name.startswith("frozen")]
# Nothing of these is random in both variants: what they do, their level says.
FIXED = {("frozen exact", "drill"), ("frozen exact", "other"), ("channel swap", "drill")}
every = pytest.mark.parametrize(("name", "variant"), [(name, v) for name in NAMES for v in VARIANTS])


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    road = islice(Road(1500), 0, 90)
    return [scene.image.transpose(2, 0, 1).astype(np.float32) / np.float32(255.0) for scene in road]


def play(frames, name, level, *, seed=3, variant="drill", clean=5, rate_hz=30.0):
    """Pictures with the fault, after some without."""
    fault = picture_fault(name, seed, variant, rate_hz)
    for picture in frames[:clean]:
        assert fault(picture, 0.0) is picture
    return np.array([fault(picture, level) for picture in frames[clean:]])


@every
@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.01, 3.0),
    st.integers(0, 2**32),
    st.sampled_from([(3, 9, 13), (1, 8, 8), (5, 16, 4), (2, 7, 9)]),
)
def test_pictures_stay_pictures(name, variant, level, seed, shape):
    if name == "channel swap" and shape[0] == 1:
        return
    rng = np.random.default_rng(seed)
    fault = picture_fault(name, seed, variant)
    for _ in range(3):
        picture = rounded(rng.random(shape, np.float32))
        before = picture.copy()
        out = fault(picture, level)
        assert out.shape == shape
        assert out.dtype == np.float32
        assert np.array_equal(out, rounded(out))  # in 0..1, finite, on the camera's levels
        assert not np.shares_memory(out, picture)
        assert np.array_equal(picture, before)


@every
def test_same_seed_same_pictures_whatever_came_before(frames, name, variant):
    first = play(frames, name, 2.0, variant=variant, clean=5)
    assert np.array_equal(first, play(frames, name, 2.0, variant=variant, clean=5))
    fault = picture_fault(name, 3, variant)
    for _ in range(7):
        fault(frames[4], 0.0)
    assert np.array_equal(first[0], fault(frames[5], 2.0))
    if (name, variant) not in FIXED:
        # Some draw only a direction or a sign, on which two seeds may agree.
        others = [play(frames[:20], name, 2.0, variant=variant, seed=seed) for seed in range(10, 18)]
        assert any(not np.array_equal(first[: len(other)], other) for other in others)


@every
def test_strength_rises_with_level(frames, name, variant):
    levels = (0.0, 0.5, 1.0, 2.0, 3.0)
    change = [np.abs(play(frames, name, level, variant=variant) - frames[5:]).mean() for level in levels]
    assert change[0] == 0.0
    assert change[2] > 0.004
    if name == "frozen exact":
        assert min(change[1:]) > 0.02
    else:
        assert np.all(np.diff(change) > 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_variants_differ(frames, name):
    if name == "frozen exact":  # they differ as soon as the other one grabs its next picture
        assert not np.array_equal(play(frames, name, 1.0), play(frames, name, 1.0, variant="other"))
    else:
        ours, others = play(frames[:8], name, 2.0)[0], play(frames[:8], name, 2.0, variant="other")[0]
        assert np.abs(ours - others).mean() > 0.002


def test_frozen_exact_holds_the_last_good_picture_bit_for_bit(frames):
    fault = picture_fault("frozen exact", 0)
    odd = frames[0] * np.float32(0.77)  # on no camera's levels
    lent = odd.copy()
    fault(lent, 0.0)
    lent[:] = 0.0  # a camera's driver writes the next picture into the same buffer
    for picture in frames[1:4]:
        out = fault(picture, 1.0)
        assert np.array_equal(out, odd)
        out[:] = 0.0  # what the caller does to the answer stays with the caller
    assert fault(frames[4], 0.0) is frames[4]
    assert np.array_equal(fault(frames[5], 3.0), frames[4])


def test_frozen_from_the_start_holds_the_first_picture(frames):
    fault = picture_fault("frozen exact", 0)
    assert all(np.array_equal(fault(picture, 1.0), frames[0]) for picture in frames[:3])


def test_other_frozen_exact_renews_its_picture_seldom(frames):
    out = play(frames, "frozen exact", 1.0, variant="other", clean=0)
    fresh = [k for k in range(1, len(out)) if not np.array_equal(out[k], out[k - 1])]
    assert fresh == [16, 32, 48, 64, 80]
    assert all(np.array_equal(out[k], frames[k]) for k in fresh)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_with_noise_never_repeats_a_picture(frames, variant):
    out = play(frames, "frozen with noise", 1.0, variant=variant)
    assert len(np.unique(out, axis=0)) == len(out)
    inside = (frames[4] > 0.1) & (frames[4] < 0.9)
    assert np.abs(out.mean(axis=0) - frames[4])[inside].max() < 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_blackout_is_dark_but_alive(frames, variant):
    out = play(frames, "blackout", 3.0, variant=variant)
    assert out.mean() < 0.03
    assert (out[1:] != out[:-1]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("rate_hz", [10.0, 30.0, 60.0])
def test_hunting_is_slow_at_every_frame_rate(rate_hz):
    grey = [np.full((3, 8, 8), 0.4, np.float32)] * int(20 * rate_hz)
    for variant in VARIANTS:
        level = play(grey, "exposure hunting", 1.0, clean=0, variant=variant, rate_hz=rate_hz).mean(
            axis=(1, 2, 3)
        )
        spectrum = np.abs(np.fft.rfft(level - level.mean()))
        peak = np.fft.rfftfreq(len(level), 1.0 / rate_hz)[spectrum.argmax()]
        assert 0.25 <= peak <= 2.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_flicker_is_fast(variant):
    grey = [np.full((3, 8, 8), 0.4, np.float32)] * 300
    for seed in range(5):
        level = play(grey, "flicker", 2.0, clean=0, variant=variant, seed=seed).mean(axis=(1, 2, 3))
        spectrum = np.abs(np.fft.rfft(level - level.mean()))
        assert 2.9 <= np.fft.rfftfreq(300, 1.0 / 30.0)[spectrum.argmax()] <= 12.1


def test_full_channel_swap_reads_rgb_as_bgr(frames):
    assert np.array_equal(play(frames[:6], "channel swap", 3.0)[0], frames[5][::-1])


def test_camera_shift_moves_whole_pixels(frames):
    out = play(frames[:6], "camera shift", 2.0)[0]
    offsets = [(y, x) for y in range(-7, 8) for x in range(-7, 8)]
    middle = out[:, 10:-10, 10:-10]
    fits = [np.array_equal(middle, frames[5][:, 10 + y : 38 + y, 10 + x : 38 + x]) for y, x in offsets]
    found = np.hypot(*offsets[fits.index(True)])
    assert found == pytest.approx(4.8, abs=0.8)


@pytest.mark.parametrize("name", ["defocus", "fog", "lens blob"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_noise_arises_behind_the_lens(name, variant):
    grey = np.random.default_rng(0).normal(0.4, 0.01, (60, 3, 24, 24)).astype(np.float32)
    out = play(list(grey), name, 3.0, variant=variant, clean=0)
    assert out.std(axis=0).mean() == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("name", sorted(_EXTENDED))
@pytest.mark.parametrize("variant", VARIANTS)
def test_faults_with_an_extent_refuse_a_vector(name, variant):
    fault = picture_fault(name, 0, variant)
    with pytest.raises(InputError, match=rf"'{name}': needs 4 x 4 pixels or more, not shape \(20, 1, 1\)"):
        fault(np.zeros((20, 1, 1), np.float32), 0.0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in _EXTENDED])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_others_work_on_a_vector(name, variant):
    vectors = list(rounded(np.random.default_rng(0).random((40, 20, 1, 1), np.float32)))
    out = play(vectors, name, 3.0, variant=variant)
    assert out.shape == (35, 20, 1, 1)
    assert (out != vectors[5:]).any()
    # Components differ in what happens to them: none is a copy of one value for all.
    if name in {"salt and pepper", "gaussian noise"}:
        assert np.abs(out[0] - vectors[5]).std() > 0.0


def test_channel_swap_refuses_one_channel():
    with pytest.raises(
        InputError, match=r"'channel swap': needs two channels or more, not shape \(1, 8, 8\)"
    ):
        picture_fault("channel swap", 0)(np.zeros((1, 8, 8), np.float32), 0.0)


def test_bad_input_is_refused(frames):
    with pytest.raises(InputError, match="'fogg' is none of frozen exact, frozen with noise"):
        picture_fault("fogg", 0)
    with pytest.raises(InputError, match="'dill' is none of drill, other"):
        picture_fault("fog", 0, "dill")
    with pytest.raises(InputError, match="must be 0 or more, not -1"):
        picture_fault("fog", -1)
    with pytest.raises(InputError, match=r"above 0 Hz, not 0\.0"):
        picture_fault("flicker", 0, rate_hz=0.0)
    fault = picture_fault("fog", 0)
    with pytest.raises(InputError, match=r"not float64\(3, 8, 8\)"):
        fault(np.zeros((3, 8, 8)), 1.0)
    fault(frames[0], 1.0)
    with pytest.raises(InputError, match=r"must be float32\(3, 48, 48\), not float32\(3, 8, 8\)"):
        fault(np.zeros((3, 8, 8), np.float32), 1.0)
    with pytest.raises(InputError, match=r"not 3\.5"):
        fault(frames[0], 3.5)


@pytest.mark.parametrize("name", FROZEN)
def test_two_faults_compose(frames, name):
    held, noisy = picture_fault(name, 0), picture_fault("gaussian noise", 1)
    for picture in frames[:3]:
        noisy(held(picture, 0.0), 0.0)
    out = [noisy(held(picture, 2.0), 2.0) for picture in frames[3:6]]
    assert not np.array_equal(out[0], out[1])
    assert np.abs(np.mean(out, axis=0) - frames[2]).mean() < 0.06


def test_faults_of_one_seed_draw_apart():
    grey = [np.full((3, 48, 48), 0.5, np.float32)] * 2
    one, other = (play(grey, name, 3.0, clean=1)[0] - 0.5 for name in ("gaussian noise", "frozen with noise"))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.06


@settings(deadline=None)
@given(st.integers(0, 255))
def test_rounding_leaves_a_camera_s_pictures_alone(level):
    picture = np.full((1, 1, 1), level, np.uint8).astype(np.float32) / 255.0
    assert picture.dtype == np.float32
    assert np.array_equal(rounded(picture), picture)
    assert rounded(np.float32([[[-0.3, 1.7, 0.5]]])).tolist() == [[[0.0, 1.0, pytest.approx(128 / 255)]]]
