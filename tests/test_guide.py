"""The guides, one's own problem and many outputs: every block runs, in order, and prints what the page says."""

import contextlib
import functools
import io
import json
import re
import shlex
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import REFERENCE, ROOT, call, copy_run, metrics, tiles
from PIL import Image
from test_predict import draw

PAGES = ["docs/your_own_problem.md", "docs/many_outputs.md"]
ELSEWHERE = "# Needs docs/requirements.txt.\n"  # how the block begins that exports the network
DOWNLOADS = "# Downloads"  # how a block begins that needs the network


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


def agree(printed, expected):
    """Hold what a block printed against its page, letter by letter; a processor may round a figure otherwise."""
    figure = r"\d+\.\d+"
    assert re.sub(figure, "", printed) == re.sub(figure, "", expected)
    found, said = (list(map(float, re.findall(figure, text))) for text in (printed, expected))
    assert found == pytest.approx(said, abs=0.02)


def run_blocks(page, elsewhere=False):
    """Run a page's blocks in order, in this process; returns [(what a block should print, what it printed)].

    What stands between a change of the files and their return is left out; test_the_guides_in_their_order() runs it.
    """
    names, said, pairs, changed = {}, "", [], False
    for language, text in blocks(page):
        changed = (changed or language == "diff") and not text.startswith("git checkout")
        if changed or text.startswith(("git checkout", DOWNLOADS)):
            continue
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


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_guide(page, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("predict.RECORDED", place / "outputs" / "reference")  # the project's may be read-only
    pairs = run_blocks(page)
    assert len(pairs) == {PAGES[0]: 3, PAGES[1]: 17}[page]
    for expected, printed in pairs:
        agree(printed, expected)
    if page == PAGES[0]:
        assert metrics(place / "outputs" / "pictures")["images"] == 52


def small_network(losses, weights=None):
    """A network of two outputs, a and b, that is quick to build; returns it compiled."""
    image = keras.Input((4,), name="image")
    shared = keras.layers.Dense(4, name="shared")(image)
    model = keras.Model(image, [keras.layers.Dense(2, name=name)(shared) for name in "ab"])
    model.compile(keras.optimizers.SGD(0.1), loss=losses, loss_weights=weights)
    return model


SMALL_X, SMALL_Y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")


def test_a_missing_name_in_a_dictionary_of_losses_is_an_error():
    with pytest.raises(ValueError, match="Expected keys"):
        small_network({"a": "mse"}).fit(SMALL_X, (SMALL_Y, SMALL_Y), verbose=0)
    with pytest.warns(UserWarning, match="Gradients do not exist"):  # for b, which is not trained
        small_network({"a": "mse", "b": None}).fit(SMALL_X, (SMALL_Y, SMALL_Y), verbose=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a tf.data pipeline is TensorFlow's")
def test_a_generator_yields_a_tuple_of_targets_and_not_a_list():
    model, plain = small_network("mse"), {"verbose": 0, "shuffle": False}
    model.fit((batch for batch in [(SMALL_X, (SMALL_Y, SMALL_Y))]), steps_per_epoch=1, **plain)
    with pytest.raises(TypeError, match="output_signature"):
        model.fit((batch for batch in [(SMALL_X, [SMALL_Y, SMALL_Y])]), steps_per_epoch=1, **plain)


def test_the_sum_of_the_weights_divides_if_one_asks_for_it():
    truth, answer = np.eye(2, dtype="float32")[[0, 0, 1, 1]], np.full((4, 2), 0.5, "float32")
    losses = [
        float(keras.losses.CategoricalCrossentropy(**more)(truth, answer, sample_weight=np.float32([1, 0, 0, 0])))
        for more in ({}, {"reduction": "mean_with_sample_weight"})
    ]
    assert losses == pytest.approx([np.log(2) / 4, np.log(2)], rel=1e-5)


def test_what_is_frozen_after_compile_learns_until_the_next():
    model = small_network("mse")
    kernels = []
    for step in ("as it was", "frozen", "compiled again"):
        if step == "frozen":
            model.get_layer("shared").trainable = False
        if step == "compiled again":
            model.compile(keras.optimizers.SGD(0.1), loss="mse")
        before = model.get_layer("shared").get_weights()[0]
        model.train_on_batch(SMALL_X, (SMALL_Y, SMALL_Y))
        kernels.append(np.array_equal(before, model.get_layer("shared").get_weights()[0]))
    assert kernels == [False, False, True]


def test_frozen_weights_leave_dropout_on():
    layers = keras.Sequential([keras.Input((1000,)), keras.layers.Dropout(0.5)])
    layers.trainable = False
    ones = np.ones((1, 1000), "float32")
    assert (keras.ops.convert_to_numpy(layers(ones, training=True)) == 0).any()
    assert (keras.ops.convert_to_numpy(layers(ones, training=False)) == ones).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_network_elsewhere(place, monkeypatch):
    for package in ("onnxruntime", "tf2onnx", "ai_edge_litert"):
        pytest.importorskip(package)
    monkeypatch.chdir(place)
    monkeypatch.setattr("predict.RECORDED", place / "outputs" / "reference")
    for expected, printed in run_blocks(PAGES[0], elsewhere=True):
        assert printed == expected


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_have_the_same_code(page):
    english, japanese = (
        [(language, re.sub(r"#.*|\"\"\".*?\"\"\"", "", text)) for language, text in blocks(name)]
        for name in (page, page.replace(".md", ".ja.md"))
    )
    assert english == japanese


# Runs blocks of Python, one a line, in one process, as a reader types them; Fashion-MNIST is the project's own data.
READER = """
import contextlib, io, json, sys
import keras
from data import DATA
with __import__("numpy").load(DATA) as file:
    parts = [(file["x_" + part], file["y_" + part]) for part in ("train", "test")]
keras.datasets.fashion_mnist.load_data = lambda: parts
names = {}
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(json.loads(line), names)
    print(json.dumps(output.getvalue()), flush=True)
"""


@contextlib.contextmanager
def reader(folder):
    """Yield a function that runs a block of Python in a new Python in the folder; returns what it printed."""
    command, pipe = [sys.executable, "-c", READER], subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as python:

        def run(text):
            python.stdin.write(json.dumps(text) + "\n")
            python.stdin.flush()
            return json.loads(python.stdout.readline())

        yield run
        python.stdin.close()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("git") and shutil.which("patch")), reason="there is no git or no patch here")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
