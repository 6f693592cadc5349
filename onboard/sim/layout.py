"""The map of the simulated land: what lies where.

A patchwork of parcels (fields, meadows, woods, ponds, farms) of about 30 m, a river, roads on parcel borders, houses
along them, hedges and lone trees. Every use has a parcel in each block of 2 by 4, so that a short flight meets all
classes. Lengths are in metres in the code and pixels of `RESOLUTION_M` in the maps; x points east, y south.
"""

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.sim.noise import Field, smooth

CLASSES = ("grass", "field", "road", "trees", "water", "building")
GRASS, FIELD, ROAD, TREES, WATER, BUILDING = range(len(CLASSES))
RESOLUTION_M = 0.1
WIDTH_M, HEIGHT_M = 244.0, 296.0
WIDTH, HEIGHT = round(WIDTH_M / RESOLUTION_M), round(HEIGHT_M / RESOLUTION_M)
PARCEL_COLS, PARCEL_ROWS = 8, 10
ROAD_WIDTH_M = 7.5
RIVER_WIDTH_M = 10.0
VERGE_M = 1.2
_USES = ("field", "field", "meadow", "meadow", "woods", "pond", "farm", "farm")

Mask = NDArray[np.uint8]
Points = NDArray[np.float64]


class Building(msgspec.Struct, frozen=True):
    """A house: corners in pixels (4, 2), the first two at one gable end; the ridge runs from that end to the other."""

    corners: Points
    kind: float


class Layout(msgspec.Struct, frozen=True):
    """Maps of uint8 (HEIGHT, WIDTH) and what was drawn on them.

    `classes` holds class numbers, `fields` the number of a field's parcel (0 outside). `crowns` is float32, the height
    of the trees' leaves in metres. `centre_lines` are the roads, `kinds` one number in 0..1 per parcel.
    """

    classes: Mask
    fields: Mask
    crowns: Field
    centre_lines: list[Points]
    buildings: list[Building]
    angles: Field
    kinds: Field


def lay_out(rng: np.random.Generator) -> Layout:
    """Make the map of a world from the state of `rng`."""
    uses = _uses(rng)
    parcels, border_m = _parcels(rng)
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    is_field = (uses == "field").ravel()
    fields = np.where(is_field[parcels] & (border_m > VERGE_M), parcels + 1, 0).astype(np.uint8)
    classes[fields > 0] = FIELD
    water = _water(rng, uses)
    classes[water > 0] = WATER
    fields[water > 0] = 0
    lines = _roads(rng)
    roads = np.zeros_like(classes)
    for line in lines:
        _draw(roads, line, ROAD_WIDTH_M)
    yards = _yards(rng, uses)
    for corners in yards:
        cv2.fillPoly(roads, [np.rint(corners).astype(np.int32)], 1)
    roads[(water > 0) & (roads > 0)] = 0
    for line in lines:
        _draw(roads, line, ROAD_WIDTH_M)  # a bridge where a road meets water, none where a yard does
    classes[roads > 0] = ROAD
    fields[roads > 0] = 0
    buildings = _buildings(rng, classes, yards, lines)
    for building in buildings:
        corners = np.rint(building.corners).astype(np.int32)
        cv2.fillPoly(classes, [corners], BUILDING)
        cv2.fillPoly(fields, [corners], 0)
    crowns = _crowns(rng, classes, uses)
    classes[crowns > 0] = TREES
    fields[crowns > 0] = 0
    count = PARCEL_ROWS * PARCEL_COLS + 1
    angles = (rng.integers(0, 2, count) * np.pi / 2 + rng.normal(0, 0.25, count)).astype(np.float32)
    return Layout(classes, fields, crowns, lines, buildings, angles, rng.random(count, np.float32))


def _uses(rng: np.random.Generator) -> NDArray[np.str_]:
    uses = np.empty((PARCEL_ROWS, PARCEL_COLS), dtype="<U8")
    for row in range(0, PARCEL_ROWS, 2):
        for col in range(0, PARCEL_COLS, 4):
            uses[row : row + 2, col : col + 4] = rng.permutation(_USES).reshape(2, 4)
    return uses


