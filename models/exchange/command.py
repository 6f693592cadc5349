"""`hadanet convert`: the model, what became of each node, and a recipe with which training goes on."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from models import artifact
from models.engine import Engine
from models.errors import ArtifactError
from models.exchange import convert as conversion
from models.exchange import reader
from models.network import NetworkSpec
from models.paper.report import show

RECIPE = """# {network} as a HadaNet, trained from its weights and by its answers:
#   hadanet train {name} --out trained.safetensors
dataset = "{dataset}"
epochs = 30
batch = 64
learning_rate = 1e-3
label_smoothing = 0
augment = {{ min_scale = 0.8, turn = 0, shift = 0.05, gain = 0.1, contrast = 0.1, tint = 0.05, noise = 4 }}
origin = {origin}
{teacher}
[network]
name = "{spec.name}"
input_size = {spec.input_size}
mean = {spec_mean}
taps = {taps}
deviation = false
beta_f = 1
stem = {stem}
blocks = [
{blocks}
]
"""


def convert(args: argparse.Namespace) -> int:
    """Run the command. Raises HadanetError for everything that the user can mend."""
    mean, deviation = tuple(args.mean), tuple(args.deviation)
    for name, value, ends in (("beta-w", args.beta_w, (0, 65536)), ("beta-a", args.beta_a, (0, 65536))):
        if not ends[0] <= value <= ends[1]:
            raise ArtifactError(f"--{name} {value}: it is {ends[0]} to {ends[1]}")
    if min(deviation) <= 0 or not all(0 <= x <= 255 for x in mean):
        raise ArtifactError(f"--mean {mean} and --deviation {deviation}: 0 to 255, and more than 0")
    data = images = None
    network = reader.read(args.network, args.size)
    if args.dataset:
        from models.training import datasets
        from models.training.views import as_tiles

        data = datasets.load(args.dataset, network.size)
        images = as_tiles(data.images[~data.test][: conversion.IMAGES], network.size)
    betas = args.beta_w, args.beta_a
    network, start = conversion.convert(
        args.network, betas=betas, size=args.size, mean=mean, deviation=deviation, images=images
    )
    names = tuple(args.classes.split(",")) if args.classes else ()
    if data and not names and len(data.class_names) == len(network.head):
        names = data.class_names
    model = start.model(conversion.class_names(network, names))
    Engine(model)  # raises ArtifactError where it cannot fly
    artifact.save(model, args.out, note=f"made of {args.network.name} by hadanet convert, not trained since")
    recipe = args.out.with_suffix(".toml")
    near = os.path.relpath(args.network, recipe.parent)
    has_head = len(model.classes) == len(network.head)
    float_network = f'{{ onnx = "{near}", mean = {list(mean)}, deviation = {list(deviation)} }}'
    dataset = args.dataset or "name a data set here"
    if args.dataset and Path(args.dataset).exists():
        dataset = os.path.relpath(args.dataset, recipe.parent)
    text = RECIPE.format(
        network=near,
        name=recipe.name,
        dataset=dataset,
        origin=float_network,
        teacher=f"teacher = {float_network}\n" if has_head else "",
        spec=model.spec,
        **_fields(model.spec),
    )
    try:
        recipe.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{recipe}: cannot be written: {error.strerror}") from error
    show(f"{args.network.name} as a HadaNet, beta_w {betas[0]}, beta_a {betas[1]}", network.report)
    sys.stdout.write(f"{args.out}: {args.out.stat().st_size} bytes, {len(model.classes)} classes\n")
    if not has_head:
        sys.stdout.write(f"the head of {len(network.head)} classes is left out; in flight it is learned anew\n")
    if data and data.test.any() and has_head and len(data.class_names) == len(network.head):
        engine = Engine(model)
        tiles = as_tiles(data.images[data.test], network.size)
        share = (engine.logits(engine.features(tiles)).argmax(1) == data.labels[data.test]).mean()
        sys.stdout.write(f"before any training: {share:.2%} of {len(tiles)} test images of {data.name}\n")
    sys.stdout.write(f"train it from here: hadanet train {recipe} --out {args.out.stem}-trained.safetensors\n")
    return 0


def _fields(spec: NetworkSpec) -> dict[str, str]:
    blocks = "\n".join(f"  {_inline(block)}," for block in spec.blocks)
    return {
        "spec_mean": str(list(spec.mean)),
        "taps": str(list(spec.taps)),
        "stem": _inline(spec.stem),
        "blocks": blocks,
    }


def _inline(struct: Any) -> str:
    """A struct as an inline table of TOML, without what has its default."""
    parts = []
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if field.required or value != field.default:
            text = _inline(value) if isinstance(value, msgspec.Struct) else msgspec.json.encode(value).decode()
            parts.append(f"{field.name} = {text}")
    return "{ " + ", ".join(parts) + " }" if parts else "{}"
