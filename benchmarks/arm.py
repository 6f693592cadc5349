"""`python -m benchmarks arm`: what the inner loops cost on Arm processors, by llvm-mca. No Arm machine is needed.

A row is the hot loop of one kernel, compiled for `cpu` and costed with one of LLVM's models. For the Cortex cores
`model` says whose timings LLVM really uses: it has none of their own. llvm-mca repeats the loop with all data in the
first cache and a perfect branch prediction, so the figures are for comparing loops under one model, not for timing a
board. A product is one weight times one activation.

per_cycle: products; bound: what the loop could do at most, its multiply-adds alone (for `binary` with their `eor`,
`cnt` and `add`); vs_float, vs_int8: per_cycle against the float and the int8 loop of this style; vs_float_bound,
vs_int8_bound: against the bound of those, that is of any kernel made of these instructions.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.arm_assembly import TRIPLE, assembly, hot_loop, spills
from deploy.arm_tree import ArmTree, ArmTreeError, find

TARGETS = (
    ("cortex-a53", "neon", "cortex-a53", "Cortex-A53"),
    ("cortex-a57", "neon", "cortex-a57", "Cortex-A57"),
    ("cortex-a72", "neon", "cortex-a57", "Cortex-A57"),
    ("cortex-a76", "neon-dot", "cortex-a57", "Cortex-A57"),
    ("cortex-a76", "neon-dot", "neoverse-n1", "Neoverse N1"),
    ("cortex-a78ae", "neon-dot", "neoverse-n2", "Neoverse N2"),
    ("neoverse-n1", "neon-dot", "neoverse-n1", "Neoverse N1"),
    ("neoverse-n2", "neon-dot", "neoverse-n2", "Neoverse N2"),
)
"""CPU, our backend for it, the CPU whose model costs it, and that model's name. Boards with these cores: Raspberry Pi 3
and Zero 2 W, Jetson Nano, Pi 4, Pi 5, Jetson Orin; N1 is the A76 of servers, and N2 the nearest to A78."""
QUICK = ("cortex-a76", "neoverse-n1")
ITERATIONS = 1000
MCA_S = 60

BYTES = 16
WORK = {
    "binary": {"eor", "cnt", "add", "udot", "umlal", "umlal2"},
    "int8": {"sdot", "smull", "smlal", "smlal2", "sadalp"},
    "float": {"fmla"},
}
"""Instructions that a kernel cannot do without."""
PRODUCTS = {"cnt": 8 * BYTES, "sdot": BYTES, "sadalp": BYTES, "fmla": BYTES // 4}
"""Products of one instruction that occurs once for each vector of them."""


def products(loop: Sequence[str]) -> int:
    """Products of one iteration."""
    return sum(PRODUCTS.get(line.split()[0], 0) for line in loop)


def cycles(tree: ArmTree, loop: Sequence[str], cpu: str) -> tuple[float, float]:
    """Cycles of one iteration by llvm-mca's model of `cpu`: simulated, and the least that its units allow."""
    local = [re.sub(r"\.L\w+$", "loop", line) for line in loop]
    command = [*tree.mca(), f"-mtriple={TRIPLE}", f"-mcpu={cpu}", "-mattr=+dotprod", f"-iterations={ITERATIONS}"]
    text = "loop:\n" + "\n".join(local) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=MCA_S, check=False)
    found = [re.search(rf"{name}:\s+([\d.]+)", done.stdout) for name in ("Total Cycles", "Block RThroughput")]
    if done.returncode or found[0] is None or found[1] is None:
        raise ArmTreeError(f"llvm-mca: status {done.returncode}: {done.stderr.strip()[-500:]}")
    return float(found[0][1]) / ITERATIONS, float(found[1][1])


def costs(tree: ArmTree, cpu: str, simd: str, model: str, title: str) -> list[dict[str, Any]]:
    """A row for each kernel."""
    table: list[dict[str, Any]] = []
    for kernel, text in assembly(cpu, simd).items():
        loop = hot_loop(text)
        work = [line for line in loop if line.split()[0] in WORK[kernel] and not re.match(r"add\s+[xw]", line)]
        count = products(loop)
        table.append(
            {
                "cpu": cpu,
                "simd": simd,
                "model": title,
                "kernel": kernel,
                "instructions": len(loop),
                "work": " ".join(f"{n} {name}" for name, n in sorted(Counter(i.split()[0] for i in work).items())),
                "spills": len(spills(loop)),
                "products": count,
                "per_cycle": count / cycles(tree, loop, model)[0],
                "bound": count / cycles(tree, work, model)[1],
            }
        )
    by_kernel = {row["kernel"]: row for row in table}
    for row in table:
        for other in ("float", "int8"):
            row[f"vs_{other}"] = row["per_cycle"] / by_kernel[other]["per_cycle"]
            row[f"vs_{other}_bound"] = row["per_cycle"] / by_kernel[other]["bound"]
    return table


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """One row per kernel, processor and model; `quick` takes one processor. Raises ArmTreeError without llvm-mca."""
    tree = find()
    table: list[dict[str, object]] = []
    for target in TARGETS:
        if quick and (target[0], target[2]) != QUICK:
            continue
        progress(f"{target[0]} as {target[3]}")
        table += costs(tree, *target)
    return table
