"""The cache of compiled kernels: where it goes, and that no state of it can stop the program."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from models import jit

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120

SMALL_RUN = """
import numpy as np
from models import jit
from models.engine import Engine
from tests import reference
from tests.unit.test_engine import close, network, random_model, random_tiles
from models.network import Block
spec = network(Block(channels=5, stride=2, beta_a=3), taps=(0,), size=4, channels=6)
model, tiles = random_model(spec), random_tiles(spec, 2)
want = [reference.binarize(row, 4) for row in reference.forward(model, tiles)]
close(Engine(model).features(tiles).values(), np.array(want))
print(jit.FOLDER)
"""

TINY = """
import os
uid = os.getuid()
os.getuid = lambda: uid + 1
from models import jit

@jit.kernel()
def add(a, b):
    return a + b

print(jit.FOLDER, add(40, 2))
"""


def run(**environment):
    """The folder of the cache, and what was logged, in a process that computes a small network."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SMALL_RUN],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_folders_in_order_of_preference(monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/chosen")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users")
    chosen, users, temporary = jit.cache_folders()
    assert (chosen.parent, users.parent) == (Path("/chosen"), Path("/users"))
    assert chosen.name == users.name
    assert temporary.name == f"{users.name}-{os.getuid()}"


def test_the_first_usable_folder_is_taken(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert jit.usable_folder([blocked, blocked / "below", tmp_path / "new" / "deep"]) == tmp_path / "new" / "deep"
    assert stat.S_IMODE((tmp_path / "new" / "deep").stat().st_mode) == 0o700
    assert jit.usable_folder([blocked]) is None


def test_a_folder_that_takes_no_file_is_not_used(tmp_path):
    """/proc is nobody's to write to, not even root's."""
    assert jit.usable_folder([Path("/proc")]) is None
    assert jit.usable_folder([Path("/proc"), tmp_path]) == tmp_path


def test_kernels_of_another_version_are_not_taken_from_the_cache(monkeypatch, tmp_path):
    """Numba looks at the file of a kernel only; what other files' kernels compile into it is in the folder's name."""
    before = jit.cache_folders()
    copy = tmp_path / "models"
    shutil.copytree(ROOT / "models", copy, ignore=shutil.ignore_patterns("__pycache__", "zoo"))
    monkeypatch.setattr(jit, "HERE", copy)
    assert jit.cache_folders() == before
    used = {path for path in copy.rglob("*.py") if re.search(r"^@(jit\.)?kernel\(", path.read_text(), re.MULTILINE)}
    assert {copy / "threads.py", copy / "kernels" / "sums.py"} <= used
    # whose kernels are in no other file's
    alone = {copy / name for name in ("rangecoder.py", "paper/products.py", "training/elementwise.py")}
    for path in used - alone:
        text = path.read_text()
        path.write_text(text + "# another version\n")
        assert jit.cache_folders() != before, path
        path.write_text(text)


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert jit.usable_folder([tmp_path]) is None


def test_a_real_error_is_raised_again(monkeypatch):
    monkeypatch.setattr(jit, "_cached", [])  # the other tests keep their cache
    calls = []

    def fails():
        calls.append(1)
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        jit.without_broken_cache(fails)
    assert len(calls) == 2


def test_without_a_compiler_the_kernels_are_plain_python():
    run(NUMBA_DISABLE_JIT="1")


def test_an_unusable_folder_and_damaged_files_do_not_stop_the_engine(tmp_path):
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    cache = tmp_path / "cache"
    folder, _ = run(NUMBA_CACHE_DIR=str(nowhere), XDG_CACHE_HOME=str(cache))
    assert Path(folder).parent == cache
    stored = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert stored, "nothing was cached"
    for path in stored:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # as a power cut leaves them
    again, log = run(NUMBA_CACHE_DIR=str(nowhere), XDG_CACHE_HOME=str(cache))
    assert again == folder
    assert "compiling without the cache" in log


def test_without_any_folder_kernels_are_compiled_each_time(tmp_path):
    """Nobody's folder is ours where the user is somebody else."""
    (tmp_path / "tiny.py").write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(tmp_path / "tiny.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "None 42\n"), done.stderr
    assert not list(tmp_path.rglob("*.nbi"))


DELTA = """
import logging, sys
import numpy as np
logging.basicConfig(stream=sys.stderr)
from models import artifact, delta, rangecoder
from models.jit import FOLDER, _cached
rangecoder.warm_up()
ours = [d for d in _cached if d.py_func.__module__ == rangecoder.__name__]
before = [len(d.signatures) for d in ours]
old = artifact.load(artifact.DEFAULT)
new = old.with_tensors({name: array + 1 for name, array in old.tensors.items() if name.startswith("head.")})
assert delta.apply(old, delta.encode(old, new)).hash == new.hash
assert min(before) > 0 and before == [len(d.signatures) for d in ours], before
print(FOLDER)
"""


def test_a_delta_compiles_nothing_in_flight_and_a_damaged_cache_does_not_stop_it(tmp_path):
    def delta():
        done = subprocess.run(
            [sys.executable, "-c", DELTA],
            env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "without the cache" not in delta()
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and "rangecoder" in str(path)]
    assert stored, "nothing was cached"
    for path in stored:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # as a power cut leaves them
    assert "compiling without the cache" in delta()
