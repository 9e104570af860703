"""The demo road and its camera's faults."""

import hashlib
from itertools import islice

import numpy as np
import pytest

from edge_monitor.errors import InputError
from edge_monitor.sources.camera_faults import CAMERA_FAULTS, Blackout, Freeze, camera_fault
from edge_monitor.sources.renderer import Renderer
from edge_monitor.sources.scenes import CLASSES, Road, read_out
from edge_monitor.sources.trip import BEND_PER_M, FRAME_RATE_HZ, Trip, Vehicle
from edge_monitor.sources.world import WORLDS

MINUTE = 60 * FRAME_RATE_HZ


def drive_until(trip, condition, frames=20 * MINUTE):
    """The trip at the next frame for which the condition holds."""
    for _ in range(frames):
        if condition(trip):
            return trip
        trip.step()
    raise AssertionError(f"did not happen within {frames} frames")


def skip(road, condition):
    """Drive on without looking."""
    drive_until(road._trip, condition)


def clean(road):
    """The light behind the last scene, before the sensor's noise."""
    return road._radiance


# -- scenes ----------------------------------------------------------------------------------------


def test_a_scene_is_a_small_rgb_image_with_its_facts():
    for index, scene in enumerate(islice(Road(2000), 50)):
        assert scene.image.shape == (48, 48, 3)
        assert scene.image.dtype == np.uint8
        assert scene.image.flags.c_contiguous
        assert 0 <= scene.label < len(CLASSES)
        assert scene.speed_mps >= 0.0
        assert scene.exposure > 0.0
        assert scene.index == index
        assert scene.t_capture_ns == index * 1_000_000_000 // 30


@pytest.mark.parametrize("seed", [2000, 2001])
def test_same_seed_same_bytes(seed):
    for one, other in zip(islice(Road(seed), 300), Road(seed), strict=False):
        assert one.image.tobytes() == other.image.tobytes()
        assert (one.label, one.speed_mps, one.exposure) == (other.label, other.speed_mps, other.exposure)


