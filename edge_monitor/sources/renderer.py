"""Draws a `Trip` as the linear radiance that reaches the camera, 48 x 48 pixels, no noise.

Pixels are planar (3, rows, columns) float32. Only + - * / floor and clipping are used on them, so that
machines agree on the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.sources.trip import LANE_M, Trip, Vehicle
from edge_monitor.sources.world import WORLDS, Palette, World

SIZE = 48

Pixels = NDArray[Any]
"""float32, values on the scale of radiance: 1 = white paper on a sunny day."""

_ROAD_MIDDLE_M, _ROAD_HALF_M = -1.5, 4.25  # our lane, one to the left of it, shoulders
_LINES_MIDDLE_M, _LINES_HALF_M = -LANE_M / 2, 3.6
_LINE_M = 0.18  # half width, wider than in life so that 48 pixels show it
_DASH_M, _DASH_PERIOD_M = 5.0, 12.0
_FARTHEST_GROUND_PX = 0.4  # below the horizon
_TUNNEL_HALF_M, _TUNNEL_TOP_M, _LAMP_PERIOD_M = 6.0, 4.0, 15.0
_TUNNEL_SEEN_M = 120.0
_HILLS_PER_PX = 8.0  # entries of the skyline's table per pixel
_TUNNEL_LIGHT, _TUNNEL_LAMP = 0.06, 0.4

_ROWS = _COLUMNS = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)  # middles of the pixels


def _colour(*rgb: float) -> Pixels:
    return np.array(rgb, np.float32)[:, None, None]


_CONCRETE = _colour(0.5, 0.48, 0.44)
_LINE_COLOUR = _colour(0.9, 0.9, 0.86)
_GLASS = _colour(0.08, 0.09, 0.11)
_LAMP = _colour(1.0, 0.08, 0.05)
# Parts of a vehicle seen from behind (body, window, shadow, lamps): top, bottom, left, right as shares of its
# height and width, shape (4, parts, 1).
_PARTS = np.array(
    (
        (0.00, 0.90, 0.00, 1.00),
        (0.12, 0.42, 0.10, 0.90),
        (0.85, 1.03, 0.02, 0.98),
        (0.50, 0.65, 0.05, 0.25),
        (0.50, 0.65, 0.75, 0.95),
    ),
    np.float32,
).T[:, :, None]
_TWENTY_M = np.full(1, 20.0, np.float32)


def _unit(values: Pixels) -> Pixels:
    """Clip to 0 ... 1 in place (`np.clip` costs three times as much on arrays this small)."""
    np.maximum(values, 0.0, out=values)
    np.minimum(values, 1.0, out=values)
    return values


def _paint(pixels: Pixels, cover: Pixels, colour: Pixels) -> None:
    change = colour - pixels
    change *= cover
    pixels += change


def _inside(z: Pixels, near: float, far: float) -> Pixels:
    """How far inside the tunnel a distance lies, 0 ... 1, soft within 2 m of its ends."""
    return _unit((z - near) / 2.0) * _unit((far - z) / 2.0)


def _dashes(position: Pixels) -> Pixels:
    """Metres of dashes from the road's beginning up to ``position``."""
    periods = np.floor(position / _DASH_PERIOD_M)
    return periods * _DASH_M + np.minimum(position - periods * _DASH_PERIOD_M, _DASH_M)


class _Place:
    """What a place looks like: a palette with a tint of its own, and tables for ground, trees and hills."""

    def __init__(self, rng: np.random.Generator, palettes: tuple[Palette, ...]) -> None:
        palette = palettes[int(rng.integers(len(palettes)))]
        tint = 0.01 * rng.uniform(0.8, 1.2, (5, 1)) * rng.uniform(0.94, 1.06, (5, 3))
        colours = (palette.zenith, palette.skyline, palette.ground, palette.road, palette.trees)
        self.zenith, self.skyline, self.ground, self.road, self.trees = (
            _colour(*(rgb * shade)) for rgb, shade in zip(colours, tint, strict=True)
        )
        self.daylight, self.headlights, self.haze_m = palette.daylight, palette.headlights, palette.haze_m
        self.texture = rng.uniform(-0.35, 0.35, 64 * 64).astype(np.float32)
        standing = rng.random(256) < rng.uniform(0.2, 0.9)
        self.tree_m = np.where(standing, rng.uniform(2.5, 9.0, 256), 0.0).astype(np.float32)
        ridge = np.tile(rng.random(32), 2).repeat(64)
        smooth = np.convolve(ridge, np.hanning(161) / 80.0, mode="valid")[:2048]
        self.hill_px = (rng.uniform(1.0, 8.0) * smooth).astype(np.float32)
        self.tree_line_m = float(rng.uniform(7.0, 14.0))


