"""How the demo vehicle moves: its speed, the road's bends and tunnels, the traffic ahead.

Nothing here knows about pixels; `scenes` looks at a `Trip` through a camera. All motion is by
distance or scaled with speed, so that the world stands still when the vehicle does.
"""

from __future__ import annotations

from math import sqrt

import msgspec

from edge_monitor.sources.world import WORLDS, World

FRAME_RATE_HZ = 30
DT = 1.0 / FRAME_RATE_HZ
LANE_M = 3.5
CLOSE_M = 20.0
BEND_PER_M = 0.003
CLASSES = ("left, free", "straight, free", "right, free", "left, lead", "straight, lead", "right, lead")
"""What a perception network answers: where the road bends, and whether a vehicle is close ahead."""

_OUT_OF_SIGHT_M = 90.0
_MODEST_SPEED = 6.0  # below this speed relative traffic slows down with us, m/s
_PITCH_RATE = 8.0  # natural frequency of the suspension, rad/s
_PITCH_DAMPING = 0.4


class Vehicle(msgspec.Struct):
    """The one other vehicle in sight, with the waypoints (gap, lateral, seconds) that it still has to visit.

    ``lateral_m`` is measured from the middle of our lane, left is negative; ``size_m`` is width and height.
    """

    gap_m: float
    lateral_m: float
    size_m: tuple[float, float]
    colour: tuple[float, float, float]
    waypoints: list[tuple[float, float, float]]
    closing_mps: float = 0.0
    sideways_mps: float = 0.0

    def step(self, pace: float) -> None:
        """Move one frame; ``pace`` 0 ... 1 is how much of its own speed traffic shows just now."""
        gap, lateral, seconds = self.waypoints[0]
        wanted = min(9.0, max(-7.0, 0.5 * (gap - self.gap_m)))
        self.closing_mps += min(5.0 * DT, max(-5.0 * DT, wanted - self.closing_mps))
        wanted = min(2.5, max(-2.5, 1.5 * (lateral - self.lateral_m)))
        self.sideways_mps += min(4.0 * DT, max(-4.0 * DT, wanted - self.sideways_mps))
        self.gap_m = max(2.5, self.gap_m + self.closing_mps * DT * pace)
        self.lateral_m += self.sideways_mps * DT * pace
        self.waypoints[0] = (gap, lateral, seconds - DT * pace)
        if seconds <= 0.0 and len(self.waypoints) > 1:
            self.waypoints.pop(0)


