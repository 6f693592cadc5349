"""`hadanet paper NAME`: a table or figure of the paper beside its own numbers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from models.artifact import ZOO
from models.binarize import Layout
from models.errors import HadanetError
from models.network import NetworkSpec
from models.paper import angles, report, sizes
from models.paper.report import Row

if TYPE_CHECKING:
    from models.paper.accuracy import Schedule

SQUARES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
ZOO_CLASSES = {"lenet": 10, "nin": 10, "alexnet-cifar": 10, "resnet20": 10, "resnet18": 1000, "alexnet": 1000}


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verb `paper` of `hadanet`."""
    paper = verbs.add_parser(
        "paper",
        help="reproduce a table or figure of the paper",
        epilog="example: hadanet paper table2 --network lenet --rows 'HadaNet(16,2)' --seeds 5",
    )
    names = paper.add_subparsers(dest="name", required=True)
    for name, (run, what) in NAMES.items():
        one = names.add_parser(name, help=what, epilog=f"example: hadanet paper {name} --out paper")
        one.add_argument("--out", type=Path, default=Path("paper"), help="folder for numbers and picture (paper)")
        one.set_defaults(run=run)
        if name == "fig5":
            one.add_argument("--most", type=int, default=SQUARES[-1], help="largest side of the matrices (8192)")
        if name in ("table2", "table3", "betas"):
            one.add_argument("--epochs", type=int, help="a shorter or longer schedule than the recipe's")
            one.add_argument("--seeds", type=int, default=1, help="runs of each row, with seeds 0, 1, ... (1)")
            one.add_argument("--device", default="cpu", help="what trains, by PyTorch's name, as cuda (cpu)")
            one.add_argument("--data", help="another data set: a folder with train/ and val/, or an .npz file")
        if name in ("table2", "table3"):
            small = "lenet", "lenet-today", "nin", "nin-today", "alexnet-cifar"
            networks = small if name == "table2" else ("resnet18", "alexnet")
            one.add_argument("--network", choices=networks, default=networks[0], help=f"({networks[0]})")
            one.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="some rows, as HadaNet(16,2); all")
            one.add_argument("--layout", choices=("channel", "row"), default="channel", help="(channel, which flies)")


