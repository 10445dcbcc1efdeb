"""Everything in its room: who may import whom, and no script longer than it should be."""

import ast

import pytest
from conftest import ROOT

# From the ground up: a file may import those named before it, and nothing else of this project.
ROOMS = ["data", "cli", "model", "dropout", "run_folder", "train", "evaluate", "visualize", "benchmarks.throughput"]
APART = {"cli": {"model"}, "data": set(), "model": {"cli"}, "dropout": {"cli"}, "run_folder": {"cli", "dropout"}} | {
    script: {"train"} for script in ("evaluate", "visualize")
}


def imported(name):
    """The files of this project that a file of it imports, wherever in it."""
    tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found & set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_imports_go_downward(name):
    assert imported(name) <= set(ROOMS[: ROOMS.index(name)]) - APART.get(name, set())


def test_the_rooms_are_all_there_is():
    assert {path.stem for path in ROOT.glob("*.py")} == {room for room in ROOMS if "." not in room}


def test_the_lesson_is_short():
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 250
