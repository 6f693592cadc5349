"""A tiny data set in the packed format: 32 x 32 photos of three textures that differ in nothing but their grain."""

import cv2
import numpy as np

CLASS_NAMES = ("smooth", "striped", "grainy")
SIZE = 32

RECIPE = """
dataset = "ucmerced"
epochs = {epochs}
batch = 16
learning_rate = {learning_rate}
seed = {seed}

[augment]
min_scale = 0.7

[network]
name = "tiny"
input_size = 32
mean = [110, 110, 110]
taps = [0, 1]
beta_f = 4
stem = {{ channels = 16 }}
blocks = [{{ channels = 32, stride = 2 }}, {{ channels = 32, beta_w = 24, beta_a = 5 }}]
"""
"""The grain tells the classes apart, so the views must not zoom it much."""


def recipe_text(epochs=6, learning_rate=1e-2, seed=0):
    return RECIPE.format(epochs=epochs, learning_rate=learning_rate, seed=seed)


def texture(label, rng):
    """One picture, uint8 (32, 32, 3); brightness, contrast and colour say nothing about the label."""
    noise = rng.normal(size=(SIZE, SIZE)).astype(np.float32)
    if label == 0:
        grain = cv2.GaussianBlur(noise, (0, 0), 4)
    elif label == 1:
        y, x = np.mgrid[:SIZE, :SIZE]
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        grain = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / 7 + phase)
    else:
        grain = noise
    grain = (grain - grain.mean()) / grain.std()
    picture = rng.uniform(80, 150, 3) + grain[..., None] * rng.uniform(20, 40)
    return picture.clip(0, 255).astype(np.uint8)


def arrays(count=300, seed=0, test_every=5):
    """The arrays of a packed file, labels in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASS_NAMES)
    files = [cv2.imencode(".jpg", texture(label, rng), [cv2.IMWRITE_JPEG_QUALITY, 90])[1] for label in labels]
    return {
        "data": np.concatenate(files),
        "offsets": np.cumsum([0, *(len(file) for file in files)]),
        "labels": labels.astype(np.int16),
        "split": (np.arange(count) % test_every == 0).astype(np.uint8),
        "class_names": np.array(CLASS_NAMES),
    }


def write(folder, content):
    """Write the arrays as the data set that the recipe names; returns its path."""
    path = folder / "ucmerced.npz"
    np.savez(path, **content)
    return path
