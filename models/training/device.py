"""Where training computes: the CPU, or a GPU that PyTorch knows."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import torch

from models.errors import RecipeError

CPU = torch.device("cpu")


def named(name: str) -> torch.device:
    """The device of PyTorch's name: cpu, cuda, cuda:1, mps, ... Raises RecipeError where this PyTorch has none."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an assertion where it was built without
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"--device {name}: PyTorch cannot compute there: {first}; --device cpu always can") from error
    return device


def described(device: torch.device) -> str:
    """PyTorch, and what it computes on: with another of these, a run comes to another result."""
    if device.type == "cpu":
        return f"{torch.__version__}, threads: {torch.get_num_threads()}"
    return f"{torch.__version__}, {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"
