"""The benchmarks' command line: what it writes, and what it refuses. No figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ports
from benchmarks.__main__ import BENCHMARKS, main, shown, table
from models.paper.timing import race

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300

KERNEL_KEYS = """case shape beta_w beta_a threads gops vs_openblas vs_float_twin vs_ort_float vs_ort_int8 scale_tax
time_of_one vs_one_thread packed_bytes"""


def test_kernels_agree_with_each_other_and_write_the_agreed_keys(tmp_path):
    """Runs the real thing: each contender's product is compared inside, a wrong one fails."""
    target = tmp_path / "kernels.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "kernels", "--quick", "--json", str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(target.read_text())
    assert set(written) == {"machine", "commit", "rows"}
    assert written["machine"]
    for row in written["rows"]:
        assert set(KERNEL_KEYS.split()) | {"benchmark"} == set(row)
        assert row["gops"] > 0
        assert row["case"] in done.stdout


def test_every_benchmark_has_a_module():
    assert [name for name in BENCHMARKS if not (ROOT / "benchmarks" / f"{name}.py").exists()] == []


def test_unknown_names_and_folders_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nonsense"])
    assert "kernels" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["kernels", "--json", str(tmp_path / "missing" / "file.json")])
    assert "does not exist" in capsys.readouterr().err


def test_a_table_has_a_column_for_each_key_of_any_row():
    made = table("name", [{"a": 1, "b": "x"}, {"b": "y", "c": None}])
    assert [str(column.header) for column in made.columns] == ["a", "b", "c"]
    assert [shown(value) for value in (None, 12.3456, 3, "x")] == ["-", "12.35", "3", "x"]


def test_contenders_take_turns_in_every_round():
    order = []

    def contender(name, work):
        def call():
            order.append(name)
            sum(range(work))

        return call

    seconds = race({"much": contender("much", 400_000), "little": contender("little", 4_000)}, turns=3)
    assert set(seconds) == {"much", "little"}
    compact = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert compact == ["much", "little"] * 4  # warm-up, then three turns


def test_loops_of_ports_run_where_there_are_such_instructions(monkeypatch):
    """Assembly is only read when it is compiled: each loop is, and takes time."""
    monkeypatch.setattr(ports, "ITERATIONS", 10)
    monkeypatch.setattr(ports, "TURNS", 1)
    rows = ports.rows(False, lambda name: None)
    wanted = ports.x86.BACKENDS[0].requires <= ports.features()
    assert len(rows) == (len(ports.PAIRS) + len(ports.LOOPS) if wanted else 0)
    assert all(row["cycles"] > 0 for row in rows)
