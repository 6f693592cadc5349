"""One place that knows Numba: the decorator of kernels, what the language lacks, and a cache that never stops us.

Compiled kernels are kept on disk, in the first of these folders that can be written: `NUMBA_CACHE_DIR`, the user's
cache, a temporary one. A cache that is damaged or full is left alone and the kernels are compiled again in memory.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import binding, ir
from numba import carray  # type: ignore[attr-defined]
from numba.core import types
from numba.core.caching import NullCache
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

LANES = 64 if binding.get_host_cpu_features().get("avx512bw") else 32
"""Length of the local arrays: four of 16-bit words fill the vector registers of AVX-512, of NEON and of AVX2."""

log = logging.getLogger(__name__)

_cached: list[Any] = []


def cache_folders() -> tuple[Path, ...]:
    """Where compiled kernels may go, best first.

    Their names carry the versions of Numba and of this file, whose functions are compiled into every kernel: Numba
    itself looks only at the file of the kernel.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    users = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    name = f"hadanet-kernels-{metadata.version('numba')}-{version}"
    temporary = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    return (*([Path(chosen) / name] if chosen else []), users / name, temporary)


def usable_folder(folders: Iterable[Path]) -> Path | None:
    """The first folder that is ours, exists or can be made, and takes a file; None where there is none."""
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                continue  # compiled code of somebody else, in a folder that everybody can guess
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"\0")
        except OSError:
            continue
        return folder
    return None


def kernel(**options: Any) -> Callable[[Function], Function]:
    """Compile a function with Numba when it is first called: without the GIL, cached on disk; x / 0 is not an error.

    An inner function that is called per pixel takes `forceinline=True`: a call counts references of all its arrays.
    """

    def compiled(function: Function) -> Function:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        if FOLDER is not None and hasattr(dispatcher, "enable_caching"):  # not so with NUMBA_DISABLE_JIT=1
            try:
                dispatcher.enable_caching()
                _cached.append(dispatcher)
            except RuntimeError as error:
                log.warning("no cache of kernels: %s", error)
        return dispatcher  # type: ignore[no-any-return]

    return compiled


def without_broken_cache(first_use: Callable[[], T]) -> T:
    """Run `first_use`, which compiles kernels; where it fails, once more without the cache on disk.

    The cache raises whatever its damaged pickles raise, so anything counts; a real bug fails again and is not hidden.
    """
    try:
        return first_use()
    except Exception as error:  # noqa: BLE001
        reason = str(error).splitlines() or [""]
        log.warning("compiling without the cache of kernels in %s: %s: %s", FOLDER, type(error).__name__, reason[0])
        for dispatcher in _cached:
            dispatcher._cache = NullCache()
        return first_use()


FOLDER = usable_folder(cache_folders())
"""The cache in use; None where no folder can be written, then every start compiles."""
if FOLDER is not None:
    numba.config.CACHE_DIR = str(FOLDER)  # type: ignore[attr-defined]


def popcount(x: int) -> int:
    """Number of one bits of an unsigned integer, for use in kernels."""
    return int(x).bit_count()


def local_words() -> NDArray[np.uint16]:
    """An uninitialised array of LANES 16-bit words on the stack of a kernel.

    The compiler knows that nothing else points there: it vectorises without asking, and keeps it in registers.
    """
    return np.empty(LANES, np.uint16)


def local_floats() -> NDArray[np.float32]:
    """As `local_words`, of float32."""
    return np.empty(LANES, np.float32)


@intrinsic
def _ctpop(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return x(x), generate


def _stack_of(item: types.Type) -> Any:
    @intrinsic
    def allocate(context: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            item_type = context.get_value_type(item)
            with builder.goto_entry_block():
                place = builder.alloca(ir.ArrayType(item_type, LANES))
                place.align = 64
            return builder.bitcast(place, item_type.as_pointer())

        return types.CPointer(item)(), generate  # type: ignore[no-untyped-call]

    return allocate


_stack_words, _stack_floats = _stack_of(types.uint16), _stack_of(types.float32)


@overload(popcount, inline="always")
def _popcount(x: Any) -> Any:
    def implementation(x: Any) -> Any:
        return _ctpop(x)  # type: ignore[call-arg]

    return implementation


@overload(local_words, inline="always")
def _local_words() -> Any:
    return lambda: carray(_stack_words(), LANES)


@overload(local_floats, inline="always")
def _local_floats() -> Any:
    return lambda: carray(_stack_floats(), LANES)
