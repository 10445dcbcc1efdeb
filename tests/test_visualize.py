"""What the pictures show, read off the figures before they become pixels."""

import io
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text

from data import to_images
from support import drawing
from support.drawing import picture_style, short
from visualize import draw_confusion_matrix, draw_mistakes, draw_sheet, draw_training, show

DIGITS = list("0123456789")
WEIGHTS = {"classification": 0.7, "autoencoder": 0.3}
NAMES = ("classification_loss", "autoencoder_loss", "classification_accuracy")


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_ink_does_not_overflow():
    greys = to_images(np.array([0, 0.5, 1], np.float32).reshape(3, 1, 1, 1))
    assert greys.ravel().tolist() == [255, 128, 0]


def test_training_shows_what_its_legend_says():
    """Every number of this history is another, so a curve can only be the one that its label names."""
    names = [*NAMES, *(f"val_{name}" for name in NAMES)]
    history = {name: [(k + 1) / (10 * epoch + 30) for epoch in (1, 2, 3)] for k, name in enumerate(names)}
    figure = draw_training(history, WEIGHTS, "A run", 0.9933)
    assert "0.7" in figure.axes[0].get_title()
    assert "0.3" in figure.axes[1].get_title()
    for axes, name in zip(figure.axes, NAMES, strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for label, key in (("training images", name), ("test images", f"val_{name}")):
            values = np.array(history[key])
            expected = 100 * (1 - values) if name == "classification_accuracy" else values
            assert np.allclose(lines[label].get_ydata(), expected), label
            assert list(lines[label].get_xdata()) == [1, 2, 3]
        in_legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert in_legend == list(lines)
        assert axes.get_yscale() == "log"
    assert list(lines["the article: 0.67 % wrong"].get_ydata()) == pytest.approx([0.67, 0.67])
    assert len(draw_training(history, WEIGHTS, "A run").axes[2].lines) == 2  # on other data there is no such line


def test_another_run_is_drawn_beside_it():
    """Its test images in a thin line, over all its epochs; nothing where it lacks an output."""
    history = {prefix + name: [0.5] for name in NAMES for prefix in ("", "val_")}
    other = {"val_classification_loss": [0.1, 0.2], "val_classification_accuracy": [0.9, 0.9]}
    figure = draw_training(history, WEIGHTS, "A run", beside=("outputs/other", other))
    assert "outputs/other" in figure.get_suptitle()
    losses, drawings, wrong = ({line.get_label(): line for line in axes.lines} for axes in figure.axes)
    assert list(losses["test images, the other"].get_ydata()) == pytest.approx([0.1, 0.2])
    assert list(wrong["test images, the other"].get_ydata()) == pytest.approx([10, 10])
    assert np.isnan(drawings["test images, the other"].get_ydata()).all()
    assert figure.axes[0].get_xlim() == (0.5, 2.5)


def test_confusion_matrix_has_the_truth_in_rows():
    """Five zeros taken for nines, one nine for a zero, and four twos right."""
    labels, predicted = np.array([0] * 5 + [9] + [2] * 4), np.array([9] * 5 + [0] + [2] * 4)
    axes = draw_confusion_matrix(labels, predicted, DIGITS).axes[0]
    found = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert found == {((9, 0), "5"), ((0, 9), "1"), ((2, 2), "4")}  # x is what it was taken for, y what it is
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    colours = axes.images[0].get_array()
    assert (colours[0, 9], colours[9, 0], colours[2, 2]) == (5, 1, 0)
    assert axes.yaxis_inverted()
    assert "6 errors in 10 test images" in axes.get_title()
    assert "diagonal is right" in axes.get_title()


def test_mistakes_are_the_surest_ones_first():
    """Thirty images, of which the even ones are wrong, the surer the later."""
    labels = np.arange(30) % 10
    answers = np.where(np.arange(30) % 2, labels, (labels + 1) % 10)
    probabilities = np.full((30, 10), 0.01)
    probabilities[np.arange(30), answers] = 0.5 + np.arange(30) / 100
    images = np.arange(30, dtype=np.uint8).repeat(784).reshape(30, 28, 28)
    figure = draw_mistakes(images, labels, probabilities, 100 + images, DIGITS)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert [int(picture[0, 0]) for picture in shown] == list(range(28, -1, -2))
    assert [int(picture[0, -1]) for picture in shown] == list(range(128, 99, -2))  # the reconstruction on the right
    assert figure.axes[0].get_title() == "8, taken for 9\n78.0 %"
    assert "15 mistakes, of which the 15" in figure.get_suptitle()


def test_a_probability_is_never_shown_as_100_percent():
    axes = Figure().subplots()
    for probability, text in ((0.5, "50.0 %"), (0.9985, "99.9 %"), (0.99951, "over 99.9 %")):
        show(axes, np.zeros((28, 28)), 7, probability)
        assert axes.get_title() == f"7\n{text}"


def test_a_long_name_is_cut_and_not_lost():
    assert (short("ankle boot"), short("Supercalifragilistic")) == ("ankle boot", "Supercalifrag…")


def test_sheet_shows_each_digit_above_its_reconstruction_under_its_answer(mnist):
    images, labels = mnist[1][0][:200], mnist[1][1][:200]
    probabilities = np.full((200, 10), 0.02)
    probabilities[np.arange(200), (labels + (labels == 4)) % 10] = 0.8  # each 4 is taken for a 5
    figure = draw_sheet(images, labels, probabilities, 255 - images, DIGITS)
    shown = [(label, np.flatnonzero(labels == label)[0]) for label in range(10)]
    for axes, (label, index) in zip(figure.axes, shown, strict=True):
        picture = axes.images[0].get_array()
        assert np.array_equal(picture[:28], images[index])
        assert np.array_equal(picture[-28:], 255 - images[index])
        assert axes.get_title() == ("5, is 4" if label == 4 else f"{label}") + "\n80.0 %"
        assert same_color(axes.title.get_color(), "tab:red" if label == 4 else "black")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["original", "reconstruction"]
    assert "every class" in figure.get_suptitle()
    assert "red: wrong" in figure.get_suptitle()


def letters_of(name):
    """The letters that an installed font has, as numbers."""
    return {*font_manager.get_font(font_manager.findfont(name, fallback_to_default=False)).get_charmap()}


def test_class_names_are_no_mathematics_and_their_letters_are_found(capsys, recwarn):
    """US$ and CA$ stay as they are; what no font here has is said in one line, and in no other."""
    names = ["US$", "CA$", "\u0e01\U0001f9ff"]  # a Thai letter and an amulet
    with picture_style():
        found = set.union(*map(letters_of, matplotlib.rcParams["font.family"]))
        figure = draw_confusion_matrix(np.array([0, 1, 2]), np.array([1, 0, 2]), names)
        figure.savefig(io.BytesIO())
        assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == names
        assert not any(text.get_parse_math() for text in figure.findobj(Text))
    said, missing = capsys.readouterr().out, "".join(letter for letter in names[2] if ord(letter) not in found)
    assert said.count("\n") == bool(missing)
    assert missing in said
    assert not recwarn.list
    assert matplotlib.rcParams["text.parse_math"]


def test_a_font_that_has_the_letters_comes_after_matplotlibs_own(monkeypatch, capsys):
    """Where it is installed, and only for the letters that Matplotlib's own font lacks."""
    only_there, own, pictures = chr(min(letters_of("STIXGeneral") - letters_of("DejaVu Sans"))), "cat", []
    for wide in ([], ["not installed"], ["STIXGeneral"]):
        monkeypatch.setattr(drawing, "WIDE_FONTS", wide)
        for text in (own, only_there):
            with picture_style():
                figure, file = Figure(), io.BytesIO()
                figure.text(0.5, 0.5, text)
                figure.savefig(file)
            pictures.append(file.getvalue())
        assert (f"No font here has {only_there}: " in capsys.readouterr().out) == (wide != ["STIXGeneral"])
    assert pictures[0] == pictures[2] == pictures[4]
    assert pictures[1] == pictures[3] != pictures[5]


def test_another_warning_than_that_of_a_missing_letter_is_heard():
    with pytest.warns(UserWarning, match="something else"), picture_style():
        warnings.warn("something else", stacklevel=1)


def test_a_users_own_settings_do_not_count_and_come_back():
    theirs = {"font.size": 50, "axes.facecolor": "red", "savefig.dpi": 10, "figure.autolayout": True}
    with matplotlib.rc_context(theirs):
        with picture_style():
            for name in theirs:
                assert matplotlib.rcParams[name] == matplotlib.rcParamsDefault[name], name
        assert {name: matplotlib.rcParams[name] for name in theirs} == theirs
