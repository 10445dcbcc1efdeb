"""A reader's own images: other sizes, colours and numbers of classes, on real images that scikit-learn brings along."""

import json
import re
import sys

import keras
import matplotlib.image
import numpy as np
import pytest
from conftest import call, copy_run, metrics, tiles
from PIL import Image
from sklearn.datasets import load_digits

from data import load_data, to_images
from evaluate import run_network
from predict import load_trained, run_on_picture
from support.drawing import save_figure
from support.errors import InputError
from support.pictures import prepare_picture, read_picture
from support.run_folder import load_network
from visualize import draw_confusion_matrix, draw_mistakes, draw_sheet, draw_training

COLUMNS = ("classification_loss", "autoencoder_loss", "classification_accuracy")


def digits():
    """1,797 handwritten digits of 8x8 pixels, ink 16."""
    loaded = load_digits()
    images, labels = (loaded.images * 255 / 16).astype(np.uint8), loaded.target
    return {"x_train": images[:1500], "y_train": labels[:1500], "x_test": images[1500:], "y_test": labels[1500:]}


def crops():
    """Tiles of 32x32 from two photographs in colour, one class each; every fifth tile is for testing."""
    images, labels, testing = np.concatenate(tiles(20)), np.arange(2).repeat(260), np.arange(520) % 5 == 0
    sets = {
        "x_train": images[~testing],
        "y_train": labels[~testing],
        "x_test": images[testing],
        "y_test": labels[testing],
    }
    return {**sets, "class_names": ["temple", "flower"]}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((digits, "--batch-size 8", 3, 10), marks=pytest.mark.slow),
        pytest.param((crops, "--batch-size 4", 6, 2), marks=pytest.mark.slow),
    ],
    ids=["digits of 8x8", "crops in colour"],
)
def trained(request, tmp_path_factory):
    """The folder of a run that was stopped after its first epoch and went on, its data file, the number of classes."""
    make, flags, epochs, classes = request.param
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data.npz"
    np.savez(data, **make())
    call("train.py", "--output-dir", folder, "--data", data, "--epochs", 1, "--loss-weights", 0.9, 5, *flags.split())
    call("train.py", "--output-dir", folder, "--resume", "--epochs", epochs)
    return folder, data, classes


def test_it_learns(trained):
    folder, data, classes = trained
    said = call("evaluate.py", "--output-dir", folder)
    (images, _), (test_images, _), names = load_data(data)
    found = metrics(folder)
    assert found["accuracy"] > (0.8 if classes == 10 else 0.7)
    assert list(found["accuracy_of_class"]) == names
    assert all(f"Accuracy of {name} " in said for name in names)
    assert len(names) == classes
    mean_image = images.mean(axis=0, dtype=np.float64)
    assert found["autoencoder_loss"] < np.square((test_images - mean_image) / 255).mean()


def test_its_pictures(trained):
    folder, data, _ = trained
    call("visualize.py", "--output-dir", folder)
    _, (images, _), _ = load_data(data)
    pair = np.rint(255 * matplotlib.image.imread(folder / "reconstructions" / "00.png")[..., :3])
    height, width = images.shape[1:3]
    scale = len(pair) // height
    shown = pair[::scale, : scale * width : scale]
    assert np.array_equal(shown, images[0] if images.ndim == 4 else np.dstack(3 * [images[0]]))
    for name in ("reconstructions.png", "training.png", "confusion_matrix.png", "mistakes.png"):
        assert matplotlib.image.imread(folder / name).shape[0] > 500


def test_images_with_one_channel_are_grey_ones(trained, tmp_path):
    folder, data, _ = trained
    with np.load(data) as file:
        arrays = {**file}
    if arrays["x_train"].ndim == 4:
        pytest.skip("these have three")
    arrays |= {name: arrays[name][..., np.newaxis] for name in ("x_train", "x_test")}
    np.savez(tmp_path / "channel.npz", **arrays)
    plain, channel = load_data(data), load_data(tmp_path / "channel.npz")
    assert np.array_equal(plain[0][0], channel[0][0])
    assert plain[0][0].shape == channel[0][0].shape
    copy_run(folder, tmp_path)
    assert "Test accuracy" in call("evaluate.py", "--output-dir", tmp_path, "--data", tmp_path / "channel.npz")


