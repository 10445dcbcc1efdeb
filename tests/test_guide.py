"""The guide for one's own problem: every block of both pages runs, in order, and prints what the page says."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import REFERENCE, ROOT, call, copy_run, metrics, tiles
from PIL import Image
from test_predict import draw

PAGES = ["docs/your_own_problem.md", "docs/your_own_problem.ja.md"]


def blocks(page):
    """The code blocks of a page: (language, text)."""
    return re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture
def place(tmp_path):
    """A folder with what a reader of the guide has: a digit as a picture, and a folder of pictures by class."""
    folder = tmp_path / "guide"
    (folder / "outputs" / "reference").mkdir(parents=True)
    copy_run(REFERENCE, folder / "outputs" / "reference")
    draw(7, np.random.default_rng(5)).save(folder / "seven.png")
    for name, pictures in zip(("temple", "flower"), tiles(10)):
        (folder / "pictures" / name).mkdir(parents=True)
        for number, tile in enumerate(pictures):
            Image.fromarray(tile).save(folder / "pictures" / name / f"{number:03d}.png")
    return folder


ELSEWHERE = "# Needs docs/requirements.txt.\n"  # how the block begins that exports the network


def run_blocks(page, elsewhere=False):
    """Run a page's blocks one after the other; returns [(what a block should print, what it printed)]."""
    names, said, pairs = {}, "", []
    for language, text in blocks(page):
        if text.startswith(ELSEWHERE) and not elsewhere:
            said = None
        elif language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, page, "exec"), names)
            said = output.getvalue()
        elif language == "sh":
            for line in text.splitlines():
                arguments = shlex.split(line)
                assert arguments[0] == "python"
                call(*arguments[1:])
        elif language == "text" and said is not None:
            pairs.append((text, said))
    return pairs


def test_every_block_of_the_guide(place, monkeypatch):
    monkeypatch.chdir(place)
    pairs = run_blocks(PAGES[0])
    assert len(pairs) >= 10
    for expected, printed in pairs:
        assert printed == expected
    assert metrics(place / "outputs" / "pictures")["images"] == 52


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_network_elsewhere(place, monkeypatch):
    for package in ("onnxruntime", "tf2onnx", "ai_edge_litert"):
        pytest.importorskip(package)
    monkeypatch.chdir(place)
    for expected, printed in run_blocks(PAGES[0], elsewhere=True):
        assert printed == expected


def test_both_pages_have_the_same_code():
    english, japanese = (
        [(language, re.sub(r"#.*|\"\"\".*?\"\"\"", "", text)) for language, text in blocks(page)] for page in PAGES
    )
    assert english == japanese


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("patch"), reason="there is no patch here")
def test_a_third_output_takes_three_places(small_data, tmp_path):
    """The guide's change, applied to a copy of the project; trained, stopped, gone on with, measured and drawn."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "support", tmp_path / "support")
    (change,) = (text for language, text in blocks(PAGES[0]) if language == "diff")
    assert len(re.findall(r"(?m)^\+\+\+ ", change)) == 3
    subprocess.run(["patch", "-p1", "--silent"], cwd=tmp_path, input=change, text=True, check=True)
    flags = ["--data", str(small_data), "--epochs", "1", "--limit", "64", "--loss-weights", "0.9", "0.1", "0.2"]
    code = f"""
import train, evaluate, visualize
run = ["--output-dir", "run"]
train.main([*run, *{flags}])
train.main([*run, "--resume", "--epochs", "2"])
evaluate.main(run)
visualize.main(run)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^even_accuracy +0\.\d+$", done.stdout)
    header = (tmp_path / "run" / "history.csv").read_text().splitlines()[0].split(",")
    assert {"even_loss", "even_accuracy", "val_even_loss", "val_even_accuracy"} <= {*header}
    others = metrics(tmp_path / "run")["other_outputs"]
    assert others.keys() == {"even_loss", "even_accuracy"}
    last = (tmp_path / "run" / "history.csv").read_text().splitlines()[-1].split(",")
    assert others["even_loss"] == pytest.approx(float(last[header.index("val_even_loss")]), abs=1e-5)
    assert Image.open(tmp_path / "run" / "training.png").size[0] == 4 * 4 * 120
    usage = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "--loss-weights CLASSIFICATION AUTOENCODER EVEN" in " ".join(usage.split())
