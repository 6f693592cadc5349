"""Short runs of training, and models with a network in which nothing has its first value. Needs PyTorch."""

from pathlib import Path

import msgspec
import torch
from rich.progress import Progress

from models import artifact
from models.training import datasets, trainer
from models.training.layers import Net
from models.training.recipe import read
from tests.training_data import CLASS_NAMES, recipe_text


def recipe(folder, **changes):
    path = folder / "recipe.toml"
    path.write_text(recipe_text(epochs=4))
    return msgspec.structs.replace(read(path)[0], **changes)


def quiet():
    return Progress(disable=True)


def run_of(recipe, folder=Path()):
    return trainer.Run(recipe, datasets.load("ucmerced"), folder)


def lively_net(spec, seed=0, classes=3):
    """A network in which no parameter has its first value, so that none can be forgotten unseen."""
    torch.manual_seed(seed)
    net = Net(spec, classes)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif not name.endswith("num_batches_tracked") and tensor.ndim == 1:
                tensor.add_(torch.randn(tensor.shape) * 0.2)
        net.head.weight.mul_(4)
    return net.eval()


def model_at(path, spec, classes=CLASS_NAMES):
    """A model with such a network, in a file."""
    model = trainer.finished(lively_net(spec, classes=len(classes)), classes)
    artifact.save(model, path)
    return model
