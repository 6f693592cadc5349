"""The examples in the docstrings of all modules say what is true."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

PACKAGES = ("models", "link", "onboard", "ground")


def modules() -> list[str]:
    names = list(PACKAGES)
    for package in PACKAGES:
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        names += [module.name for module in found if not module.name.endswith("__main__")]
    return names


def load(name):
    if name.startswith("models.training"):
        pytest.importorskip("torch", reason="torch is not installed: pip install 'hadanet-uav[train]'")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", modules())
def test_examples(name):
    module = load(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(module, globs={"np": np, **vars(module)}) if test.examples]
    runner = doctest.DocTestRunner()
    for test in tests:
        report: list[str] = []
        runner.run(test, out=report.append)
        assert not runner.failures, "".join(report)


def test_examples_are_found():
    names = ("models.bits", "models.binarize", "models.network", "onboard.learner", "onboard.scores", "onboard.replay")
    for name in names:
        assert any(test.examples for test in doctest.DocTestFinder().find(load(name))), name