@pytest.mark.parametrize("language", ["", ".ja"])
def test_the_guides_in_their_order(place, tmp_path, language):
    """In a clone, one page after the other: the diff applied, and taken back where the page says so."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    shutil.copytree(place / "pictures", clone / "pictures")
    shutil.copy(place / "seven.png", clone)
    run = functools.partial(subprocess.run, cwd=clone, capture_output=True, text=True, check=True)
    changes = 0
    for page in PAGES:
        with contextlib.ExitStack() as pythons:
            python = pythons.enter_context(reader(clone))
            for kind, text in blocks(page.replace(".md", f"{language}.md")):
                if kind == "python" and not text.startswith(ELSEWHERE):
                    printed = python(text)
                elif kind == "python":
                    printed = None
                elif kind == "diff":
                    run(["patch", "-p1", "--silent"], input=text)
                    changes += 1
                elif kind == "sh" and text.startswith("git checkout"):
                    run(shlex.split(text))
                    python = pythons.enter_context(reader(clone))  # "begin a new Python"
                elif kind == "sh":
                    for line in text.splitlines():
                        name, *arguments = shlex.split(line)
                        assert name == "python"
                        said = run([sys.executable, *arguments]).stdout
                elif kind == "text" and printed is not None:
                    agree(printed, text)
                if kind == "sh" and "outputs/even" in text:
                    assert "even_accuracy" in said
    assert changes == 1
    assert run(["git", "status", "--short", "--untracked-files=no"]).stdout == ""
    with np.load(clone / "fashion.npz") as file:
        assert file["class_names"].shape == (10,)


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
    header = (tmp_path / "run" / "history.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"even_loss", "even_accuracy", "val_even_loss", "val_even_accuracy"} <= {*header}
    others = metrics(tmp_path / "run")["other_outputs"]
    assert others.keys() == {"even_loss", "even_accuracy"}
    last = (tmp_path / "run" / "history.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")
    assert others["even_loss"] == pytest.approx(float(last[header.index("val_even_loss")]), abs=1e-5)
    assert Image.open(tmp_path / "run" / "training.png").size[0] == 4 * 4 * 120
    usage = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "--loss-weights CLASSIFICATION AUTOENCODER EVEN" in " ".join(usage.split())
