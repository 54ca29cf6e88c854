"""The examples in docstrings give what they say. `sh` is safehead_tl in them."""

import doctest
import importlib
import pkgutil

import pytest

import safehead_tl as sh


def examples():
    """Every docstring with an example, by its name."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for module in pkgutil.walk_packages(sh.__path__, "safehead_tl."):
        for test in finder.find(importlib.import_module(module.name), extraglobs={"sh": sh}):
            if test.examples:
                found[test.name] = test
    return found


EXAMPLES = examples()


def test_there_are_examples():
    assert len(EXAMPLES) > 15


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(EXAMPLES[name], out=told.append)
    assert not told, "".join(told)