def _parcels(rng: np.random.Generator) -> tuple[NDArray[np.int16], Field]:
    """Return each pixel's parcel and its distance in metres from the parcel's border."""
    # Slightly bent coordinates, so that no border is a ruler's line.
    x = (np.arange(WIDTH, dtype=np.float32) + smooth(rng, HEIGHT, WIDTH, 260) * 9) * (PARCEL_COLS / WIDTH)
    y = (np.arange(HEIGHT, dtype=np.float32)[:, None] + smooth(rng, HEIGHT, WIDTH, 260) * 9) * (PARCEL_ROWS / HEIGHT)
    np.clip(x, 0, PARCEL_COLS - 1e-3, out=x)
    np.clip(y, 0, PARCEL_ROWS - 1e-3, out=y)
    col, row = x.astype(np.int16), y.astype(np.int16)
    x -= col
    y -= row
    border = np.minimum(np.minimum(x, 1 - x) * (WIDTH_M / PARCEL_COLS), np.minimum(y, 1 - y) * (HEIGHT_M / PARCEL_ROWS))
    return row * np.int16(PARCEL_COLS) + col, border


def _centre(row: int, col: int) -> tuple[float, float]:
    return (col + 0.5) * WIDTH / PARCEL_COLS, (row + 0.5) * HEIGHT / PARCEL_ROWS


def _water(rng: np.random.Generator, uses: NDArray[np.str_]) -> Mask:
    water = np.zeros((HEIGHT, WIDTH), np.uint8)
    around = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    for row, col in np.argwhere(uses == "pond"):
        x, y = _centre(row, col)
        radius_m = rng.uniform(11.5, 14.5) * np.ones_like(around)
        for wave in (2, 3, 5):
            radius_m += rng.uniform(0.3, 1.4) * np.cos(wave * around + rng.uniform(0, 6.3))
        shore = np.stack([x + radius_m * np.cos(around) * 10, y + radius_m * np.sin(around) * 10], 1)
        cv2.fillPoly(water, [np.rint(shore).astype(np.int32)], 1)
    _draw(water, _wander(rng, 0.62 * WIDTH_M, 14.0), RIVER_WIDTH_M)
    return water


def _wander(rng: np.random.Generator, base_m: float, swing_m: float) -> Points:
    """Return a line that winds from north to south around x = base_m, in pixels (n, 2)."""
    y_m = np.arange(-10, HEIGHT_M + 10, 2.0)
    x_m = np.full_like(y_m, base_m)
    for wave_m, part in ((170.0, 0.6), (75.0, 0.3), (37.0, 0.1)):
        x_m += swing_m * part * np.sin(2 * np.pi * y_m / wave_m + rng.uniform(0, 6.3))
    return np.stack([x_m, y_m], 1) / RESOLUTION_M


def _roads(rng: np.random.Generator) -> list[Points]:
    lines = [_wander(rng, WIDTH_M * col / PARCEL_COLS, 4.0) for col in (2, 4, 6)]
    for row in (3, 6, 9):
        # The same winding line, from west to east.
        line = _wander(rng, HEIGHT_M * row / PARCEL_ROWS, 4.0)[:, ::-1]
        lines.append(line[line[:, 0] < WIDTH + 100])
    return lines


def _draw(mask: Mask, line: Points, width_m: float) -> None:
    cv2.polylines(mask, [np.rint(line).astype(np.int32)], False, 1, round(width_m / RESOLUTION_M))


def _rectangle(x: float, y: float, length_m: float, width_m: float, angle: float) -> Points:
    """Return corners in pixels around (x, y); the first two lie at one end of the long side."""
    along = np.array([np.cos(angle), np.sin(angle)]) * length_m / 2 / RESOLUTION_M
    across = np.array([-np.sin(angle), np.cos(angle)]) * width_m / 2 / RESOLUTION_M
    corners: Points = np.array([-along - across, -along + across, along + across, along - across])
    corners += (x, y)
    return corners


def _yards(rng: np.random.Generator, uses: NDArray[np.str_]) -> list[Points]:
    yards = []
    for row, col in np.argwhere(uses == "farm"):
        x, y = _centre(row, col)
        yards.append(_rectangle(x, y, rng.uniform(19, 22), rng.uniform(15, 18), rng.normal(0, 0.15)))
    return yards