def test_the_network_draws_as_many_channels_as_it_gets(trained):
    folder, data, classes = trained
    _, (images, _), _ = load_data(data)
    outputs = run_network(load_network(folder)[0], images[:3])
    assert outputs["classification"].shape == (3, classes)
    assert outputs["autoencoder"].shape == (3, *images.shape[1:3], images.shape[3] if images.ndim == 4 else 1)


@pytest.mark.parametrize("count", [12, 47])
def test_many_classes(count, mnist, tmp_path):
    """Made-up labels; of more than ten classes the sheet shows ten, and over twenty the matrix has no numbers."""
    images = mnist[1][0][:940]
    labels, names = np.arange(940) % count, [f"class {label}" for label in range(count)]
    predicted = np.where(np.arange(940) % 7, labels, (labels + 3) % count)
    probabilities = np.full((940, count), 0.1 / count)
    probabilities[np.arange(940), predicted] = 0.9
    sheet = draw_sheet(images, labels, probabilities, images, names)
    assert len(sheet.axes) == 10
    assert f"10 of {count} classes" in sheet.get_suptitle()
    matrix = draw_confusion_matrix(labels, predicted, names)
    numbers = {text.get_text() for text in matrix.axes[0].texts}
    assert (numbers == set()) == (count == 47)
    ticks = [text.get_text() for text in matrix.axes[0].get_yticklabels()]
    assert ticks[:2] == (["class 0", "class 1"] if count == 12 else ["class 0", "class 5"])
    mistakes = draw_mistakes(images, labels, probabilities, images, names)
    assert re.fullmatch(r"class \d+, taken for class \d+\n90.0 %", mistakes.axes[0].get_title())
    for name, figure in (("sheet", sheet), ("matrix", matrix), ("mistakes", mistakes)):
        save_figure(figure, tmp_path / f"{name}.png")


def test_settings_name_the_data(trained):
    folder, data, _ = trained
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["data"] == str(data)
    assert [start["after_epoch"] for start in settings["starts"]] == [0, 1]


def test_a_network_that_does_not_fit_its_targets_is_refused_before_it_begins(small_data, tmp_path, monkeypatch):
    """As where model.py was changed and make_targets() was not: here the decoder draws one channel too many."""
    conv = keras.layers.Conv2D
    monkeypatch.setattr(
        "model.layers.Conv2D", lambda filters, *more, **named: conv(2 if filters == 1 else filters, *more, **named)
    )
    with pytest.raises(InputError, match=r"the network's outputs are .*\(28, 28, 2\).* and their targets in data.py"):
        call("train.py", "--output-dir", tmp_path, "--data", small_data)
    assert not (tmp_path / "settings.json").exists()


@pytest.fixture(scope="module")
def crops_run(tmp_path_factory):
    """The folder of a run on few crops in colour, hardly trained, whose two classes have names."""
    folder = tmp_path_factory.mktemp("crops")
    arrays = crops()
    np.savez(folder / "data.npz", **arrays)
    flags = "--epochs", 1, "--limit", 8, "--batch-size", 8
    call("train.py", "--output-dir", folder, "--data", folder / "data.npz", *flags)
    return folder


def figures_of(script, *arguments, monkeypatch):
    """The figures that a script writes, by name."""
    figures, save = {}, sys.modules[script].save_figure

    def keep(figure, path):
        figures[path.name] = figure
        save(figure, path)

    monkeypatch.setattr(sys.modules[script], "save_figure", keep)
    call(f"{script}.py", *arguments)
    return figures


