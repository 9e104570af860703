"""Two worlds of the demo road: what differs between them, the camera and the roads it drives on.

World 0 is the one of the demo model. World 1 is a van with a longer lens and a noisier, slower camera on
faster and busier roads in other colours: what was tuned in one world can be tried in the other.
"""

from __future__ import annotations

import msgspec
import numpy as np

Colour = tuple[float, float, float]
Span = tuple[float, float]


class Palette(msgspec.Struct, frozen=True):
    """Colours of a kind of place, in percent of full scale, and the daylight they are seen in."""

    zenith: Colour
    skyline: Colour
    ground: Colour
    road: Colour
    trees: Colour
    daylight: float
    headlights: float
    haze_m: float


class World(msgspec.Struct, frozen=True, kw_only=True):
    """One camera on its roads.

    ``horizon_row`` is that of level ground, ``camera_m`` the camera's height above the road;
    ``road_texture`` scales the pattern of the asphalt. ``read_noise`` is a standard deviation,
    ``shot_noise`` a variance per unit of signal and of gain, both with full scale = 1.
    ``exposure_rate`` is the share of the metered error, in log units, that the camera corrects per
    frame, ``exposure_step`` the most it does. ``comfort`` is the lateral acceleration in m/s^2 that the
    driver accepts in a bend, ``clear_s`` the time without a vehicle ahead, ``heavy_share`` that of
    lorries in the traffic.
    """

    number: int
    focal_px: float
    camera_m: float
    horizon_row: float
    palettes: tuple[Palette, ...]
    road_texture: float
    read_noise: float
    shot_noise: float
    exposure_rate: float
    exposure_step: float
    cruise_mps: Span
    comfort: float
    clear_s: Span
    heavy_share: float

    def rng(self, seed: int, stream: int) -> np.random.Generator:
        """Give one of the independent random streams of a trip; other worlds have other drives."""
        # A trailing 0 does not change NumPy's seed sequence, so world 0 draws as ``[seed, stream]`` does
        # (test_world_0_keeps_its_bytes).
        return np.random.default_rng([seed, stream, self.number])


_FIRST = World(
    number=0,
    focal_px=40.0,
    camera_m=1.5,
    horizon_row=18.0,
    palettes=(  # day, overcast, dusk, night, desert, snow, fog
        Palette((25, 45, 85), (70, 80, 92), (22, 36, 12), (30, 30, 32), (8, 22, 8), 1.0, 0.0, 600.0),
        Palette((55, 58, 62), (72, 73, 74), (26, 32, 18), (26, 27, 29), (14, 20, 14), 0.55, 0.0, 220.0),
        Palette((25, 22, 45), (95, 50, 22), (20, 18, 12), (22, 20, 22), (6, 6, 7), 0.22, 0.05, 400.0),
        Palette((2, 3, 8), (10, 9, 12), (24, 26, 18), (28, 28, 30), (5, 7, 5), 0.05, 0.35, 900.0),
        Palette((35, 55, 85), (92, 84, 68), (74, 56, 34), (40, 37, 35), (52, 34, 20), 1.1, 0.0, 300.0),
        Palette((60, 66, 76), (85, 87, 90), (86, 88, 92), (34, 35, 38), (20, 26, 24), 0.8, 0.0, 180.0),
        Palette((62, 64, 66), (78, 79, 80), (24, 30, 18), (30, 31, 32), (22, 27, 22), 0.45, 0.02, 60.0),
    ),
    road_texture=0.3,
    read_noise=0.006,
    shot_noise=0.0003,
    exposure_rate=0.06,
    exposure_step=0.08,
    cruise_mps=(10.0, 28.0),
    comfort=2.5,
    clear_s=(3.0, 10.0),
    heavy_share=0.25,
)

_SECOND = World(
    number=1,
    focal_px=54.0,
    camera_m=2.1,
    horizon_row=21.0,
    palettes=(  # autumn, rain, dawn, city night, wheat, heath, red rock
        Palette((38, 52, 78), (82, 80, 76), (46, 26, 9), (24, 23, 23), (40, 17, 5), 0.9, 0.0, 450.0),
        Palette((36, 40, 46), (52, 55, 59), (16, 24, 15), (13, 14, 17), (8, 13, 10), 0.4, 0.03, 130.0),
        Palette((42, 34, 58), (96, 66, 62), (24, 26, 30), (26, 25, 30), (12, 10, 18), 0.28, 0.04, 260.0),
        Palette((6, 4, 3), (24, 15, 7), (26, 20, 13), (24, 21, 17), (11, 8, 5), 0.09, 0.3, 500.0),
        Palette((20, 48, 92), (66, 82, 95), (72, 60, 22), (36, 34, 31), (20, 30, 8), 1.15, 0.0, 800.0),
        Palette((48, 54, 68), (74, 76, 84), (38, 24, 36), (31, 31, 35), (16, 22, 18), 0.65, 0.0, 350.0),
        Palette((30, 62, 90), (86, 74, 60), (62, 28, 16), (42, 33, 30), (56, 26, 14), 1.05, 0.0, 220.0),
    ),
    road_texture=0.7,
    read_noise=0.01,
    shot_noise=0.0006,
    exposure_rate=0.035,
    exposure_step=0.05,
    cruise_mps=(14.0, 34.0),
    comfort=3.2,
    clear_s=(1.5, 6.0),
    heavy_share=0.5,
)

WORLDS = (_FIRST, _SECOND)