def test_other_seed_other_trip():
    one, other = (list(islice(Road(seed), 100)) for seed in (2000, 2001))
    assert all(not np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    assert [a.speed_mps for a in one] != [b.speed_mps for b in other]


def test_negative_seed_is_refused():
    with pytest.raises(InputError, match="-1"):
        Road(-1)


def test_picture_is_finite_and_within_reach_of_the_sensor_everywhere():
    trip, renderer = Trip(2004), Renderer(2004)
    for frame in range(10 * MINUTE):
        if frame % 40 == 0:
            radiance = renderer.draw(trip)
            assert radiance.dtype == np.float32
            assert np.isfinite(radiance).all()
            assert radiance.min() >= 0.0
            assert radiance.max() < 5.0
        trip.step()


# -- noise -----------------------------------------------------------------------------------------


def test_every_frame_has_fresh_noise():
    images = [scene.image for scene in islice(Road(2000), 200)]
    assert len({image.tobytes() for image in images}) == len(images)


def test_rendering_again_changes_the_noise_alone():
    road, undisturbed = Road(2000), Road(2000)
    first = next(road)
    next(undisturbed)
    again = [road.render_again() for _ in range(64)]
    assert len({scene.image.tobytes() for scene in again}) == 64
    assert {(s.index, s.label, s.speed_mps, s.exposure) for s in again} == {
        (first.index, first.label, first.speed_mps, first.exposure)
    }
    mean = np.mean([scene.image for scene in again], axis=0)
    deviation = np.std([scene.image for scene in again], axis=0)
    assert 1.0 < deviation.mean() < 8.0
    assert np.abs(first.image - mean).mean() < 1.2 * deviation.mean()
    # The drive does not notice.
    assert np.array_equal(next(road).image, next(undisturbed).image)


def test_read_out_adds_shot_noise_that_grows_with_light_and_gain():
    rng = np.random.default_rng(0)

    def spread(level, gain):
        return float(read_out(np.full((3, 200, 200), level, np.float32), gain, rng).std()) / 255.0

    for level, gain in ((0.1, 1.0), (0.5, 1.0), (0.5, 4.0)):
        expected = np.sqrt(0.0003 * gain * level + 0.006**2 + 1.0 / 12.0 / 255.0**2)
        assert spread(level, gain) == pytest.approx(expected, rel=0.03)


def test_read_out_saturates():
    rng = np.random.default_rng(0)
    assert (read_out(np.full((3, 48, 48), 2.0, np.float32), 1.0, rng) == 255).all()


# -- motion ----------------------------------------------------------------------------------------


def changes(road, frames):
    """Mean change of the light from frame to frame, relative to its mean."""
    relative = []
    for _ in range(frames):
        before = clean(road)
        next(road)
        relative.append(float(np.abs(clean(road) - before).mean() / before.mean()))
    return relative


def test_standing_vehicle_sees_an_almost_still_scene():
    road = Road(2000)
    skip(road, lambda trip: trip.speed_mps > 10.0)
    moving = changes(road, 60)
    skip(road, lambda trip: trip.speed_mps == 0.0)
    skip(road, lambda trip: abs(trip.pitch - trip._grade) < 1e-3)  # the suspension comes to rest
    standing = changes(road, 30)
    assert road._trip.speed_mps == 0.0
    assert 0.0 < np.median(standing) < 0.01
    assert np.median(standing) < 0.15 * np.median(moving)


def test_consecutive_frames_resemble_each_other_except_at_a_hard_cut():
    road = Road(2005)
    within, across = [], []
    for place in (1, 2, 3):
        skip(road, lambda trip, place=place: trip.place == place - 1 and trip._seconds_here < 4.0)
        next(road)
        while road._trip.place < place:
            before = clean(road)
            next(road)
            within.append(np.corrcoef(before.ravel(), clean(road).ravel())[0, 1])
        across.append(within.pop())
    assert np.quantile(within, 0.01) > 0.8
    assert np.median(within) > 0.97
    assert max(across) < np.quantile(within, 0.1)


def test_the_ground_flows_by():
    trip, renderer = Trip(2000), Renderer(2000)
    trip.tunnel = (1e6, 2e6)
    here = renderer.draw(trip)[:, 30:]
    assert np.array_equal(renderer.draw(trip)[:, 30:], here)
    trip.travelled_m += 12.0  # the dashes' period: what changes is the ground
    assert np.mean(np.abs(renderer.draw(trip)[:, 30:] - here) > 0.02 * here) > 0.2


def test_motion_is_smooth():
    for seed in range(2000, 2006):
        trip = Trip(seed)
        for _ in range(3 * MINUTE):
            before = (trip.place, trip.speed_mps, trip.curvature, trip.pitch, trip.offset_m)
            trip.step()
            if trip.place == before[0]:
                assert abs(trip.speed_mps - before[1]) < 0.2
                assert abs(trip.curvature - before[2]) < 0.002
                assert abs(trip.pitch - before[3]) < 0.02
                assert abs(trip.offset_m - before[4]) < 0.25


def test_exposure_follows_the_light_with_a_lag():
    road = Road(2000)
    road._renderer.draw = lambda _trip: np.full((3, 48, 48), 0.5, np.float32)
    for _ in range(200):
        settled = next(road)
    road._renderer.draw = lambda _trip: np.full((3, 48, 48), 0.05, np.float32)
    exposures = [next(road).exposure for _ in range(200)]
    assert exposures[0] == pytest.approx(settled.exposure, rel=0.15)
    assert exposures[-1] == pytest.approx(10.0 * settled.exposure, rel=0.02)
    assert 5 < int(np.argmax(np.array(exposures) > 5.0 * settled.exposure)) < 60


# -- what a drive contains ---------------------------------------------------------------------------


def test_everything_happens_within_some_minutes():
    drive_until(Trip(2000), lambda trip: trip.place == 1)
    drive_until(Trip(2000), lambda trip: trip.tunnel[0] <= trip.travelled_m < trip.tunnel[1])
    drive_until(Trip(2000), lambda trip: trip.speed_mps == 0.0)
    drive_until(Trip(2000), lambda trip: trip.lead_close)
    drive_until(Trip(2000), lambda trip: trip.label % 3 == 0)
    drive_until(Trip(2000), lambda trip: trip.label % 3 == 2)


def test_stops_end():
    trip = drive_until(Trip(2000), lambda trip: trip.speed_mps == 0.0)
    trip._seconds_here = 1000.0  # not by a hard cut
    drive_until(trip, lambda trip: trip.speed_mps > 5.0, 15 * FRAME_RATE_HZ)
    assert trip.speed_mps > 5.0


def test_a_vehicle_cuts_in_from_the_left_lane():
    beside = drive_until(
        Trip(2000),
        lambda t: t.vehicle is not None and -3.6 < t.vehicle.lateral_m < -3.0 and t.vehicle.gap_m < 8,
    )
    cut_in = False
    for _ in range(20 * MINUTE):
        before = beside.vehicle
        beside.step()
        now = beside.vehicle
        cut_in |= now is not None and now is before and beside.lead_close and now.sideways_mps > 0.5
    assert cut_in


def test_labels_say_what_the_trip_does_and_none_is_rare():
    counts = np.zeros(len(CLASSES))
    for seed in range(2000, 2010):
        trip = Trip(seed)
        for _ in range(5 * MINUTE):
            trip.step()
            side = int(trip.curvature > BEND_PER_M) - int(trip.curvature < -BEND_PER_M)
            assert CLASSES[trip.label].split(", ") == [
                {-1: "left", 0: "straight", 1: "right"}[side],
                "lead" if trip.lead_close else "free",
            ]
            counts[trip.label] += 1
    assert (counts / counts.sum()).min() > 0.05


def test_a_tunnel_is_dark_and_its_exit_overexposed():
    seed = next(seed for seed in range(2000, 2100) if Renderer(seed)._look.daylight > 0.9)
    road = Road(seed)
    begin = road._trip.travelled_m + 300.0
    road._trip.tunnel = tunnel = (begin, begin + 200.0)
    road._trip._seconds_here = road._trip._until_stop_s = 1000.0  # neither a cut nor a stop on the way
    outside = next(road).exposure
    scenes = [next(road)]
    while road._trip.tunnel == tunnel:
        scenes.append(next(road))
    assert max(scene.exposure for scene in scenes) > 2.0 * outside
    exit_scenes = [*scenes[-1:], *islice(road, 15)]
    assert max(float((scene.image > 240).mean()) for scene in exit_scenes) > 0.2


# -- worlds --------------------------------------------------------------------------------------------


def digest(world):
    pictures = hashlib.sha256()
    for seed in (0, 1, 900):
        for scene in islice(Road(seed, world), 0, 61, 20):
            pictures.update(scene.image.tobytes())
    return pictures.hexdigest()[:16]


@pytest.mark.parametrize(("world", "known"), [(0, "7ac97880efe89fa8"), (1, "faa048797a37fbc0")])
def test_a_world_keeps_its_bytes(world, known):
    """Models, maps and thresholds were fitted to these very pictures."""
    assert digest(world) == known


def test_the_first_world_is_the_default():
    for one, other in zip(islice(Road(900), 20), Road(900, 0), strict=False):
        assert one.image.tobytes() == other.image.tobytes()


@pytest.mark.parametrize("world", [-1, 2])
def test_a_world_that_does_not_exist_is_refused(world):
    with pytest.raises(InputError, match=f"world of the road: must be 0 ... 1, not {world}"):
        Road(900, world)


def test_the_worlds_share_no_drive():
    bends = [[], []]
    for world, curvatures in zip(WORLDS, bends, strict=True):
        draws = world.rng(900, 0).random(4)
        assert not np.isin(
            draws, [other.rng(900, 0).random(4) for other in WORLDS if other is not world]
        ).any()
        trip = Trip(900, world)
        for _ in range(MINUTE):
            trip.step()
            curvatures.append(trip.curvature)
    assert abs(np.corrcoef(bends)[0, 1]) < 0.9


def test_the_worlds_share_no_palette():
    first, second = (set(world.palettes) for world in WORLDS)
    assert len(first) == len(second) == 7
    assert not first & second


def test_the_longer_lens_shows_a_vehicle_larger():
    """The same drive through both cameras; what differs is where the vehicle is."""
    trip = Trip(900)
    trip.tunnel = (1e6, 2e6)
    widths = []
    for world in WORLDS:
        renderer = Renderer(900, world)
        trip.vehicle = None
        empty = renderer.draw(trip)
        trip.vehicle = Vehicle(15.0, 0.0, (1.8, 1.6), (0.9, 0.1, 0.1), [])
        seen = np.abs(renderer.draw(trip) - empty).max(axis=(0, 1)) > 0.02
        widths.append(int(seen.sum()))
    assert widths[0] == pytest.approx(1.8 * 40.0 / 15.0, abs=2)
    assert widths[1] == pytest.approx(1.8 * 54.0 / 15.0, abs=2)
    assert widths[1] > widths[0]


def test_the_second_camera_is_noisier():
    for level, gain in ((0.1, 1.0), (0.5, 4.0)):
        grey = np.full((3, 200, 200), level, np.float32)
        spread = float(read_out(grey, gain, np.random.default_rng(0), WORLDS[1]).std()) / 255.0
        expected = np.sqrt(0.0006 * gain * level + 0.01**2 + 1.0 / 12.0 / 255.0**2)
        assert spread == pytest.approx(expected, rel=0.03)


def test_every_class_is_common_in_the_second_world():
    counts = np.zeros(len(CLASSES))
    for seed in range(900, 910):
        trip = Trip(seed, WORLDS[1])
        for _ in range(2 * MINUTE):
            trip.step()
            counts[trip.label] += 1
    assert (counts / counts.sum()).min() > 0.03


@pytest.mark.parametrize("seed", [901, 902, 903])
def test_the_second_world_is_never_static_while_the_vehicle_moves(seed):
    road = Road(seed, 1)
    shots = []
    for _ in range(600):
        before = next(road).image
        light = clean(road)
        image = next(road).image
        assert image.tobytes() != before.tobytes()  # fresh noise, also while it stands
        if road._trip.speed_mps > 1.0:
            shots.append(float(np.abs(clean(road) - light).mean() / light.mean()))
    assert len(shots) > 200
    assert min(shots) > 1e-3
    assert np.isfinite(clean(road)).all()


def test_exposure_of_the_second_world_settles_and_is_slower():
    reached = []
    for world in range(2):
        road = Road(900, world)
        road._renderer.draw = lambda _trip: np.full((3, 48, 48), 0.5, np.float32)
        for _ in range(300):
            settled = next(road).exposure
        road._renderer.draw = lambda _trip: np.full((3, 48, 48), 0.05, np.float32)
        exposures = np.array([next(road).exposure for _ in range(300)]) / settled
        assert exposures[-1] == pytest.approx(10.0, rel=0.02)
        assert exposures.max() < 12.0  # no hunting
        reached.append(int(np.argmax(exposures > 5.0)))
    assert 1.3 * reached[0] < reached[1] < 90


def test_pictures_of_the_second_world_are_well_exposed():
    levels = np.array(
        [scene.image.mean() for seed in range(900, 906) for scene in islice(Road(seed, 1), 0, 900, 10)]
    )
    assert 60.0 < np.median(levels) < 140.0
    assert np.mean((levels > 40.0) & (levels < 180.0)) > 0.9


# -- faults of the camera ------------------------------------------------------------------------------


def test_freeze_repeats_the_last_good_image_bit_for_bit():
    freeze = Freeze()
    images = [scene.image for scene in islice(Road(2000), 6)]
    seen = [freeze(image, active) for image, active in zip(images, (0, 0, 1, 1, 0, 1), strict=True)]
    for answer, source in zip(seen, (0, 1, 1, 1, 4, 4), strict=True):
        assert np.array_equal(answer, images[source])


def test_freeze_from_the_start_holds_the_first_image():
    freeze = Freeze()
    images = [scene.image for scene in islice(Road(2000), 3)]
    assert all(np.array_equal(freeze(image, True), images[0]) for image in images)


def test_freeze_keeps_its_own_copy():
    freeze, buffer = Freeze(), np.full((48, 48, 3), 7, np.uint8)
    freeze(buffer, False)
    buffer[:] = 9
    assert (freeze(buffer, True) == 7).all()


def test_blackout_is_black_but_never_the_same_twice():
    image = next(Road(2000)).image
    one, other = Blackout(1), Blackout(1)
    assert np.array_equal(one(image, False), image)
    black = [one(image, True) for _ in range(100)]
    assert len({frame.tobytes() for frame in black}) == 100
    assert max(frame.mean() for frame in black) < 6.0
    assert all(frame.shape == image.shape and frame.dtype == np.uint8 for frame in black)
    other(image, False)
    assert np.array_equal(other(image, True), black[0])
    assert not np.array_equal(Blackout(2)(image, True), black[0])


def test_faults_compose_and_leave_a_healthy_camera_alone():
    chain = [camera_fault(name, seed=3) for name in CAMERA_FAULTS]
    for scene in islice(Road(2000), 10):
        image = scene.image
        for fault in chain:
            image = fault(image, False)
        assert np.array_equal(image, scene.image)


def test_unknown_fault_is_refused_by_name():
    with pytest.raises(InputError, match="melted"):
        camera_fault("melted")