def test_what_the_pictures_of_a_run_show(crops_run, monkeypatch):
    """Its own classes by their names, each image above, or beside, the drawing that the network makes of it."""
    figures = figures_of("visualize", "--output-dir", crops_run, monkeypatch=monkeypatch)
    _, (images, labels), names = load_data(crops_run / "data.npz")
    outputs = run_network(load_network(crops_run)[0], images)
    drawings, answers = to_images(outputs["autoencoder"]), outputs["classification"].argmax(axis=1)
    assert names == ["temple", "flower"]
    ticks = figures["confusion_matrix.png"].axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == names

    def index_of(image):
        (found,) = np.flatnonzero((images == image).all(axis=(1, 2, 3)))
        return found

    shown = []
    for axes in figures["reconstructions.png"].axes:
        picture = axes.images[0].get_array()
        index = index_of(picture[:32])
        assert np.array_equal(picture[-32:], drawings[index])
        right, said = names[labels[index]], names[answers[index]]
        assert axes.get_title().startswith(f"{said}\n" if said == right else f"{said}\nis {right}\n")
        shown.append((index, labels[index]))
    assert len({*shown}) == len(shown) == 10  # no image twice
    assert [label for _, label in shown] == 5 * [0] + 5 * [1]
    wrong = np.flatnonzero(answers != labels)
    assert len(figures["mistakes.png"].axes) == min(len(wrong), 24) > 0
    for axes in figures["mistakes.png"].axes:
        picture = axes.images[0].get_array()
        index = index_of(picture[:, :32])
        assert np.array_equal(picture[:, -32:], drawings[index])
        assert axes.get_title().startswith(f"{names[labels[index]]}, taken for {names[answers[index]]}\n")


def test_a_picture_for_a_network_of_other_images(crops_run, tmp_path, monkeypatch, capsys):
    """It is scaled and keeps its colours; the figure shows it, what the network gets, and what it draws of that."""
    trained = load_trained(crops_run)
    page = Image.fromarray(tiles(20)[1][3]).resize((96, 64), Image.Resampling.NEAREST)
    page.save(tmp_path / "flower.png")
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    expected = np.asarray(page.resize((32, 32), Image.Resampling.LANCZOS))
    image, probabilities, drawing = run_on_picture(read_picture(tmp_path / "flower.png"), trained)
    assert np.array_equal(image, expected)
    outputs = run_network(trained.model, expected[np.newaxis])
    assert np.allclose(probabilities, outputs["classification"][0])
    assert np.array_equal(drawing, to_images(outputs["autoencoder"])[0])

    figures = {}
    monkeypatch.setattr(sys.modules["predict"], "save_figure", lambda figure, path: figures.update({path.name: figure}))
    with pytest.raises(SystemExit) as stop:
        call("predict.py", tmp_path / "flower.png", tmp_path / "text.png", "--output-dir", crops_run)
    assert stop.value.code == 1
    assert "text.png: not a picture" in capsys.readouterr().err
    shown = [axes.images[0].get_array() for axes in figures["predictions.png"].axes]
    assert [np.array_equal(*pair) for pair in zip(shown, (np.asarray(page), image, drawing))] == [True, True, True]
    name = ["temple", "flower"][probabilities.argmax()]
    assert figures["predictions.png"].axes[1].get_title().startswith(f"{name}, ")


def test_width_and_height_are_not_exchanged():
    wide = Image.fromarray(np.arange(2 * 3, dtype=np.uint8).reshape(2, 3) * 40)
    scaled = prepare_picture(wide, (8, 12, 1))
    assert scaled.shape == (8, 12)
    assert scaled[0, -1] < scaled[-1, 0]  # 80 at the upper right, 120 at the lower left


def test_drawings_keep_the_order_of_their_colours():
    assert to_images(np.array([[[[0.0, 0.4, 1.0]]]]))[0, 0, 0].tolist() == [255, 153, 0]


def test_a_third_outputs_curve_is_its_own():
    row = {f"{prefix}{name}": value for prefix, value in (("", 0.5), ("val_", 0.25)) for name in COLUMNS}
    row |= {"loss": 9, "val_loss": 8, "even_loss": 0.7, "val_even_loss": 0.6}
    weights = {"classification": 0.9, "autoencoder": 0.1, "even": 2}
    figure = draw_training({name: [value, value] for name, value in row.items()}, weights, "A run")
    axes = next(axes for axes in figure.axes if "Loss of even, weight 2" in axes.get_title())
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.7, 0.7], [0.6, 0.6]]
