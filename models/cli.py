"""The command `hadanet`: look into an artifact, train one, exchange it with ONNX."""

import argparse
import json
import sys
from pathlib import Path

from models import artifact
from models.commands import exit_status
from models.errors import HadanetError
from models.paper import cli as paper

NEEDS_ONNX = "ONNX files need the package onnx: pip install 'hadanet-uav[onnx]'"


def _info(args: argparse.Namespace) -> int:
    about = artifact.describe(args.artifact)
    model = artifact.load(args.artifact)
    parts = {
        "binary weights": sum(8 * a.size for n, a in model.tensors.items() if n.endswith(".bits")),
        "block scales": sum(a.size for n, a in model.tensors.items() if n.endswith(".q")),
        "stem weights": sum(a.size for n, a in model.tensors.items() if n == "stem.weight"),
        "float parameters": sum(a.size for a in model.tensors.values() if a.dtype.name == "float32"),
    }
    facts: dict[str, object] = {
        "hash": model.hash,
        "network": model.spec.name,
        "input": f"{model.spec.input_size} x {model.spec.input_size} x 3",
        "blocks": len(model.spec.blocks),
        "features": model.spec.feature_count,
        "classes": list(model.classes),
        "bytes": args.artifact.stat().st_size,
        **parts,
        **{name: about[name] for name in ("scores", "data", "torch", "note", "recipe") if name in about},
    }
    if args.json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for name, value in facts.items():
            text = ", ".join(value) if isinstance(value, list) else str(value)
            sys.stdout.write(f"{name + ':':18}" + text.replace("\n", "\n" + " " * 18) + "\n")
    return 0


def _train(args: argparse.Namespace) -> int:
    try:
        from models.training import trainer
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise HadanetError("training needs PyTorch: pip install 'hadanet-uav[train]'") from error
    scores = trainer.run(
        args.recipe, args.out, resume=args.resume, epochs=args.epochs, seed=args.seed, device=args.device
    )
    sys.stdout.write(f"{args.out}: {json.dumps(scores)}\n")
    return 0


def _export(args: argparse.Namespace) -> int:
    try:
        from models.exchange import export
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise HadanetError(NEEDS_ONNX) from error
    model = artifact.load(args.artifact)
    export.save(model, args.out)
    agreement = export.agreement(model, args.out)
    sys.stdout.write(
        f"{args.out}: {args.out.stat().st_size} bytes; input {export.INPUT} float32 (n, 3, S, S) RGB 0..255, "
        f"output {export.OUTPUT}\nONNX Runtime against the packed kernels: {agreement}\n"
    )
    return 0


def _convert(args: argparse.Namespace) -> int:
    try:
        from models.exchange import command
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise HadanetError(NEEDS_ONNX) from error
    return command.convert(args)


def parser() -> argparse.ArgumentParser:
    """The command line of `hadanet`."""
    top = argparse.ArgumentParser(prog="hadanet", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    info = verbs.add_parser("info", help="what is in an artifact", epilog="example: hadanet info model.safetensors")
    info.add_argument("artifact", type=Path, nargs="?", default=artifact.DEFAULT)
    info.add_argument("--json", action="store_true", help="one line of JSON")
    info.set_defaults(run=_info)
    convert = verbs.add_parser(
        "convert",
        help="make a HadaNet of a float ONNX network",
        epilog="example: hadanet convert resnet20.onnx --out mine.safetensors --mean 125 123 114 --deviation 63 62 67 "
        "--dataset photos/",
    )
    convert.add_argument("network", type=Path, help="the ONNX file")
    convert.add_argument("--out", type=Path, required=True, help="the artifact to write; a recipe comes beside it")
    convert.add_argument("--beta-w", type=int, default=16, help="weights that share a scale (16); 1: kept float")
    convert.add_argument("--beta-a", type=int, default=2, help="channels that share a scale (2); 0: all; 1: kept float")
    convert.add_argument("--size", type=int, default=0, help="side of its input, where the file leaves that open")
    for name, what in (("mean", "subtracted from"), ("deviation", "that divides")):
        default = [0.0] * 3 if name == "mean" else [1.0] * 3
        text = f"{what} the pixels, 0..255, before the network sees them"
        convert.add_argument(f"--{name}", type=float, nargs=3, default=default, metavar=("R", "G", "B"), help=text)
    convert.add_argument("--dataset", help="images to measure with, and to train on: a name, an .npz file or a folder")
    convert.add_argument("--classes", default="", help="names, with commas between them")
    convert.set_defaults(run=_convert)
    export = verbs.add_parser(
        "export", help="write a model as ONNX", epilog="example: hadanet export my.safetensors --out my.onnx"
    )
    export.add_argument("artifact", type=Path, nargs="?", default=artifact.DEFAULT)
    export.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    export.set_defaults(run=_export)
    paper.add_parser(verbs)
    train = verbs.add_parser(
        "train", help="train a network", epilog="example: hadanet train models/zoo/default.toml --out my.safetensors"
    )
    train.add_argument("recipe", type=Path)
    train.add_argument("--out", type=Path, required=True, help="the artifact to write")
    train.add_argument("--resume", action="store_true", help="go on where the last run that would write OUT stopped")
    train.add_argument("--epochs", type=int, help="in place of the recipe's")
    train.add_argument("--seed", type=int, help="in place of the recipe's")
    train.add_argument("--device", default="cpu", help="what computes, by PyTorch's name, as cuda (cpu)")
    train.set_defaults(run=_train)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run `hadanet`; see `exit_status` for what it returns."""
    args = parser().parse_args(argv)
    return exit_status("hadanet", lambda: int(args.run(args)))


if __name__ == "__main__":
    sys.exit(main())