def _table1(args: argparse.Namespace) -> int:
    rows = sizes.table1()
    report.show("Table 1: times smaller than floats, beta_w 16, first and last layer not binary", rows)

    def draw(axes: Any) -> None:
        names = [f"{row['network']}\n{row['counted']}" for row in rows]
        for shift, key in ((-0.25, "paper"), (0.0, "float_scales_and_ends"), (0.25, "int8_scales_and_ends")):
            axes.barh(
                [i + shift for i in range(len(rows))], [row[key] for row in rows], 0.23, label=key.replace("_", " ")
            )
        axes.set_yticks(range(len(rows)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("times smaller")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3)

    report.save(args.out, "table1", rows, draw)
    return 0


def _energy(args: argparse.Namespace) -> int:
    from models.training.recipe import read

    specs: list[tuple[NetworkSpec, int]] = [(read(ZOO / "default.toml")[0].network, 21)]
    specs += [(read(ZOO / f"{name}.toml")[0].network, classes) for name, classes in ZOO_CLASSES.items()]
    rows: list[Row] = [sizes.energy(spec, classes) for spec, classes in specs]
    note = "an estimate, by section 4: 32 bits from DRAM 640 pJ, from SRAM 5 pJ, float add 0.9 pJ, multiply 3.7 pJ"
    report.show("Energy of one image", rows, note)

    def draw(axes: Any) -> None:
        axes.barh([str(row["network"]) for row in rows], [row["ratio"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("times less energy than in float (estimate)")

    report.save(args.out, "energy", rows, draw)
    return 0


def _fig2(args: argparse.Namespace) -> int:
    rows: list[Row] = []
    for layout in ("row", "channel"):
        rows += [{"layout": layout, **row} for row in angles.figure2(layout)]
    wide: list[Row] = []
    for layout in ("row", "channel"):
        for beta_w in angles.CORRELATED:
            own: dict[str, object] = {"layout": layout, "beta_w": beta_w}
            for row in rows:
                if (row["layout"], row["beta_w"]) == (layout, beta_w):
                    own[f"beta_a_{row['beta_a']}"] = row["correlation"]
            wide.append(own)
    note = "random weights, not trained: there, both block lengths cost alike; the paper's fall mostly with beta_a"
    report.show("Fig. 2: correlation of a convolution's output with the float one", wide, note)

    def draw(axes: Any) -> None:
        for beta_w in angles.CORRELATED:
            own = [row for row in rows if (row["layout"], row["beta_w"]) == ("row", beta_w)]
            axes.plot([r["beta_a"] for r in own], [r["correlation"] for r in own], "o-", label=f"beta_w {beta_w}")
        axes.set_xlabel("beta_a")
        axes.set_ylabel("correlation with float")
        axes.legend()

    report.save(args.out, "fig2", rows, draw)
    return 0


def _fig3(args: argparse.Namespace) -> int:
    rows = angles.figure3()
    report.show("Fig. 3: angle between a normal random vector and its binarized twin, degrees", rows)

    def draw(axes: Any) -> None:
        axes.plot([row["beta"] for row in rows], [row["degrees"] for row in rows], "o-", label="measured")
        said = [row for row in rows if row["paper_degrees"] is not None]
        axes.plot([row["beta"] for row in said], [row["paper_degrees"] for row in said], "x", label="paper", ms=9)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("beta")
        axes.set_ylabel("degrees")
        axes.legend()

    report.save(args.out, "fig3", rows, draw)
    return 0


def _fig5(args: argparse.Namespace) -> int:
    from models.paper.products import square

    if args.most < SQUARES[0]:
        raise HadanetError(f"--most {args.most}: the smallest matrices have a side of {SQUARES[0]}")
    rows: list[Row] = []
    for m in track([m for m in SQUARES if m <= args.most], "multiplying", console=Console(stderr=True), transient=True):
        _, seconds = square(m, 7)
        ratios = {f"times_faster_than_{name}": seconds[name] / seconds["ours"] for name in ("twin", "openblas")}
        rows.append({"m": m, "paper": 10.0, **ratios, "ours_ms": 1e3 * seconds["ours"]})
    note = "twin: a float kernel written alike, as in the paper; one thread, operands packed on both sides"
    report.show("Fig. 5: products of M x M matrices, beta 16", rows, note)

    def draw(axes: Any) -> None:
        for key, label in (
            ("times_faster_than_twin", "than the float twin"),
            ("times_faster_than_openblas", "than OpenBLAS"),
        ):
            axes.plot([row["m"] for row in rows], [row[key] for row in rows], "o-", label=label)
        axes.axhline(10, ls="--", c="gray", label="paper, about")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("M")
        axes.set_ylabel("times faster")
        axes.legend()

    report.save(args.out, "fig5", rows, draw)
    return 0


def _schedule(args: argparse.Namespace, layout: Layout) -> "Schedule":
    try:
        from models.paper.accuracy import Schedule
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise HadanetError("training needs PyTorch: pip install 'hadanet-uav[train]'") from error
    for name, least in (("epochs", 1), ("seeds", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise HadanetError(f"--{name} {getattr(args, name)}: at least {least}")
    return Schedule(args.epochs, args.seeds, layout, args.data and str(Path(args.data).resolve()), args.device)


def _accuracies(args: argparse.Namespace) -> int:
    if args.name == "table3" and not args.data:
        raise HadanetError("table 3 needs ImageNet, or a folder like it: name it with --data FOLDER (train/ and val/)")
    schedule = _schedule(args, args.layout)
    from models.paper import accuracy

    rows = accuracy.table(args.network, args.rows, schedule, args.out)
    note = (
        "percent of the test images; best_epoch chosen on them, as the paper seems to; packed: as it flies, with 8-bit "
        "scales and ends; spread: deviation over seeds"
    )
    report.show(f"Table {args.name[-1]}: {args.network}", rows, note)

    def draw(axes: Any) -> None:
        places = range(len(rows))
        axes.plot([row["paper"] for row in rows], places, "kx", label="paper", ms=9)
        axes.plot([row["best_epoch"] for row in rows], places, "o", label="best epoch")
        spread = [row["spread"] or 0 for row in rows]
        axes.errorbar([row["last_epoch"] for row in rows], places, xerr=spread, fmt="s", label="last epoch", capsize=3)
        axes.set_yticks(places, [str(row["row"]) for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("test accuracy, percent")
        axes.legend()

    report.save(args.out, f"{args.name}-{args.network}-{args.layout}", rows, draw)
    return 0


def _betas(args: argparse.Namespace) -> int:
    schedule = _schedule(args, "channel")
    from models.paper import betas

    rows = betas.curve(schedule, args.out)
    note = (
        f"percent of the test images, packed; chance: one standard error of so few; ms: {betas.TILES} tiles, one "
        "thread; front: none is better in both"
    )
    report.show("Accuracy against time over beta_a: the default backbone, no teacher", rows, note)

    def draw(axes: Any) -> None:
        for row in rows:
            colour = "C0" if row["front"] else "gray"
            axes.errorbar(row["ms"], row["accuracy"], yerr=row["chance"], fmt="o", color=colour, capsize=3)
            axes.annotate(f"{row['beta_a']}", (row["ms"], row["accuracy"]), (6, 6), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlabel(f"ms for {betas.TILES} tiles")
        axes.set_ylabel("test accuracy, percent, with one standard error")

    report.save(args.out, "betas", rows, draw)
    return 0


NAMES = {
    "table1": (_table1, "model size"),
    "table2": (_accuracies, "accuracy on MNIST and CIFAR-10"),
    "table3": (_accuracies, "accuracy on ImageNet, or a folder like it"),
    "fig2": (_fig2, "correlation of activations"),
    "fig3": (_fig3, "angle between a vector and its binarized twin"),
    "fig5": (_fig5, "speed of matrix products"),
    "betas": (_betas, "accuracy against time over beta_a, beyond the paper"),
    "energy": (_energy, "energy of each network of the zoo by section 4's figures"),
}