class Renderer:
    """Draws one seed's places, far things first: `draw` gives radiance (3, 48, 48) float32."""

    def __init__(self, seed: int, world: World = WORLDS[0]) -> None:
        self._rng = world.rng(seed, 1)
        self._world = world
        self._focal_px, self._camera_m = world.focal_px, world.camera_m
        self._place = 0
        self._look = _Place(self._rng, world.palettes)

    def draw(self, trip: Trip) -> Pixels:
        if trip.place != self._place:
            self._place = trip.place
            self._look = _Place(self._rng, self._world.palettes)
        self._trip = trip
        self._horizon = self._world.horizon_row + self._focal_px * trip.pitch
        self._daylight = self._look.daylight * trip.light
        pixels = np.empty((3, SIZE, SIZE), np.float32)
        below = (_ROWS - self._horizon)[:, None]
        first = int(np.searchsorted(below[:, 0], _FARTHEST_GROUND_PX))  # the topmost row that shows ground
        self._draw_sky(pixels[:, :first], -below[:first])
        self._draw_ground(pixels[:, first:], below[first:])
        if trip.tunnel[0] - trip.travelled_m < _TUNNEL_SEEN_M:
            self._draw_tunnel(pixels, below)
        if trip.vehicle is not None:
            self._draw_vehicle(pixels, trip.vehicle)
        return pixels

    def _middle_px(self, z: Pixels) -> Pixels:
        """Column, from the image's left, of the middle of our lane at distance ``z``."""
        trip = self._trip
        return SIZE / 2 + self._focal_px * (0.5 * trip.curvature * z - trip.offset_m / z)

    def _light(self, z: Pixels) -> Pixels:
        """Light on a surface at distance ``z``: daylight outside, lamps inside a tunnel, our headlights."""
        near, far = (edge - self._trip.travelled_m for edge in self._trip.tunnel)
        headlights: Pixels | float = self._look.headlights
        light = np.full_like(z, self._daylight)
        if near < _TUNNEL_SEEN_M:
            inside = _inside(z, near, far)
            light += inside * (_TUNNEL_LIGHT - self._daylight)
            headlights = headlights + 0.1 * inside
        reach = z / 14.0
        light += headlights / (1.0 + reach * reach)
        return light

    def _draw_sky(self, pixels: Pixels, above: Pixels) -> None:
        look, trip = self._look, self._trip
        height = _unit(above / self._world.horizon_row)
        pixels[:] = (look.skyline + height * (look.zenith - look.skyline)) * self._daylight
        bearing = (trip.heading * self._focal_px + _COLUMNS) * _HILLS_PER_PX
        hill = look.hill_px[bearing.astype(np.int32) & 2047]
        far = 0.5 * (look.skyline + look.trees) * self._daylight
        _paint(pixels, _unit(hill - above + 0.5), far)
        # Trees stand along both sides; the further from the vanishing point, the nearer is the one we see.
        aside = _COLUMNS - SIZE / 2 - self._focal_px * 10.0 * trip.curvature
        z = self._focal_px * look.tree_line_m / np.maximum(np.abs(aside), 3.0)
        tree = look.tree_m[(((trip.travelled_m + z) / 6.0).astype(np.int64) * 2 + (aside > 0.0)) & 255]
        haze = z / (z + look.haze_m)
        shade = look.trees * ((1.0 - haze) * self._light(z)) + look.skyline * (haze * self._daylight)
        _paint(pixels, _unit((tree - self._camera_m) * self._focal_px / z - above + 0.5), shade)

    def _draw_tunnel(self, pixels: Pixels, below: Pixels) -> None:
        """Portal, walls and lamps; what the tunnel does not hide stays as it was drawn."""
        travelled = self._trip.travelled_m
        near, far = (edge - travelled for edge in self._trip.tunnel)
        z = self._focal_px * self._camera_m / np.maximum(below, 0.01)  # what is drawn there; sky is far away
        mouth = self._opening(near, below)
        if near > 1.0:
            # Its front hides whatever ground lies behind, however far to the side.
            front = np.maximum(self._opening(near, below, 2.2), below > 0.0) * _unit((z - near) / 2.0)
            _paint(pixels, front * (1.0 - mouth), _CONCRETE * self._daylight)
        aside = np.abs(_COLUMNS - self._middle_px(z) - _ROAD_MIDDLE_M * self._focal_px / z)
        wall = _inside(z, near, far) * _unit(aside - _TUNNEL_HALF_M * self._focal_px / z + 0.5)
        wall += _unit((z - far) / 2.0) * (1.0 - self._opening(far, below))
        aside = np.maximum(np.abs(_COLUMNS - self._middle_px(_TWENTY_M)), 0.5)
        ceiling_z = _TUNNEL_TOP_M * self._focal_px / np.maximum(-below, 0.5)
        wall_z = _TUNNEL_HALF_M * self._focal_px / aside
        phase = (travelled + ceiling_z) % _LAMP_PERIOD_M / _LAMP_PERIOD_M
        lamp = _unit(1.0 - 6.0 * np.abs(phase - 0.5)) * (ceiling_z < 0.8 * wall_z)
        lamp *= _TUNNEL_LAMP * np.minimum(1.0, 25.0 / ceiling_z) * (below < 0.0)
        lamp += _TUNNEL_LIGHT + 0.1 / (1.0 + wall_z / 14.0)
        _paint(pixels, wall * mouth, _CONCRETE * lamp)

    def _opening(self, z: float, below: Pixels, scale: float = 1.0) -> Pixels:
        """Share of each pixel within the tunnel's outline, ``scale`` times as large, at distance ``z``."""
        if z <= 1.0:
            return np.ones((1, 1), np.float32)
        px = self._focal_px / z
        middle = self._middle_px(np.full(1, z, np.float32)) + _ROAD_MIDDLE_M * px
        across = scale * _TUNNEL_HALF_M * px - np.abs(_COLUMNS - middle)
        up = scale * _TUNNEL_TOP_M * px + below
        return _unit(across + 0.5) * _unit(up + 0.5)

    def _draw_ground(self, pixels: Pixels, below: Pixels) -> None:
        """Road, lines and verge; ``below`` (rows, 1) is the distance to the horizon in pixels."""
        look, travelled = self._look, self._trip.travelled_m
        z = self._focal_px * self._camera_m / below
        px = self._focal_px / z
        lateral = (_COLUMNS - self._middle_px(z)) / px
        along = ((travelled + z) / 2.0).astype(np.int32) & 63
        across = ((lateral + 2048.0) / 2.0).astype(np.int32) & 63
        texture = look.texture.take(64 * along + across) * np.minimum(120.0 / (z * z), 1.0)
        depth = 0.5 * z / below  # half of what the row shows of the road
        dashed = (_dashes(travelled + z + depth) - _dashes(travelled + z - depth)) / (2.0 * depth)
        from_line = np.abs(lateral - _LINES_MIDDLE_M)
        line = _unit((_LINE_M - np.abs(from_line - _LINES_HALF_M)) * px + 0.5)
        line += _unit((_LINE_M - from_line) * px + 0.5) * dashed
        line *= np.minimum(1.0, 2.0 * _LINE_M * px)

        near, far = (edge - travelled for edge in self._trip.tunnel)
        haze = z / (z + look.haze_m) * (1.0 - _inside(z, near, far))
        light = self._light(z) * (1.0 - haze)
        # What each material sends to the camera: its share of the pixel times the light on it.
        line *= light
        road = _unit((_ROAD_HALF_M - np.abs(lateral - _ROAD_MIDDLE_M)) * px + 0.5) * (light - line)
        verge = light - line - road
        np.multiply(look.ground, verge + verge * texture, out=pixels)
        pixels += look.road * (road + road * (self._world.road_texture * texture))
        pixels += _LINE_COLOUR * line
        pixels += look.skyline * (haze * self._daylight)

    def _draw_vehicle(self, pixels: Pixels, vehicle: Vehicle) -> None:
        z = np.full(1, vehicle.gap_m, np.float32)
        px = self._focal_px / vehicle.gap_m
        width, height = (metres * px for metres in vehicle.size_m)
        left = float(self._middle_px(z)[0]) + vehicle.lateral_m * px - width / 2
        top = self._horizon + self._camera_m * px - height
        light = float(self._light(z)[0])
        braking = self._trip.acceleration < -0.5 or self._trip.speed_mps == 0.0
        glow = 0.6 if braking else 0.25 * (self._look.headlights > 0.0)
        lamps = _LAMP * (0.5 * light + glow)
        colours = (_colour(*vehicle.colour) * light, _GLASS * light, _GLASS * (0.4 * light), lamps, lamps)
        bounds = _PARTS * np.array((height, height, width, width), np.float32)[:, None, None]
        upper, lower, outer, inner = bounds + np.array((top, top, left, left), np.float32)[:, None, None]
        down = _unit(np.minimum(lower - _ROWS, _ROWS - upper) + 0.5)
        across = _unit(np.minimum(inner - _COLUMNS, _COLUMNS - outer) + 0.5)
        rows = slice(max(0, int(top)), max(0, int(top + 1.05 * height) + 1))
        columns = slice(max(0, int(left)), max(0, int(left + width) + 1))
        seen = pixels[:, rows, columns]
        for part, colour in enumerate(colours):
            _paint(seen, down[part, rows, None] * across[part, columns], colour)
