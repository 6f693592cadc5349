"""The one rule about imports (docs/architecture.md), read from the source of every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MAY_IMPORT = {
    "models": {"models"},
    "link": {"models", "link"},
    "onboard": {"models", "link", "onboard"},
    "ground": {"models", "link", "ground"},
}
OTHERS = {"tests", "benchmarks", "deploy"}
"""They may import all of the packages, and none of the packages may import them."""


def imported(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything that a file imports, anywhere in it, also by a relative or a written-out name."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import x` of the root folder imports the package x
            yield from ((node.lineno, base or alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in ("import_module", "__import__", "run_module") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def forbidden(root: Path) -> list[str]:
    """Each arrow that must not be, as `file:line imports name`."""
    found = []
    for package, allowed in MAY_IMPORT.items():
        for path in sorted((root / package).rglob("*.py")):
            for line, name in imported(path, root):
                first = name.split(".")[0]
                if first in (MAY_IMPORT.keys() | OTHERS) - allowed:
                    found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def test_no_arrow_goes_the_wrong_way():
    assert forbidden(ROOT) == []


def test_every_file_was_read():
    counts = {package: len(list((ROOT / package).rglob("*.py"))) for package in MAY_IMPORT}
    assert all(count >= 5 for count in counts.values()), counts
    names = {name for _, name in imported(ROOT / "onboard" / "learner.py", ROOT)}
    assert {"models.model", "onboard.tracks"} <= names


@pytest.mark.parametrize(
    ("file", "text", "arrow"),
    [
        ("models/a.py", "import link.codec", "models/a.py:1 imports link.codec"),
        ("models/deep/er/a.py", "from onboard.grid import cut", "models/deep/er/a.py:1 imports onboard.grid"),
        ("models/a.py", "import numpy, ground", "models/a.py:1 imports ground"),
        ("link/a.py", "def f():\n    from onboard import grid", "link/a.py:2 imports onboard"),
        (
            "link/a.py",
            "try:\n    import ground.web as w\nexcept ImportError:\n    w = None",
            "link/a.py:2 imports ground.web",
        ),
        ("onboard/a.py", "from ground.store import Store", "onboard/a.py:1 imports ground.store"),
        (
            "onboard/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ground",
            "onboard/a.py:3 imports ground",
        ),
        (
            "ground/a.py",
            "import importlib\nimportlib.import_module('onboard.sim')",
            "ground/a.py:2 imports onboard.sim",
        ),
        ("ground/a.py", "from ..onboard import sim", "ground/a.py:1 imports onboard"),
        ("onboard/sim/a.py", "from ... import ground", "onboard/sim/a.py:1 imports ground"),
        ("models/a.py", "from tests import reference", "models/a.py:1 imports tests"),
    ],
)
def test_a_forbidden_arrow_is_seen(tmp_path, file, text, arrow):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert forbidden(tmp_path) == [arrow]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models/a.py", "from models import network\nfrom . import kernels\nimport numpy.linkage, groundwork"),
        ("link/a.py", "from models.delta import apply\nfrom .codec import encode"),
        ("onboard/sim/a.py", "from ..frame import Frame\nfrom . import noise\nimport link.codec"),
        ("ground/a.py", "'import onboard'  # import onboard\nfrom link import mirror\nimport models"),
    ],
)
def test_an_arrow_that_may_be_is_not(tmp_path, file, text):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert forbidden(tmp_path) == []
