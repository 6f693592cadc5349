"""The folder with the Arm Python: what is refused before anything is downloaded. What it holds, tests/system runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy import arm_tree
from deploy.arm_tree import ArmTreeError

ROOT = Path(__file__).resolve().parents[2]


def test_a_missing_and_an_old_folder_say_what_makes_them(tmp_path):
    with pytest.raises(ArmTreeError, match=r"no Arm tree; `python -m deploy\.arm_tree` makes it"):
        arm_tree.find(tmp_path)
    (tmp_path / "contents").write_text("of last year")
    with pytest.raises(ArmTreeError, match="of another version"):
        arm_tree.find(tmp_path)
    (tmp_path / "contents").write_text(arm_tree.contents())
    assert arm_tree.find(tmp_path).folder == tmp_path


def test_the_folder_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/users")
    monkeypatch.delenv("HADANET_ARM", raising=False)
    assert arm_tree.default_folder() == Path("/users/hadanet-arm")
    monkeypatch.setenv("HADANET_ARM", "/chosen")
    assert arm_tree.default_folder() == Path("/chosen")


def test_somebody_elses_folder_is_not_replaced(tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(ArmTreeError, match="is not an Arm tree"):
        arm_tree.build(tmp_path, "http://unused.invalid")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_mirror_that_is_not_there_leaves_nothing_behind(tmp_path):
    """On a machine without apt that is what it says; with it, apt's own words."""
    with pytest.raises(ArmTreeError, match="apt-get"):
        arm_tree.build(tmp_path / "tree", f"file://{tmp_path}/nowhere")
    assert list(tmp_path.iterdir()) == []


def test_the_arm_python_sees_nothing_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/x86")
    environment = arm_tree.ArmTree(tmp_path).environment()
    assert "PYTHONHOME" not in environment
    assert environment["PYTHONPATH"] == f"{tmp_path}/wheels:{ROOT}"


def test_the_benchmark_needs_the_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "arm"],
        cwd=ROOT,
        env={"HADANET_ARM": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"benchmarks: {tmp_path}: no Arm tree; `python -m deploy.arm_tree` makes it\n"
