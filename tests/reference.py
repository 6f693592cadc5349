"""Slow twins of the kernels, written from the formulas of docs/architecture.md in float64, one entry after another.

They share no code with `models`: not its bit order, not its blocks, not its convolution.
"""

import numpy as np

HEAD_STEP = 2.0**-9
POOL_EPSILON = 1e-5


def sign(value):
    return -1 if value < 0 else 1


def bit(packed, n):
    return (int(packed[n // 8]) >> (n % 8)) & 1


def blocks(width, beta):
    """(first, last + 1) of each block of a row; 0 means the whole row."""
    beta = beta or width
    return [(start, min(start + beta, width)) for start in range(0, width, beta)]


def binarize(row, beta):
    """Eq. 1, 2 of one row."""
    out = []
    for first, last in blocks(len(row), beta):
        delta = sum(abs(float(v)) for v in row[first:last]) / (last - first)
        out += [delta * sign(v) for v in row[first:last]]
    return out


def integer_weight(bits, q, entries, beta):
    """q * sign of each entry of K: bits (O, ceil(K/8)), q (O, blocks) -> int64 (O, K)."""
    length = beta or entries
    out = np.empty((len(bits), entries), np.int64)
    for o, n in np.ndindex(out.shape):
        out[o, n] = (1 - 2 * bit(bits[o], n)) * int(q[o, n // length])
    return out


def convolve(x, weight, kernel, stride, half=None):
    """x (N, H, W, C), weight (O, k * k * C) with K = (kh, kw, c); zeros outside; keeps integers integer.

    half: pixels of padding, kernel // 2 where it is not given.
    """
    n, height, width, channels = x.shape
    half = kernel // 2 if half is None else half
    rows, columns = (range(0, size + 2 * half - kernel + 1, stride) for size in (height, width))
    out = np.zeros((n, len(rows), len(columns), len(weight)), np.result_type(x, weight))
    for i, y0 in enumerate(rows):
        for j, x0 in enumerate(columns):
            for tap in range(kernel * kernel):
                y, column = y0 + tap // kernel - half, x0 + tap % kernel - half
                if 0 <= y < height and 0 <= column < width:
                    out[:, i, j] += x[:, y, column] @ weight[:, tap * channels : (tap + 1) * channels].T
    return out


def pool(x, own):
    """Largest or mean of the pixels that lie inside of each window; x (N, H, W, C)."""
    if own is None:
        return x
    size = x.shape[1]
    side = (size + 2 * own.padding - own.size) // own.stride + 1
    out = np.empty((len(x), side, side, x.shape[3]))
    for i, j in np.ndindex(side, side):
        y, column = i * own.stride - own.padding, j * own.stride - own.padding
        part = x[:, max(y, 0) : min(y + own.size, size), max(column, 0) : min(column + own.size, size)]
        out[:, i, j] = part.max((1, 2)) if own.kind == "max" else part.mean((1, 2))
    return out


def prelu(y, slope):
    return np.maximum(y, 0) + slope * np.minimum(y, 0)


def block(x, tensors, own, near=None):
    """A binary block: float32 x (N, H, W, Cin) -> float64 (N, H', W', channels); tensors without their prefix.

    near: what the shortcut begins with, where that is not x.
    """
    channels, kernel, stride = own.channels, own.kernel, own.stride
    c_in = x.shape[-1]
    shifted = x.astype(np.float32) + tensors["in_shift"]  # in float32 as it is specified: it decides the signs
    a = np.array([binarize(pixel, own.beta_a) for pixel in shifted.reshape(-1, c_in)]).reshape(x.shape)
    weight = integer_weight(tensors["bits"], tensors["q"], kernel * kernel * c_in, own.beta_w)
    y = convolve(a, weight * tensors["s"].astype(np.float64)[:, None], kernel, stride, 0 if own.valid else None)
    y = y * tensors["scale"].astype(np.float64) + tensors["shift"]
    if not own.shortcut:
        return pool(prelu(y, tensors["slope"].astype(np.float64)), own.pool)
    short = (x if near is None else near).astype(np.float64)
    if short.shape[1] > y.shape[1]:
        short = (short[:, ::2, ::2] + short[:, 1::2, ::2] + short[:, ::2, 1::2] + short[:, 1::2, 1::2]) / 4
    short = np.concatenate([short] * (channels // short.shape[-1] + 1), axis=-1)[..., :channels]
    return pool(prelu(y + short, tensors["slope"].astype(np.float64)), own.pool)


def stem(tiles, tensors, spec):
    rgb = np.stack([tiles[..., 2], tiles[..., 1], tiles[..., 0]], axis=-1).astype(np.float64)
    weight = tensors["stem.weight"].astype(np.float64).reshape(spec.stem.channels, -1)
    y = convolve(rgb - spec.mean, weight, spec.stem.kernel, spec.stem.stride)
    y = prelu(y * tensors["stem.scale"] + tensors["stem.shift"], tensors["stem.slope"].astype(np.float64))
    return pool(y, spec.stem.pool)


def forward(model, tiles):
    """The feature vector before it is binarized: uint8 BGR (N, S, S, 3) -> float64 (N, F)."""
    spec = model.spec
    x = stem(tiles, model.tensors, spec).astype(np.float32)
    pooled, inputs = [], []
    for i, layer in enumerate(spec.blocks):
        inputs.append(x)
        own = {name.split(".")[1]: t for name, t in model.tensors.items() if name.startswith(f"block{i}.")}
        y = block(x, own, layer, inputs[-max(1, layer.shortcut)])
        if i in spec.taps:
            flat = y.reshape(len(y), -1, layer.channels)
            mean = flat.mean(axis=1)
            pooled.append(mean)
            if spec.deviation:
                pooled.append(np.sqrt(((flat - mean[:, None]) ** 2).mean(axis=1) + POOL_EPSILON))
        x = y.astype(np.float32)
    return np.concatenate(pooled, axis=1) * model.tensors["features.scale"] + model.tensors["features.shift"]


def logits(model, z):
    """The head on features z (N, F) that are not binarized yet."""
    binary = np.array([binarize(row, model.spec.beta_f) for row in z])
    return HEAD_STEP * (binary @ model.tensors["head.weight"].T.astype(np.float64) + model.tensors["head.bias"])


def random_block(rng, block, c_in):
    """Tensors of a block without their prefix; outputs stay near 1."""
    entries, channels = block.kernel**2 * c_in, block.channels
    bits = rng.integers(0, 256, (channels, -(-entries // 8)), np.uint8)
    if entries % 8:
        bits[:, -1] &= (1 << entries % 8) - 1
    return {
        "in_shift": rng.normal(0, 0.3, c_in).astype(np.float32),
        "bits": bits,
        "q": rng.integers(1, 128, (channels, len(blocks(entries, block.beta_w))), np.uint8),
        "s": rng.uniform(0.5, 1.5, channels).astype(np.float32) / np.float32(64 * entries**0.5),
        "scale": rng.normal(1, 0.2, channels).astype(np.float32),
        "shift": rng.normal(0, 0.2, channels).astype(np.float32),
        "slope": rng.uniform(0, 0.5, channels).astype(np.float32),
    }


def random_tensors(rng, spec, classes):
    """All tensors of a model with this spec."""
    channels, k = spec.stem.channels, spec.stem.kernel
    tensors = {
        "stem.weight": rng.integers(-127, 128, (channels, k, k, 3), np.int8),
        "stem.scale": (rng.normal(1, 0.2, channels) / (4096 * k)).astype(np.float32),
        "stem.shift": rng.normal(0, 0.2, channels).astype(np.float32),
        "stem.slope": rng.uniform(0, 0.5, channels).astype(np.float32),
        "features.scale": rng.normal(1, 0.2, spec.feature_count).astype(np.float32),
        "features.shift": rng.normal(0, 0.5, spec.feature_count).astype(np.float32),
        "head.weight": rng.integers(-500, 500, (classes, spec.feature_count)).astype(np.int16),
        "head.bias": rng.integers(-500, 500, classes).astype(np.int16),
    }
    c_in = channels
    for i, layer in enumerate(spec.blocks):
        tensors |= {f"block{i}.{name}": t for name, t in random_block(rng, layer, c_in).items()}
        c_in = layer.channels
    return tensors
