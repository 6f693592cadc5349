"""What another backend computes and compiles to, in a process of its own: HADANET_SIMD is read when it starts.

python -m tests.simd_child features      SHA-256 of what the engine gives for three random networks
python -m tests.simd_child assembly      the block's machine code, as text
"""

import hashlib
import sys

import numpy as np

from models import kernels
from models.engine import Engine
from models.simd import BACKEND
from tests.unit.test_engine import EVEN, ODD, POOLED, random_model, random_tiles


def main() -> None:
    digest = hashlib.sha256(b"")
    for spec in (EVEN, ODD, POOLED):
        features = Engine(random_model(spec)).features(random_tiles(spec, 3))
        digest.update(features.bits.tobytes() + np.ascontiguousarray(features.scales, "<f4").tobytes())
    if sys.argv[1] == "assembly":
        (text,) = kernels.convolve.inspect_asm().values()
        print(text)
    else:
        print(BACKEND.name, digest.hexdigest())


if __name__ == "__main__":
    main()
