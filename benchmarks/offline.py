"""`python -m benchmarks offline`: a step of `hadanet train` with the kernels of `models.training.elementwise`,
and with PyTorch's operators.

The same network, batch and step; the two take turns, step by step, in one process and on one thread, and medians are
compared. Needs PyTorch (the extra `train`).
"""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F

from models.artifact import ZOO
from models.training import elementwise
from models.training.layers import Net
from models.training.recipe import read

BETAS = ((1, 1), (16, 2), (64, 0))
CLASSES = 10
TURNS = 5


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each network, block lengths and precision."""
    torch.set_num_threads(1)
    found: list[dict[str, object]] = []
    for name in ("lenet",) if quick else ("lenet", "default", "nin"):
        for beta_w, beta_a in BETAS:
            for precision in (torch.float32, torch.bfloat16):
                progress(f"{name} ({beta_w}, {beta_a}), {precision}")
                found.append(_row(name, beta_w, beta_a, precision))
    return found


def _row(name: str, beta_w: int, beta_a: int, precision: torch.dtype) -> dict[str, object]:
    recipe, _ = read(ZOO / f"{name}.toml")
    size, batch = recipe.network.input_size, recipe.batch
    net = Net(recipe.network.with_betas(beta_w, beta_a), CLASSES)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = 255 * torch.rand(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = net(x).float()
        net.zero_grad()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        return 1e3 * (time.perf_counter() - start)

    kernels, operators = [], []
    for _ in range(1 + TURNS):
        kernels.append(step())
        with mock.patch.object(elementwise, "DTYPES", ()):
            operators.append(step())
    ours, theirs = statistics.median(kernels[1:]), statistics.median(operators[1:])
    return {
        "network": name,
        "beta_w": beta_w,
        "beta_a": beta_a,
        "precision": str(precision).removeprefix("torch."),
        "batch": batch,
        "kernels_ms": ours,
        "operators_ms": theirs,
        "times": theirs / ours,
    }
