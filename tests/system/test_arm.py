"""The Arm backends executed: a real aarch64 Python with our wheels under qemu gives the integers of this machine.

Needs the folder that `python -m deploy.arm_tree` makes. `make arm-test` makes it and runs the long test as well.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.skipif("ARM_TEST" not in os.environ, reason="takes minutes; `make arm-test` runs it")
@pytest.mark.parametrize(("cpu", "backend"), CPUS)
def test_the_property_tests_pass_under_emulation(tree, cpu, backend):
    out = run(tree, cpu, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/property/test_kernels.py")
    assert "passed" in out
