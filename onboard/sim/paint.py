"""How the simulated land looks from above: an orthophoto painted over a `Layout`.

The west-to-east border in the middle of the world parts two regions in which the same classes look different: green
meadows, asphalt, slate roofs in the north; dry grass, gravel, red tiles in the south.
"""

from collections.abc import Callable, Iterator

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.sim.layout import (
    BUILDING,
    FIELD,
    GRASS,
    HEIGHT,
    RESOLUTION_M,
    ROAD,
    TREES,
    WATER,
    WIDTH,
    Building,
    Layout,
    Mask,
)
from onboard.sim.noise import Field, fractal, periodic, smooth

TEXTURE = 512
"""Side in pixels of the fine textures, which repeat; the large-scale variation on top of them does not."""
SHADOW_STEP = np.array([0.55, -0.4])
"""Metres east and south that a shadow falls per metre of height; the sun stands in the south-west."""
HOUSE_M = 6.0
STRIP = 128
"""Rows that are painted at once."""
MARGIN = 16
"""Rows around them that blurring looks at, and more."""
SUN = np.array([-0.8, 0.6])
"""Towards the sun, east and south."""

# RGB in the north and in the south.
_GRASS = ((98, 113, 70), (154, 139, 98))
_PATCH = ((80, 102, 56), (174, 156, 120))
_PLOUGHED = ((116, 90, 66), (178, 158, 104))
_CROP = ((94, 118, 64), (84, 105, 58))
_SOIL = ((126, 104, 76), (112, 88, 64))
_ROAD = ((104, 104, 106), (172, 156, 128))
_LEAVES = ((72, 98, 50), (104, 106, 58))
_WATER = ((56, 70, 68), (106, 104, 80))
_ROOF = ((92, 96, 104), (166, 88, 64))
_ROOF2 = ((140, 138, 134), (142, 98, 78))
_WHITE = np.array((196, 196, 190), np.float32)

Colours = tuple[tuple[int, int, int], tuple[int, int, int]]
Image = NDArray[np.float32]
Brush = Callable[["Area"], Image]


class Area(msgspec.Struct, frozen=True):
    """The pixels of one class: (n,) rows, columns, share of the southern region, and large-scale variation."""

    rows: NDArray[np.intp]
    cols: NDArray[np.intp]
    south: Field
    wide: Field

    def mix(self, pair: Colours) -> Image:
        """Return the colour (n, 3) between the northern and the southern one."""
        return _mix(pair, self.south)

    def texture(self, field: Field) -> Field:
        """Return the values (n,) of a field of `TEXTURE` by `TEXTURE`, repeated over the land."""
        return np.asarray(field[self.rows % TEXTURE, self.cols % TEXTURE])


