"""Which backend this process uses: the best that the CPU has, or the one that HADANET_SIMD names (for tests)."""

import os
from collections.abc import Mapping, Sequence

from llvmlite import binding
from numba.core import config

from models.errors import HadanetError
from models.simd import arm, x86
from models.simd.backend import Backend
from models.simd.portable import PORTABLE

BACKENDS: tuple[Backend, ...] = (*x86.BACKENDS, *arm.BACKENDS, PORTABLE)
"""Best first; the portable one needs nothing."""


def features() -> set[str]:
    """LLVM's names of what Numba may use of this CPU; none where NUMBA_CPU_NAME makes it compile for another one."""
    if config.CPU_NAME:  # type: ignore[attr-defined]
        return set()
    return {name for name, there in binding.get_host_cpu_features().items() if there} | arm.features()


def choose(
    available: set[str], backends: Sequence[Backend] = BACKENDS, environment: Mapping[str, str] = os.environ
) -> Backend:
    """The backend that HADANET_SIMD names, else the first whose needs are `available`.

    Raises HadanetError for a name that is unknown. A named backend is taken at its word: where the CPU lacks what it
    needs, the process ends with an illegal instruction.
    """
    named = environment.get("HADANET_SIMD")
    if not named:
        return next(b for b in backends if b.requires <= available)
    for backend in backends:
        if backend.name == named:
            return backend
    names = ", ".join(b.name for b in backends)
    raise HadanetError(f"HADANET_SIMD={named}: there is no such backend; choose one of {names}, or leave it unset")


BACKEND = choose(features())
"""The one in use."""