def _buildings(rng: np.random.Generator, classes: Mask, yards: list[Points], lines: list[Points]) -> list[Building]:
    sites = []
    for yard in yards:
        along, across = yard[2] - yard[1], yard[1] - yard[0]
        angle = float(np.arctan2(along[1], along[0]))
        for u, v, turn, length_m in ((0.2, 0.5, 0.5, 15.0), (0.78, 0.12, 0.0, 11.0), (0.78, 0.88, 0.0, 11.0)):
            x, y = yard[0] + u * along + v * across
            length_m *= rng.uniform(0.9, 1.1)
            sites.append(_rectangle(x, y, length_m, rng.uniform(8.0, 9.5), angle + turn * np.pi))
    for _ in range(110):
        line = lines[rng.integers(len(lines))]
        at = int(rng.integers(5, len(line) - 5))
        step = line[at + 1] - line[at]
        step /= np.hypot(*step)
        side = rng.choice([-1.0, 1.0]) * rng.uniform(11, 13) / RESOLUTION_M
        x, y = line[at] + side * np.array([-step[1], step[0]])
        angle = float(np.arctan2(step[1], step[0])) + rng.normal(0, 0.06)
        sites.append(_rectangle(x, y, rng.uniform(9, 14), rng.uniform(8, 10), angle))
    taken = (classes == WATER).astype(np.uint8)
    for line in lines:
        _draw(taken, line, ROAD_WIDTH_M + 1)
    buildings = []
    for corners in sites:
        x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int) - 25, 0)
        x1, y1 = np.ceil(corners.max(0)).astype(int) + 25
        part = taken[y0:y1, x0:x1]
        own = np.zeros_like(part)
        if own.size:
            cv2.fillPoly(own, [np.rint(corners).astype(np.int32) - np.array([x0, y0], np.int32)], 1)
        if own.any() and not (own & part).any():
            # A strip of 2 m around a house stays free of other houses.
            part |= cv2.dilate(own, np.ones((41, 41), np.uint8))
            buildings.append(Building(corners, float(rng.random())))
    return buildings


def _crowns(rng: np.random.Generator, classes: Mask, uses: NDArray[np.str_]) -> Field:
    """Return the height of the leaves above the ground in metres, 0 where there is no tree."""
    spots = [rng.uniform((0, 0), (WIDTH, HEIGHT), (170, 2))]
    for row, col in np.argwhere(uses == "woods"):
        x, y = _centre(row, col)
        grid = np.stack(np.meshgrid(np.arange(-14, 14.1, 3.5), np.arange(-13, 13.1, 3.5)), -1).reshape(-1, 2)
        grid += rng.normal(0, 0.9, grid.shape)
        grid = grid[np.hypot(*grid.T) < 14.5 + rng.normal(0, 1.5, len(grid))]
        spots.append(np.array([x, y]) + grid / RESOLUTION_M)
    for row, col in np.argwhere(rng.random((PARCEL_ROWS - 1, PARCEL_COLS)) < 0.4):
        count = int(rng.integers(4, 9))
        along = (col + rng.uniform(0.05, 0.95, count)) * WIDTH / PARCEL_COLS
        across = (row + 1) * HEIGHT / PARCEL_ROWS + rng.normal(0, 12, count)
        spots.append(np.stack([along, across], 1))
    free = cv2.erode((classes <= FIELD).astype(np.uint8), np.ones((17, 17), np.uint8))
    crowns = np.zeros((HEIGHT, WIDTH), np.float32)
    for x, y in np.concatenate(spots):
        col, row = int(x), int(y)
        if 0 <= row < HEIGHT and 0 <= col < WIDTH and free[row, col]:
            _plant(rng, crowns, row, col)
    crowns[(classes == BUILDING) | (classes == WATER)] = 0
    return crowns


def _plant(rng: np.random.Generator, crowns: Field, row: int, col: int) -> None:
    """Put one lumpy crown into the map, in front of what is lower."""
    radius = int(rng.uniform(1.7, 3.4) / RESOLUTION_M)
    reach = radius + 6
    top, left = max(row - reach, 0), max(col - reach, 0)
    part = crowns[top : row + reach + 1, left : col + reach + 1]
    y, x = np.ogrid[top - row : top - row + part.shape[0], left - col : left - col + part.shape[1]]
    angle, distance = np.arctan2(y, x), np.hypot(x, y) / radius
    a, b, c = rng.uniform(0, 6.3, 3)
    edge = 1 + 0.1 * np.cos(3 * angle + a) + 0.07 * np.cos(5 * angle + b) + 0.05 * np.cos(9 * angle + c)
    dome = 1 - (distance / edge) ** 2
    height = np.where(dome > 0, 1.0 + rng.uniform(2.5, 4.5) * np.sqrt(np.maximum(dome, 0)), 0)
    np.maximum(part, height, out=part, casting="same_kind")
