"""What is asked: within the share, of fresh ground, the same for the same seed."""

import numpy as np

from onboard.queries import MAX_SAVED, Asker
from onboard.tracks import Path

ROWS, COLS = 6, 8
TILES = ROWS * COLS
UNSURE = np.full(TILES, 0.5, np.float32)
AHEAD = np.array([[1.0, 0, 2], [0, 1, 0], [0, 0, 1]])  # two new columns a frame


def looks(frame: int) -> np.ndarray:
    """Features of a frame's tiles: noise, another in each frame."""
    return np.random.default_rng(frame).standard_normal((TILES, 16)).astype(np.float32)


def fly(asker: Asker, frames: int, motion, reach: int = 64):
    """(frame, tile) of everything asked."""
    path, asked = Path(reach), []
    for frame in range(frames):
        path.add(frame, None if frame == 0 else motion)
        asked += [(frame, tile) for tile in asker.choose(frame, path, looks(frame), UNSURE)]
    return asked


def test_never_more_than_the_share():
    for share in (0.001, 0.01, 0.03, 0.3):
        asker, path, count = Asker(share, ROWS, COLS, 0), Path(64), 0
        for frame in range(300):
            path.add(frame, None)  # a cut at each frame: everything is always fresh
            count += len(asker.choose(frame, path, looks(frame), UNSURE))
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
        asked.append(asker.choose(frame, path, looks(frame), UNSURE))
    before = [tile for tiles in asked[:20] for tile in tiles]
    assert sorted(before) == list(range(TILES))
    assert asked[5:20] == [[]] * 15
    assert [len(tiles) for tiles in asked[20:22]] == [TILES // 2 + MAX_SAVED, TILES // 2 - MAX_SAVED]


def test_ground_that_overlaps_by_less_than_a_third_is_fresh():
    for overlap in (0.05, 0.29, 0.31, 0.75, 1.0):
        asker, path = Asker(1.0, 1, 2, 0), Path(64)
        path.add(0, None)
        assert sorted(asker.choose(0, path, looks(0)[:2], UNSURE[:2])) == [0, 1]
        # column 0 shows what lay this share within column 1, and beyond
        path.add(1, np.array([[1.0, 0, 2 - overlap], [0, 1, 0], [0, 0, 1]]))
        assert (0 in asker.choose(1, path, looks(1)[:2], UNSURE[:2])) == (overlap < 0.3)


def test_questions_at_random_are_equally_likely_for_every_fresh_tile(monkeypatch):
    monkeypatch.setattr(Asker, "RANDOM_SHARE", 1.0)
    counts = np.zeros(TILES)
    for seed in range(1200):
        (_, tile), *_ = fly(Asker(1 / TILES, ROWS, COLS, seed), 1, None)
        counts[tile] += 1
    chi2 = ((counts - 25) ** 2 / 25).sum()
    print(f"chi squared of 1200 first questions over {TILES} tiles: {chi2:.0f} (99.9% lie below 86)")
    assert chi2 < 86


KINDS = np.eye(16, dtype=np.float32)


def kinds(counts, seed: int = 0):
    """Features of a frame with so many tiles of each kind, and the kind of each."""
    kind = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng(seed).standard_normal((len(kind), 16)).astype(np.float32) * 0.05
    return KINDS[kind] + noise, kind


def test_the_first_questions_show_every_common_look_once_and_no_outlier_first(monkeypatch):
    """Five looks of eight to nine tiles each, and five tiles that are like nothing else."""
    monkeypatch.setattr(Asker, "RANDOM_SHARE", 0.0)
    values, kind = kinds([9, 9, 9, 8, 8, 1, 1, 1, 1, 1])
    path = Path(64)
    path.add(0, None)
    chosen = Asker(5 / TILES, ROWS, COLS, 0).choose(0, path, values, UNSURE)
    assert sorted(kind[chosen]) == [0, 1, 2, 3, 4]


def test_what_was_asked_about_is_not_asked_about_again_on_other_ground(monkeypatch):
    """The same looks in every frame: a kind that appears later is asked about at once, although it is rare."""
    monkeypatch.setattr(Asker, "RANDOM_SHARE", 0.0)
    asker, path = Asker(4 / TILES, ROWS, COLS, 0), Path(64)
    asked = []
    for frame in range(6):
        path.add(frame, None)
        values, kind = kinds([20, 20, 8, 0] if frame < 3 else [20, 16, 8, 4], seed=frame)
        asked.append(kind[asker.choose(frame, path, values, UNSURE)].tolist())
    assert set(asked[0]) == {0, 1, 2}
    assert asked[3][0] == 3


def test_of_two_looks_the_one_that_the_head_is_unsure_of_is_asked_first(monkeypatch):
    monkeypatch.setattr(Asker, "RANDOM_SHARE", 0.0)
    values, kind = kinds([24, 24])
    for unsure in (0, 1):
        sure = np.where(kind == unsure, 0.4, 0.95).astype(np.float32)
        path = Path(64)
        path.add(0, None)
        assert kind[Asker(1 / TILES, ROWS, COLS, 0).choose(0, path, values, sure)].tolist() == [unsure]


def test_certainty_of_one_everywhere_still_asks():
    """A head that is sure of everything, as one with a single class is."""
    asked = []
    asker, path = Asker(2 / TILES, ROWS, COLS, 0), Path(64)
    path.add(0, None)
    asked = asker.choose(0, path, looks(0), np.ones(TILES, np.float32))
    assert len(set(asked)) == 2
