"""The Arm backends executed: a real aarch64 Python with our wheels under qemu gives the integers of this machine.

And costed: products per cycle against float and int8, by llvm-mca. Ratios are judged, cycles are not.

Needs the folder that `python -m deploy.arm_tree` makes. `make arm-test` makes it and runs the long test as well.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import arm
from benchmarks.arm_assembly import assembly, hot_loop
from deploy.arm_tree import ArmTreeError, find
from tests import arm_child

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900
CPUS = (("cortex-a72", "neon"), ("cortex-a76", "neon-dot"))


@pytest.fixture(scope="module")
def tree():
    try:
        return find()
    except ArmTreeError as error:
        pytest.skip(str(error))


def run(tree, cpu, *arguments):
    """The output of the Arm Python on that CPU; the backend is its own choice."""
    environment = {name: value for name, value in tree.environment().items() if name != "HADANET_SIMD"}
    done = subprocess.run(
        [*tree.python(cpu), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("cpu", "backend"), CPUS)
def test_the_integers_of_this_machine_and_of_the_reference(tree, cpu, backend):
    done = json.loads(run(tree, cpu, "-m", "tests.arm_child"))
    assert (done["machine"], done["backend"]) == ("aarch64", backend)
    assert len(done["results"]) == arm_child.COUNT
    for i, result in enumerate(done["results"]):
        assert result == arm_child.computed(i)
        assert result == arm_child.expected(i)
    bits, scales = arm_child.features()
    assert done["features"] == [bits, scales]  # to the last bit: sums are in the same order everywhere


@pytest.mark.parametrize("target", [t for t in arm.TARGETS if t[1] == "neon-dot"], ids=lambda t: f"{t[0]} as {t[3]}")
def test_eight_times_float_where_there_is_a_dot_product(tree, target):
    """Also against what a perfect float kernel could do, and more than twice a perfect one of int8."""
    row = next(row for row in arm.costs(tree, *target) if row["kernel"] == "binary")
    assert row["per_cycle"] <= row["bound"]
    assert min(row["vs_float"], row["vs_float_bound"]) >= 8
    assert min(row["vs_int8"], row["vs_int8_bound"]) >= 2


def test_two_pipelines_of_sixteen_bytes_bound_a_known_loop(tree):
    """The cost model itself, on what the manual of Neoverse N1 says: two `udot` a cycle; LLVM has no Cortex-A76."""
    loop = [f"udot v{n}.4s, v{16 + n}.16b, v31.16b" for n in range(8)]
    cycles, least = arm.cycles(tree, loop, "neoverse-n1")
    assert least == 4
    assert cycles == pytest.approx(4, rel=0.05)
    ours = hot_loop(assembly("cortex-a76", "neon-dot")["binary"])
    assert arm.cycles(tree, ours, "cortex-a76") == arm.cycles(tree, ours, "cortex-a57")


@pytest.mark.skipif("ARM_TEST" not in os.environ, reason="takes minutes; `make arm-test` runs it")
@pytest.mark.parametrize(("cpu", "backend"), CPUS)
def test_the_property_tests_pass_under_emulation(tree, cpu, backend):
    out = run(tree, cpu, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/property/test_kernels.py")
    assert "passed" in out
