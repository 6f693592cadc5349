"""The decorator of kernels, and a cache of them that never stops us.

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
from numba.core.caching import NullCache

from models import simd

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)

HERE = Path(__file__).parent

_cached: list[Any] = []


def cache_folders() -> tuple[Path, ...]:
    """Where compiled kernels may go, best first.

    Their names carry the backend, and the versions of Numba and of our files that are compiled into kernels of other
    files: Numba itself looks at the processor and at the file of the kernel.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    users = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    files = [HERE / "jit.py", HERE / "threads.py", *sorted(HERE.glob("simd/*.py")), *sorted(HERE.glob("kernels/*.py"))]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]
    name = f"hadanet-kernels-{metadata.version('numba')}-{simd.BACKEND.name}-{version}"
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
