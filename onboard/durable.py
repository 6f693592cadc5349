"""Small files that a power cut leaves whole: the old content or the new one, never a part of either."""

import contextlib
import os
from pathlib import Path


def write(path: Path, data: bytes, sync: bool = True) -> None:
    """Replace the file at `path`: write beside it, fsync, rename, fsync the folder. Raises OSError.

    sync: False leaves out both fsyncs, for what a power cut may take as long as no reader finds half of it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        partial.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):  # what was written of it would keep room on a full disk
            partial.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: without it a power cut takes a new file whole."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
