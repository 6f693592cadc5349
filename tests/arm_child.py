"""Binary blocks whose results are integers and quarters, and a network: computed on this processor, as JSON holds it.

A command too: it prints what the Arm Python computed, with the machine and the backend that it did it on.
"""

import json
import platform

import numpy as np

from models.engine import Engine
from models.kernels import MAX_Q
from models.network import Block
from models.simd import BACKEND
from tests import reference
from tests.property.test_kernels import run
from tests.small_model import small_model

CASES = (
    (Block(channels=40, beta_w=16), 64, 4, 2),
    (Block(channels=17, stride=2, beta_w=12, beta_a=5), 37, 4, 1),
    (Block(channels=70, kernel=1, beta_w=0, beta_a=32), 96, 3, 1),
    (Block(channels=5, kernel=5, beta_w=8, beta_a=16), 33, 3, 1),
)
LONG = (Block(channels=20, kernel=1, beta_w=8), 1300, 2, 1)
"""With the largest scales, and every sign equal or every one different: more words than a 16-bit counter can hold."""
COUNT = len(CASES) + 2


def inputs(i):
    """Block, x of +1 and -1, and tensors that scale nothing, of case `i`; the last two are LONG."""
    rng = np.random.default_rng(i)
    block, c_in, size, n = (*CASES, LONG, LONG)[i]
    x = rng.choice(np.array([-1, 1]), (n, size, size, c_in))
    tensors = reference.random_block(rng, block, c_in)
    one, zero = np.ones(block.channels, np.float32), np.zeros(block.channels, np.float32)
    tensors |= {"s": one, "scale": one, "shift": zero, "slope": one, "in_shift": np.zeros(c_in, np.float32)}
    if i >= len(CASES):
        x = np.full_like(x, (1, -1)[i - len(CASES)])
        tensors |= {"bits": np.zeros_like(tensors["bits"]), "q": np.full_like(tensors["q"], MAX_Q)}
    return block, x, tensors


def expected(i):
    """What case `i` has to give, by the slow reference."""
    block, x, tensors = inputs(i)
    n, size, _, c_in = x.shape
    weight = reference.integer_weight(tensors["bits"], tensors["q"], block.kernel**2 * c_in, block.beta_w)
    want = reference.convolve(x, weight, block.kernel, block.stride)
    short = x if block.stride == 1 else x.reshape(n, size // 2, 2, size // 2, 2, c_in).mean(axis=(2, 4))
    return (want + short[..., [o % c_in for o in range(block.channels)]]).ravel().tolist()


def computed(i):
    """Case `i` by the kernels of this processor."""
    block, x, tensors = inputs(i)
    return run(block, x.astype(np.float32), tensors).ravel().tolist()


def features():
    """Sign bits and scales of a network's features: float stem, float folds and moments are in it."""
    tiles = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = Engine(small_model(channels=40)).features(tiles)
    return found.bits.ravel().tolist(), found.scales.ravel().tolist()


if __name__ == "__main__":
    results = [computed(i) for i in range(COUNT)]
    about = {"machine": platform.machine(), "backend": BACKEND.name}
    print(json.dumps({**about, "results": results, "features": features()}))