def paint(layout: Layout, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the orthophoto, uint8 (HEIGHT, WIDTH, 3) in BGR, in the flat light of noon.

    It is painted in strips, because floats of all that a brush mixes take ten times the memory of the picture.
    """
    photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # first: what lies behind it in memory is given back at the end
    south = _south(rng)
    wide = fractal(rng, HEIGHT, WIDTH, 160, 4)
    light = 1 - 0.55 * _shadow(layout)
    for number, make in ((GRASS, _grass), (FIELD, _field), (ROAD, _road), (TREES, _trees), (WATER, _water)):
        brush = make(layout, rng)
        for strip in _strips():
            rows, cols = np.nonzero(layout.classes[strip] == number)
            rows += strip.start
            colour = brush(Area(rows, cols, south[rows, cols], wide[rows, cols]))
            photo[rows, cols] = _bgr(colour * light[rows, cols, None])
    marks = _lane_marks(layout, south)
    photo[marks] = _bgr(_WHITE * light[marks][:, None])
    for building in layout.buildings:
        _roof(photo, building, layout, rng, south)
    return photo


def _bgr(rgb: Image) -> NDArray[np.uint8]:
    return np.asarray(np.clip(rgb.astype(np.float32, copy=False), 0, 255).astype(np.uint8)[..., ::-1])


def _strips() -> Iterator[slice]:
    """The rows of the land, STRIP at a time."""
    return (slice(row, min(row + STRIP, HEIGHT)) for row in range(0, HEIGHT, STRIP))


def _south(rng: np.random.Generator) -> Field:
    """Return how much a place belongs to the southern region, 0..1; the border frays over some ten metres."""
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None] - HEIGHT / 2
    return np.clip((rows + 60 * fractal(rng, HEIGHT, WIDTH, 200, 3)) / 60 + 0.5, 0, 1).astype(np.float32)


def _mix(pair: Colours, south: Field) -> Image:
    north_rgb, south_rgb = np.array(pair, np.float32)
    return np.asarray(north_rgb + (south_rgb - north_rgb) * south[:, None], np.float32)


def _step(field: Field, low: Field | float, high: float) -> Field:
    """Rise from 0 at `low` to 1 at `high`."""
    return np.asarray(np.clip((field - low) / (high - low), 0, 1), np.float32)


# --- one brush per class: made once for its textures, it returns the colours (n, 3) of an area ------------------------


def _grass(layout: Layout, rng: np.random.Generator) -> Brush:
    tuft, patch = periodic(rng, TEXTURE, 2.5, 40, slope=0.6), periodic(rng, TEXTURE, 12, 200, slope=1.2)

    def brush(area: Area) -> Image:
        patches = _step(area.texture(patch) + 0.5 * area.wide, 0.4, 1.4)
        colour = area.mix(_GRASS)
        colour += (area.mix(_PATCH) - colour) * patches[:, None]
        return np.asarray(colour * (1 + 0.07 * area.wide + 0.11 * area.texture(tuft))[:, None])

    return brush


def _field(layout: Layout, rng: np.random.Generator) -> Brush:
    clod = periodic(rng, TEXTURE, 2.5, 14, slope=0.3)

    def brush(area: Area) -> Image:
        number = layout.fields[area.rows, area.cols]
        angle, kind = layout.angles[number], layout.kinds[number]
        x_m = ((area.cols + 2.5 * area.wide) * np.cos(angle) + area.rows * np.sin(angle)) * RESOLUTION_M
        # Furrows 0.7 to 1.2 m apart, and the tracks of a tractor every 15 m.
        furrow = np.sin(2 * np.pi * x_m / (0.7 + 0.5 * ((kind * 7) % 1)), dtype=np.float32)
        track = _step(-np.abs(x_m % 15 - 7.5), -0.5, -0.2)
        clods = area.texture(clod)
        # Crops stand in rows in the north and nearly hide the soil in the south.
        plants = _step(furrow + 0.5 * clods, -0.6 - 0.9 * area.south, 0.4)
        soil, ploughed = area.mix(_SOIL), area.mix(_PLOUGHED) * (1 + 0.16 * furrow)[:, None]
        colour = np.where((kind > 0.5)[:, None], soil + (area.mix(_CROP) - soil) * plants[:, None], ploughed)
        return np.asarray(colour * ((1 + 0.07 * area.wide + 0.08 * clods) * (1 - 0.25 * track))[:, None])

    return brush


def _road(layout: Layout, rng: np.random.Generator) -> Brush:
    fine, coarse = periodic(rng, TEXTURE, 2, 6, slope=0.0), periodic(rng, TEXTURE, 10, 120, slope=1.0)
    distance = _distance(layout, ROAD)

    def brush(area: Area) -> Image:
        grain, stains, edge_m = area.texture(fine), area.texture(coarse), _edge_m(distance, area)
        # Wheels polish asphalt a little and cut ruts into gravel; grass grows in from the edge of gravel only.
        rut = np.exp(-(((edge_m - 1.9) / 0.5) ** 2))
        weeds = 0.7 * _step(0.9 - edge_m - 0.4 * stains, 0.0, 0.8) * area.south
        colour = area.mix(_ROAD)
        colour += (area.mix(_GRASS) - colour) * weeds[:, None]
        shade = 1 + (0.03 + 0.06 * area.south) * grain + 0.06 * stains + 0.03 * area.wide
        return np.asarray(colour * (shade - (0.05 + 0.13 * area.south) * rut)[:, None])

    return brush


def _trees(layout: Layout, rng: np.random.Generator) -> Brush:
    leaf = periodic(rng, TEXTURE, 3, 16, slope=0.4)

    def brush(area: Area) -> Image:
        light = np.clip(_slope(layout.crowns, area) * 0.5, -0.5, 0.5)
        deep = _step(layout.crowns[area.rows, area.cols], 0.5, 3.5)
        shade = (0.62 + 0.38 * deep) * (1 + light) * (1 + 0.2 * area.texture(leaf)) * (1 + 0.06 * area.wide)
        return np.asarray(area.mix(_LEAVES) * np.maximum(shade, 0.15)[:, None])

    return brush


def _water(layout: Layout, rng: np.random.Generator) -> Brush:
    wave = periodic(rng, TEXTURE, 4, 40, stretch=2.5, slope=0.8)
    distance = _distance(layout, WATER)

    def brush(area: Area) -> Image:
        waves, shallow = area.texture(wave), np.exp(_edge_m(distance, area) / -1.2)
        colour = area.mix(_WATER)
        colour += (np.array(_SOIL[0], np.float32) - colour) * (0.7 * shallow)[:, None]
        colour *= (1 + 0.05 * waves + 0.05 * area.wide)[:, None]
        return np.asarray(colour + (70 * _step(waves, 2.0, 3.2))[:, None])  # the sky in the steepest waves

    return brush


def _slope(crowns: Field, area: Area) -> Field:
    """How much the leaves of an area rise towards the sun."""
    if not len(area.rows):
        return np.zeros(0, np.float32)
    top = max(int(area.rows.min()) - MARGIN, 0)
    part = cv2.GaussianBlur(crowns[top : int(area.rows.max()) + MARGIN], (0, 0), 1.5)
    slope = cv2.Sobel(part, cv2.CV_32F, 1, 0, scale=-SUN[0]) + cv2.Sobel(part, cv2.CV_32F, 0, 1, scale=-SUN[1])
    return np.asarray(slope[area.rows - top, area.cols], np.float32)


def _distance(layout: Layout, number: int) -> Field:
    """Pixels to the nearest other class."""
    return np.asarray(cv2.distanceTransform((layout.classes == number).astype(np.uint8), cv2.DIST_L2, 3), np.float32)


def _edge_m(distance: Field, area: Area) -> Field:
    """The distance in metres to the nearest other class, of an area."""
    return np.asarray(distance[area.rows, area.cols] * np.float32(RESOLUTION_M), np.float32)


# --- things on top ---------------------------------------------------------------------------------------------------


def _lane_marks(layout: Layout, south: Field) -> NDArray[np.bool_]:
    """Where the dashed white line lies, (HEIGHT, WIDTH): on roads, where they are of asphalt."""
    marks = np.zeros((HEIGHT, WIDTH), np.uint8)
    for line in layout.centre_lines:
        for start, end in zip(line[::3], line[1::3], strict=False):
            col, row = (start + end).astype(int) // 2
            if 0 <= row < HEIGHT and 0 <= col < WIDTH and layout.classes[row, col] == ROAD and south[row, col] < 0.5:
                cv2.line(marks, tuple(map(int, start)), tuple(map(int, end)), 1, 2)
    return marks > 0


def _shadow(layout: Layout) -> Field:
    """Return the shadows of trees and houses, 0..1 with soft edges; houses and crowns are lit by their own rules."""
    high = layout.classes == BUILDING
    shadow = np.zeros((HEIGHT, WIDTH), np.uint8)
    for height_m in np.arange(0.5, HOUSE_M, 0.5):
        tall = high if height_m > 4 else high | (layout.crowns > height_m)
        move = np.column_stack([np.eye(2), SHADOW_STEP * height_m / RESOLUTION_M])
        shadow |= np.asarray(
            cv2.warpAffine(tall.astype(np.uint8), move, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST), np.uint8
        )
    shadow[high | (layout.crowns > 0)] = 0
    return np.asarray(cv2.blur(shadow.astype(np.float32), (5, 5)))


def _roof(photo: NDArray[np.uint8], building: Building, layout: Layout, rng: np.random.Generator, south: Field) -> None:
    """Paint both halves of a gable roof, tiles, ridge and a chimney."""
    corners = building.corners
    middle = corners.mean(0)
    row, col = np.clip(middle[::-1].astype(int), 0, (HEIGHT - 1, WIDTH - 1))
    x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (WIDTH, HEIGHT))
    own: Mask = layout.classes[y0:y1, x0:x1] == BUILDING
    along = corners[2] - corners[1]
    length = np.hypot(*along)
    along /= length
    across = np.array([-along[1], along[0]])
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    u = (x - middle[0]) * along[0] + (y - middle[1]) * along[1]
    v = (x - middle[0]) * across[0] + (y - middle[1]) * across[1]
    half = np.hypot(*(corners[1] - corners[0])) / 2
    own &= (np.abs(u) <= length / 2 + 4) & (np.abs(v) <= half + 4)  # not the neighbour's
    colour = _mix(_ROOF if building.kind < 0.7 else _ROOF2, south[row : row + 1, col])[0] * rng.uniform(0.85, 1.15)
    lit = 1 + 0.28 * np.sign(v) * (across @ SUN)
    tiles = 1 + 0.06 * np.sign(np.sin(v * (2 * np.pi / 7))) + 0.03 * np.sin(u * (2 * np.pi / 5))
    ridge = np.where(np.abs(v) < 1.5, 1.2, 1.0)
    chimney = (np.abs(u - 0.25 * length) < 5) & (np.abs(v - 0.3 * half) < 4)
    shade = np.where(chimney, 0.45, lit * tiles * ridge) * (1 + 0.05 * smooth(rng, y1 - y0, x1 - x0, 4))
    photo[y0:y1, x0:x1][own] = _bgr((colour * shade[..., None])[own])
