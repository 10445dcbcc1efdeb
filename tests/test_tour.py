"""The notebook: it runs, and says what it says in the repository."""

import json
import re
import shutil

import pytest
from conftest import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def printed(cells):
    """Return what the cells of a notebook print."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def test_it_is_stored_with_its_outputs():
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    assert len(cells) <= 12
    pictures = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    assert len(re.findall(r"[\d.]+%", printed(cells))) == 3


@pytest.mark.slow
def test_it_runs_and_prints_what_is_stored(tmp_path):
    """In a copy of the project. A training of another processor can end a few percent elsewhere."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    copy = tmp_path / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "tests"))
    notebook = nbformat.read(TOUR, as_version=4)
    stored = printed(notebook.cells)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": copy / "docs"}}).execute()
    now = printed(notebook.cells)
    share = r"[\d.]+(?=%)"
    assert re.sub(share, "", now) == re.sub(share, "", stored)
    assert [*map(float, re.findall(share, now))] == pytest.approx([*map(float, re.findall(share, stored))], abs=4)
