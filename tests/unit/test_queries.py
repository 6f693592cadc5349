"""What is asked: within the share, of fresh ground, the same for the same seed."""

import numpy as np

from onboard.queries import MAX_SAVED, Asker
from onboard.tracks import Path

ROWS, COLS = 6, 8
TILES = ROWS * COLS
AHEAD = np.array([[1.0, 0, 2], [0, 1, 0], [0, 0, 1]])  # two new columns a frame


def looks(frame: int) -> np.ndarray:
    """Features of a frame's tiles: noise, another in each frame."""
    return np.random.default_rng(frame).standard_normal((TILES, 16)).astype(np.float32)


def fly(asker: Asker, frames: int, motion, reach: int = 64):
    """(frame, tile) of everything asked."""
    path, asked = Path(reach), []
    for frame in range(frames):
        path.add(frame, None if frame == 0 else motion)
        asked += [(frame, tile) for tile in asker.choose(frame, path, looks(frame))]
    return asked


def test_never_more_than_the_share():
    for share in (0.001, 0.01, 0.03, 0.3):
        asker, path, count = Asker(share, ROWS, COLS, 0), Path(64), 0
        for frame in range(300):
            path.add(frame, None)  # a cut at each frame: everything is always fresh
            count += len(asker.choose(frame, path, looks(frame)))
            assert count == int(share * TILES * (frame + 1) + 1e-9)


def test_a_share_of_nothing_and_of_all():
    assert fly(Asker(0.0, ROWS, COLS, 0), 50, None) == []
    asked = fly(Asker(1.0, ROWS, COLS, 0), 3, None)
    assert sorted(asked) == [(frame, tile) for frame in range(3) for tile in range(TILES)]


def test_the_same_seed_asks_the_same():
    runs = [fly(Asker(0.03, ROWS, COLS, seed), 40, AHEAD) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert all(isinstance(tile, int) for _, tile in runs[0])


def test_no_ground_is_asked_about_twice():
    """The camera moves by whole columns, so each tile has a place on the ground that can be counted."""
    asked = fly(Asker(1.0, ROWS, COLS, 0), 20, AHEAD)
    places = [(tile // COLS, 2 * frame + tile % COLS) for frame, tile in asked]
    assert len(set(places)) == len(places)
    assert set(places) == {(row, col) for row in range(ROWS) for col in range(2 * 19 + COLS)}


def test_still_ground_runs_out_and_only_a_few_questions_are_saved_up():
    asker, path = Asker(0.5, ROWS, COLS, 0), Path(64)
    asked = []
    for frame in range(30):
        path.add(frame, None if frame in (0, 20) else np.eye(3))
        asked.append(asker.choose(frame, path, looks(frame)))
    before = [tile for tiles in asked[:20] for tile in tiles]
    assert sorted(before) == list(range(TILES))
    assert asked[5:20] == [[]] * 15
    assert [len(tiles) for tiles in asked[20:22]] == [TILES // 2 + MAX_SAVED, TILES // 2 - MAX_SAVED]


def test_ground_that_overlaps_by_less_than_a_third_is_fresh():
    for overlap in (0.05, 0.29, 0.31, 0.75, 1.0):
        asker, path = Asker(1.0, 1, 2, 0), Path(64)
        path.add(0, None)
        assert sorted(asker.choose(0, path, looks(0)[:2])) == [0, 1]
        # column 0 shows what lay this share within column 1, and beyond
        path.add(1, np.array([[1.0, 0, 2 - overlap], [0, 1, 0], [0, 0, 1]]))
        assert (0 in asker.choose(1, path, looks(1)[:2])) == (overlap < 0.3)


def test_questions_at_random_are_equally_likely_for_every_fresh_tile(monkeypatch):
    monkeypatch.setattr(Asker, "TYPICAL_FIRST", 0)
    monkeypatch.setattr(Asker, "TYPICAL_SHARE", 0.0)
    counts = np.zeros(TILES)
    for seed in range(1200):
        (_, tile), *_ = fly(Asker(1 / TILES, ROWS, COLS, seed), 1, None)
        counts[tile] += 1
    chi2 = ((counts - 25) ** 2 / 25).sum()
    print(f"chi squared of 1200 first questions over {TILES} tiles: {chi2:.0f} (99.9% lie below 86)")
    assert chi2 < 86


def test_the_first_questions_show_every_common_look_once_and_no_outlier_first():
    """Five looks of eight to nine tiles each, and five tiles that are like nothing else."""
    kinds = np.eye(16, dtype=np.float32)
    noise = np.random.default_rng(0).standard_normal((TILES, 16)).astype(np.float32) * 0.05
    kind = np.arange(TILES) % 5
    values = kinds[kind] + noise
    values[-5:] = np.eye(16, dtype=np.float32)[10:15]
    path = Path(64)
    path.add(0, None)
    chosen = Asker(5 / TILES, ROWS, COLS, 0).choose(0, path, values)
    assert sorted(kind[chosen]) == [0, 1, 2, 3, 4]
    assert max(chosen) < TILES - 5
