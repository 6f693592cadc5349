"""Fig. 3, the angle between a random vector and its binarized twin; Fig. 2, what binarizing does to a convolution."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.binarize import Layout, activation_rows, binarize, weight_rows
from models.paper.report import Row

BETAS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PAPER_ANGLES = {1: 0.0, 2: 25.0, 4: 31.5, 8: 34.3, 16: 35.7, 32: 36.3, 512: 37.0}
LENGTH = 2**20
CORRELATED = (1, 2, 4, 8)


def angle(beta: int, seed: int = 0) -> float:
    """Degrees between a normal random vector and its binarized twin."""
    x = np.random.default_rng(seed).normal(size=LENGTH)
    y = binarize(x, beta)
    return float(np.degrees(np.arccos(np.clip(x @ y / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))))


def expected_angle(beta: int) -> float:
    """The same for an endless vector: cos^2 = E[delta^2] / E[x^2] = 1/beta + (1 - 1/beta) * 2/pi."""
    return float(np.degrees(np.arccos(np.sqrt(1 / beta + (1 - 1 / beta) * 2 / np.pi))))


def figure3() -> list[Row]:
    """A row for each block length."""
    return [
        {"beta": b, "paper_degrees": PAPER_ANGLES.get(b), "degrees": angle(b), "expected": expected_angle(b)}
        for b in BETAS
    ]


def figure2(layout: Layout = "row", seed: int = 0) -> Iterator[Row]:
    """Correlation of a convolution's output with that of the float one, for each pair of block lengths.

    Its input are textures with the spectrum of photos, through a random convolution, ReLU and normalisation; its
    weights are random, not trained.
    """
    rng = np.random.default_rng(seed)
    x = _normalised(np.maximum(_normalised(_convolve(_textures(rng, 16, 24), rng.normal(size=(32, 3, 3, 3)))), 0))
    weight = rng.normal(size=(32, 32, 3, 3))
    exact = _convolve(x, weight).ravel()
    for beta_w in CORRELATED:
        rows = binarize(weight_rows(weight, layout), beta_w)
        w = rows.reshape(32, 32, 3, 3) if layout == "row" else rows.reshape(32, 3, 3, 32).transpose(0, 3, 1, 2)
        for beta_a in CORRELATED:
            a = binarize(activation_rows(x, layout), beta_a)
            a = a if layout == "row" else a.transpose(0, 3, 1, 2)
            correlation = np.corrcoef(_convolve(a, w).ravel(), exact)[0, 1]
            yield {"beta_w": beta_w, "beta_a": beta_a, "correlation": float(correlation)}


def _textures(rng: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    spectrum = np.fft.rfft2(rng.normal(size=(count, 3, size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    return np.asarray(np.fft.irfft2(spectrum / frequency), np.float64)


def _normalised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    return out


def _convolve(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """3 x 3, zero padding, NCHW."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True), np.float64)
