"""Our kernels compiled for an Arm processor on any machine, as text, and the hot loops in it.

Numba's own compiler is told that this is an AArch64 machine, so types, passes and vector width are those of a build on
the drone; the code is assembled and never run. That holds for a whole process, hence a process of its own.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import llvmlite.binding

TRIPLE = "aarch64-unknown-linux-gnu"
MULTIPLY_ADD = ("udot", "sdot", "umlal", "umlal2", "smlal2", "fmla")
"""What the inner loops of our kernels end in; by their number the hot loop is found."""
COMPILE_S = 300


@cache
def assembly(cpu: str, simd: str) -> dict[str, str]:
    """The assembly of "binary", "float" and "int8" for LLVM's name of a CPU and a backend's, made in a new process."""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": "",  # what the name says, not what this machine has
        "HADANET_SIMD": simd,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.arm_assembly"],
        cwd=Path(__file__).resolve().parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMPILE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"compiling for {cpu} failed: {done.stderr}")
    out: dict[str, str] = json.loads(done.stdout)
    return out


def mnemonic(line: str) -> str:
    """The instruction's name; empty for a label, a directive or a comment."""
    words = line.split()
    return words[0] if words and line[0].isspace() and words[0][0] not in "./" else ""


def hot_loop(text: str) -> list[str]:
    """The instructions of the innermost loop that counts the most words for a multiply-add, and then does the most.

    The branch back is included; a loop that also converts to floats, once for each run, is not meant.
    """
    lines = text.splitlines()
    labels: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.?\w+):", line):
            labels[label[1]] = i
        target = re.match(r"\s+(?:b|cb|tb)\S*\s.*?(\.L\w+)$", line)
        if target and target[1] in labels:
            body = lines[labels[target[1]] + 1 : i + 1]
            if not any(line[:1] not in ("\t", " ", "") for line in body):  # a label inside: not the innermost one
                loops.append([line.strip() for line in body if mnemonic(line)])
    return max((loop for loop in loops if not any(line.startswith("scvtf") for line in loop)), key=_heat)


def _heat(loop: list[str]) -> tuple[float, int]:
    work = [line.split()[0] for line in loop]
    products = sum(name in MULTIPLY_ADD for name in work)
    return work.count("cnt") / max(1, products), products


def spills(loop: list[str]) -> list[str]:
    """The instructions that touch the stack."""
    return [line for line in loop if re.search(r"\[sp\b", line)]


def pretend() -> None:
    """Make this process compile for AArch64. Comes before the first import of Numba's compiler."""
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    llvmlite.binding.get_process_triple = lambda: TRIPLE


if __name__ == "__main__":
    pretend()
    from models import jit

    jit.FOLDER = None  # this machine's cache keeps no text, and Arm code does not belong into it
    from benchmarks import arm_kernels

    print(json.dumps(arm_kernels.assembly()))