class Trip:
    """One seeded drive; `step` moves it on by one frame.

    Parameters
    ----------
    seed : int
        Same seed, same drive.
    world : World
        On whose roads.

    Attributes
    ----------
    place : int
        Counts hard cuts: a new place from one frame to the next.
    travelled_m, speed_mps, acceleration, heading, curvature, offset_m, pitch : float
        The vehicle on its road: SI units and radians; ``curvature`` is positive in a right bend,
        ``offset_m`` the distance from the middle of its lane, ``pitch`` positive when the nose is up.
    light : float
        Slow change of daylight, about 1.
    tunnel : tuple of float
        Begin and end of the next tunnel (or the one around us), on the scale of ``travelled_m``.
    vehicle : Vehicle or None
        The one other vehicle in sight.
    """

    def __init__(self, seed: int, world: World = WORLDS[0]) -> None:
        self._rng = world.rng(seed, 0)
        self._world = world
        self.place = -1
        self._side: float | None = None
        self._new_place()
        self._seconds_here = self._uniform(5.0, 90.0)  # the trip begins somewhere within its first place

    @property
    def label(self) -> int:
        """Index into `CLASSES`."""
        bend = 0 if self.curvature < -BEND_PER_M else 2 if self.curvature > BEND_PER_M else 1
        return bend + 3 * self.lead_close

    @property
    def lead_close(self) -> bool:
        """A vehicle is mostly in our lane and closer than `CLOSE_M`."""
        other = self.vehicle
        return other is not None and other.gap_m < CLOSE_M and abs(other.lateral_m) < LANE_M / 2

    def step(self) -> None:
        self._seconds_here -= DT
        if self._seconds_here <= 0.0:
            self._new_place()
            return
        self._drive()
        self._follow_road()
        self._sway()
        self._meet_traffic()

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._rng.random()

    def _new_place(self) -> None:
        self.place += 1
        self._seconds_here = self._uniform(40.0, 120.0)
        self.travelled_m = 0.0
        self.heading = self._uniform(0.0, 6.0)
        self.offset_m = self._uniform(-0.4, 0.4)
        self.pitch = self._pitch_rate = self._grade = self._cloud = 0.0
        self.light = 1.0
        begin = self._uniform(-100.0, 1500.0)
        self.tunnel = (begin, begin + self._uniform(100.0, 300.0))
        self._next_bend()
        self.curvature = self._entering = self._bend
        self._cruise_mps = self._uniform(*self._world.cruise_mps)
        self._until_stop_s = self._uniform(10.0, 70.0)
        self.speed_mps = self._wanted_speed()
        self.acceleration = 0.0
        self._standing_s = 0.0
        self._clear_s = self._uniform(3.0, 12.0)
        self.vehicle: Vehicle | None = None
        if self._rng.random() < 0.6:
            gap = self._uniform(7.0, 14.0) if self._rng.random() < 0.75 else self._uniform(32.0, 50.0)
            self.vehicle = self._appear(gap, 0.0, [(gap, 0.0, self._uniform(5.0, 15.0)), *self._leave(gap)])

    def _next_bend(self) -> None:
        sides = [side for side in (-1.0, 0.0, 1.0) if side != self._side]
        self._side = sides[int(self._rng.integers(len(sides)))]
        sharpness = self._uniform(0.006, 0.016) if self._side else self._uniform(-0.0008, 0.0008)
        self._bend = self._side * sharpness if self._side else sharpness
        self._bend_ends_m = self.travelled_m + self._uniform(60.0, 180.0)

    def _wanted_speed(self) -> float:
        if self._until_stop_s <= 0.0:
            return 0.0
        return min(self._cruise_mps, sqrt(self._world.comfort / max(abs(self.curvature), 1e-3)))

    def _drive(self) -> None:
        if self._standing_s > 0.0:
            self._standing_s -= DT
            if self._standing_s <= 0.0:
                self._until_stop_s = self._uniform(20.0, 90.0)
                self._cruise_mps = self._uniform(*self._world.cruise_mps)
            return
        self._until_stop_s -= DT
        wanted = min(1.8, max(-3.5, 0.6 * (self._wanted_speed() - self.speed_mps)))
        self.acceleration += min(4.0 * DT, max(-4.0 * DT, wanted - self.acceleration))
        self.speed_mps = max(0.0, self.speed_mps + self.acceleration * DT)
        if self._until_stop_s <= 0.0 and self.speed_mps < 0.15:
            self.speed_mps = self.acceleration = 0.0
            self._standing_s = self._uniform(3.0, 9.0)

    def _follow_road(self) -> None:
        metres = self.speed_mps * DT
        self.travelled_m += metres
        if self.travelled_m >= self._bend_ends_m:
            self._next_bend()
        # Two lags in a row: the bend tightens smoothly, as a clothoid does.
        self._entering += (self._bend - self._entering) * metres / 8.0
        self.curvature += (self._entering - self.curvature) * metres / 8.0
        self.heading += self.curvature * metres
        if self.travelled_m > self.tunnel[1]:
            begin = self.travelled_m + self._uniform(300.0, 1800.0)
            self.tunnel = (begin, begin + self._uniform(100.0, 300.0))

    def _sway(self) -> None:
        steer, bump, hill, cloud = self._rng.standard_normal(4).tolist()
        metres = self.speed_mps * DT
        root = sqrt(metres)
        self.offset_m += -self.offset_m * metres / 40.0 + 0.05 * root * steer
        self._grade += -self._grade * metres / 60.0 + 0.002 * root * hill
        squat = self._grade + 0.006 * self.acceleration - self.pitch
        self._pitch_rate += (
            _PITCH_RATE**2 * squat - 2 * _PITCH_DAMPING * _PITCH_RATE * self._pitch_rate
        ) * DT
        self._pitch_rate += 0.01 * root * bump
        self.pitch += self._pitch_rate * DT
        self._cloud += -self._cloud * DT / 8.0 + 0.08 * sqrt(DT) * cloud
        self.light += (1.0 + min(0.4, max(-0.4, self._cloud)) - self.light) * DT / 2.0

    def _meet_traffic(self) -> None:
        pace = min(1.0, self.speed_mps / _MODEST_SPEED)
        if self.vehicle is not None:
            self.vehicle.step(pace)
            if self.vehicle.gap_m >= _OUT_OF_SIGHT_M and self.vehicle.closing_mps > 0.0:
                self.vehicle = None
                self._clear_s = self._uniform(*self._world.clear_s)
            return
        self._clear_s -= DT * pace
        if self._clear_s <= 0.0:
            self.vehicle = self._meet()

    def _meet(self) -> Vehicle:
        """Catch up with somebody, be cut in on, or only be overtaken."""
        chance = self._rng.random()
        gap, seconds = self._uniform(7.0, 14.0), self._uniform(8.0, 18.0)
        if chance < 0.4:
            return self._appear(_OUT_OF_SIGHT_M, 0.0, [(gap, 0.0, 10.0 + seconds), *self._leave(gap)])
        if chance < 0.5:
            far = 3.0 * gap + 12.0
            return self._appear(_OUT_OF_SIGHT_M, 0.0, [(far, 0.0, 8.0 + seconds), *self._leave(far)])
        overtaking = (gap, -LANE_M, 3.0)
        if chance < 0.85:
            return self._appear(2.5, -LANE_M, [overtaking, (gap, 0.0, seconds), *self._leave(gap)])
        return self._appear(2.5, -LANE_M, [overtaking, (2 * _OUT_OF_SIGHT_M, -LANE_M, 0.0)])

    def _leave(self, gap: float) -> list[tuple[float, float, float]]:
        if self._rng.random() < 0.5:
            return [(2 * _OUT_OF_SIGHT_M, 0.0, 0.0)]
        return [(gap, -LANE_M, 3.0), (2 * _OUT_OF_SIGHT_M, -LANE_M, 0.0)]

    def _appear(self, gap: float, lateral: float, waypoints: list[tuple[float, float, float]]) -> Vehicle:
        heavy = self._rng.random() < self._world.heavy_share
        size = (2.4, self._uniform(2.4, 3.3)) if heavy else (1.8, self._uniform(1.4, 1.8))
        grey, red, blue = self._uniform(0.05, 0.7), self._uniform(0.7, 1.3), self._uniform(0.7, 1.3)
        return Vehicle(gap, lateral, size, (grey * red, grey, grey * blue), waypoints)
