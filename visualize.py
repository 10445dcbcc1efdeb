"""Draw what a trained network has learnt, as PNGs in the output directory.

    python visualize.py
    python visualize.py --beside outputs/other     with the test curves of another run in training.png

model.png                the layers and their shapes
reconstructions/00.png   the first test images, left the original, right the reconstruction
reconstructions.png      an example of every class: the classifier's answer, original above reconstruction
training.png             both losses and the errors over the epochs
confusion_matrix.png     which class was taken for which
mistakes.png             the images it got wrong, most confident first
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH=1 leaves out
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import contextlib
import tempfile

import keras
import matplotlib.image
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from data import MNIST_SHA256, check_fit, load_data, to_images
from evaluate import ARTICLE_ACCURACY, run_network
from support import cli, run_folder
from support.data_file import name_classes
from support.drawing import PNG, percent, picture_style, save_figure, short
from support.errors import InputError
from support.files import atomic_write

COUNT = 3  # [A] shows three pairs
PAIR_HEIGHT = 224  # pixels, or a little less: a pixel of MNIST becomes 8x8 of them
GAP = 2  # of the images' pixels, between the two halves of a pair
SHEET = 10  # pictures on a sheet
MATRIX_CLASSES = 20  # with more, the cells of the matrix have no numbers
MISTAKES = 24  # pictures on a sheet, at most
TRAINING = {"color": "tab:blue", "marker": "o"}  # each colour has one meaning, here and in the other charts
TEST = {"color": "tab:orange", "marker": "s"}
BESIDE = {"color": "tab:green", "linewidth": 1}


def join(image, reconstruction, gap, axis):
    """Return an image and its reconstruction, both uint8, one after the other along an axis, a white gap between."""
    white = np.full_like(image.take(range(gap), axis), 255)
    return np.concatenate((image, white, reconstruction), axis)


def enlarge(image, scale):
    """Return an image, uint8, with every pixel as a square of scale x scale pixels."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def draw_reconstructions(images, reconstructions, folder):
    """Write reconstructions/00.png, 01.png, ... in a run's folder: left the original, right the reconstruction.

    images, reconstructions: as load_data() gives them. What an earlier drawing left beyond these is removed.
    """
    (folder / run_folder.PAIRS).parent.mkdir(exist_ok=True)
    for path in folder.glob(run_folder.PAIRS):
        path.unlink()
    for number, (image, reconstruction) in enumerate(zip(images, reconstructions)):
        pair = enlarge(join(image, reconstruction, GAP, axis=1), max(1, PAIR_HEIGHT // len(image)))
        pair = pair if pair.ndim == 3 else np.dstack(3 * [pair])  # a colour map would round
        with atomic_write((folder / run_folder.PAIRS).with_name(f"{number:02d}.png"), folder) as temporary:
            matplotlib.image.imsave(temporary, pair, metadata=PNG)


def draw_model(model):
    """Draw the layers and their shapes; returns the bytes of a PNG, or None if Graphviz is missing or fails."""
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(None):  # pydot prints what dot said
        path = Path(work) / "model.png"
        for splines in ("ortho", "line"):  # some networks Graphviz cannot draw with right angles
            try:
                keras.utils.plot_model(model, path, show_shapes=True, show_layer_names=True, dpi=80, splines=splines)
                return path.read_bytes()
            except ImportError as error:  # no pydot, or no Graphviz
                why = f"is missing ({error}): apt install graphviz"
            except AssertionError:  # pydot's, when dot fails
                why = "fails: try another version of it"
    print(f"No model.png, Graphviz {why}, or https://graphviz.org")


def show(axes, picture, answer, probability, **title):
    """Show a picture, grey or of colours, without ticks and frame, under an answer and its probability."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(f"{answer}\n{percent(probability)}", **title)


def draw_sheet(images, labels, probabilities, reconstructions, class_names):
    """Draw test images of every class, each above its reconstruction, under what the classifier says.

    images, reconstructions: as load_data() gives them. probabilities: (n, classes). There are ten places: one for each
    of ten classes, several for each of fewer; of more classes the first ten are shown. Returns the figure.
    """
    classes, height = class_names[:SHEET], images.shape[1]
    of_class = SHEET // len(classes)
    which = "every class" if len(classes) == len(class_names) else f"{len(classes)} of {len(class_names)} classes"
    how_many = "the first test image" if of_class == 1 else f"the first {of_class} test images"
    figure = Figure(figsize=(6.4, 7), layout="constrained")
    figure.suptitle(f"Both tasks on {how_many} of {which}:\nanswer (red: wrong), probability, drawing")
    figure.get_layout_engine().set(w_pad=0.02, wspace=0, hspace=0)
    size = 12 if max(map(len, class_names)) < 8 else 9
    places = figure.subplots(2, SHEET // 2).ravel()
    chosen = [index for label in range(len(classes)) for index in np.flatnonzero(labels == label)[:of_class]]
    for axes in places[len(chosen) :]:
        axes.remove()
    for axes, index in zip(places, chosen):
        answer, picture = probabilities[index].argmax(), join(images[index], reconstructions[index], 2, axis=0)
        said, color = short(class_names[answer]), "black"
        if answer != labels[index]:
            truth = short(class_names[labels[index]])
            said = f"{said}, is {truth}" if len(said + truth) < 6 else f"{said}\nis {truth}"
            color = "tab:red"
        show(axes, picture, said, probabilities[index].max(), fontsize=size, color=color)
        if axes in places[:: SHEET // 2]:
            middles = [height / 2, 3 * height / 2 + 2]
            axes.set_yticks(middles, ["original", "reconstruction"], rotation=90, va="center", fontsize=size)
            axes.tick_params(length=0)
    return figure


def draw_training(history, loss_weights, run, article_accuracy=None, beside=None):
    """Draw the losses and the share of errors over the epochs, on logarithmic axes.

    history: lists by name, with a value an epoch, as in the history of what train() returns. loss_weights: a dict by
    output, and run: what to call it, for the titles. article_accuracy: from 0 to 1, where it belongs to these data.
    beside: the name of another run and its history, whose test images are drawn as thin lines. Returns the figure.
    """
    losses = {"classification": "Cross-entropy", "autoencoder": "Mean squared error"}
    panels = {
        f"{name}_loss": f"{losses.get(name, f'Loss of {name}')}, weight {weight:g}"
        for name, weight in loss_weights.items()
    } | {"classification_accuracy": "Wrong answers in percent"}
    figure = Figure(figsize=(4 * len(panels), 4.9), layout="constrained")
    what = "Training images: mean over each epoch, with Dropout. Test images: after each epoch."
    other = f"\nThe other run: {beside[0]}" if beside else ""
    figure.suptitle(f"{run}\n{what}{other}", fontsize=14)
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items()):
        lines = [(history, "", "training images", TRAINING), (history, "val_", "test images", TEST)]
        if beside:
            lines.append((beside[1], "val_", "test images, the other", BESIDE))
        for values_of, prefix, label, style in lines:
            epochs = range(1, 1 + len(values_of["val_classification_accuracy"]))
            values = np.array(values_of.get(prefix + name, len(epochs) * [np.nan]))  # the other may lack this output
            values = 100 * (1 - values) if name == "classification_accuracy" else values
            values[~((values > 1e-30) & (values < 1e30))] = np.nan  # no errors at all, say, have no logarithm
            axes.plot(epochs, values, markersize=5, label=label, **style)
        if all(np.isnan(line.get_ydata()).all() for line in axes.lines):
            axes.set_ylim(0.1, 1)
            axes.text(0.5, 0.5, "none in any epoch", transform=axes.transAxes, ha="center", fontsize=13)
        if name == "classification_accuracy" and article_accuracy:
            label = f"the article: {100 * (1 - article_accuracy):.2f} % wrong"
            axes.axhline(100 * (1 - article_accuracy), color="black", linestyle="--", label=label)
        axes.set(xlim=(0.5, max(len(line.get_xdata()) for line in axes.lines[: len(lines)]) + 0.5), yscale="log")
        axes.set_title(title, fontsize=14)
        axes.set_xlabel("epoch", fontsize=13)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5)), major_formatter="{x:g}", minor_formatter="")
        axes.tick_params(labelsize=12, which="both")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=12)
    return figure


def draw_confusion_matrix(labels, predicted, class_names):
    """Draw how often each class was taken for which; the colour shows the errors alone. Returns the figure.

    With more than twenty classes the cells have no numbers, and the colour bar says what they mean.
    """
    count = len(class_names)
    counts = np.bincount(count * labels + predicted, minlength=count**2).reshape(count, count)
    errors = counts - np.diag(np.diag(counts))
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(errors.max(), 1))
    title = f"{errors.sum()} errors in {len(labels)} test images\nThe diagonal is right, red is wrong"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if count <= MATRIX_CLASSES:
        for true, guess in np.argwhere(counts):
            color = "white" if errors[true, guess] > 0.6 * errors.max() else "black"
            axes.text(guess, true, counts[true, guess], ha="center", va="center", color=color)
        rotation = 0 if max(map(len, class_names)) < 4 else 90
        axes.set_xticks(range(count), [short(name) for name in class_names], rotation=rotation)
        axes.set_yticks(range(count), [short(name) for name in class_names])
    else:
        axes.plot([-0.5, count - 0.5], [-0.5, count - 0.5], color="tab:gray", linewidth=1)  # the diagonal
        every = [label for label in range(count) if label % 5 == 0]
        axes.set_xticks(every, [short(class_names[label]) for label in every], rotation=90)
        axes.set_yticks(every, [short(class_names[label]) for label in every])
    axes.hlines(np.arange(count - 1) + 0.5, -0.5, count - 0.5, color="0.9", linewidth=0.5)
    axes.vlines(np.arange(count - 1) + 0.5, -0.5, count - 0.5, color="0.9", linewidth=0.5)
    figure.colorbar(picture, label="errors", shrink=0.8)
    return figure


def draw_mistakes(images, labels, probabilities, reconstructions, class_names):
    """Draw the wrongly classified images, most confident first, each beside its reconstruction. Returns the figure."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    figure = Figure(figsize=(12, 7), layout="constrained")
    title = f"{len(wrong)} mistakes, of which the {len(shown)} that the network was surest of: original, reconstruction"
    figure.suptitle(
        f"{title}\nAbove each: what it is, what it was taken for, the probability of that wrong answer", fontsize=14
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    size = 13 if max(map(len, class_names)) < 4 else 8
    for place, index in enumerate(shown):
        picture = join(images[index], reconstructions[index], 1, axis=1)
        answer = f"{short(class_names[labels[index]])}, taken for {short(class_names[predicted[index]])}"
        show(figure.add_subplot(4, 6, place + 1), picture, answer, confidence[index], fontsize=size, pad=3)
    return figure


def columns(rows):
    """Return the rows of a history.csv, dicts, as lists by name."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def read_other(folder):
    """Return the name, in letters that can be shown, and the history of another run; InputError when it has none."""
    rows = run_folder.read_history(folder)
    if not rows:
        run_folder.read_settings(folder)  # which says so where there is no run at all
        raise InputError(f"no epoch of the run in {folder} has ended yet")
    return str(folder).encode(errors="backslashreplace").decode(), columns(rows)


def in_words(history):
    """Return what a history says of the test images after its last epoch; of the losses those that it has."""
    words = {
        "epoch": "epoch {:.0f}",
        "val_classification_accuracy": "test accuracy {:.2%}",
        "val_classification_loss": "cross-entropy {:.4f}",
        "val_autoencoder_loss": "squared error {:.5f}",
    }
    return ", ".join(text.format(history[name][-1]) for name, text in words.items() if name in history)


def main(argv: list[str] | None = None) -> None:
    parser = cli.ArgumentParser(__doc__, data_help="the one that the run was trained on")
    parser.add_argument("--count", type=cli.number(int, 1, 100), default=COUNT, help="pairs to draw (default: 3)")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another run, to be drawn into training.png, too")
    args = parser.parse_args(argv)
    folder = args.output_dir
    path = args.data or run_folder.data_of_run(folder)
    model, stamp = run_folder.load_network(folder)
    run_folder.check_same_run(folder, stamp)
    rows = run_folder.read_history(folder, stamp["epoch"], model.output_names)  # the file may be an epoch ahead
    history = columns(rows)
    _, (images, labels), class_names = load_data(path)
    beside = read_other(args.beside) if args.beside else None
    article = ARTICLE_ACCURACY if stamp["data_sha256"] == MNIST_SHA256 else None
    check_fit(model, images, labels)
    outputs = run_network(model, images)
    probabilities, reconstructions = outputs["classification"], to_images(outputs["autoencoder"])
    class_names = name_classes(class_names, probabilities.shape[1])
    run = "Seed {seed}, batches of {batch_size}, {precision}".format(**stamp)

    weights = dict(zip(model.output_names, stamp["loss_weights"]))
    sheet = images, labels, probabilities, reconstructions, class_names
    diagram = draw_model(model)
    with picture_style():
        figures = {
            "reconstructions.png": draw_sheet(*sheet),
            "training.png": draw_training(history, weights, run, article, beside),
            "confusion_matrix.png": draw_confusion_matrix(labels, probabilities.argmax(axis=1), class_names),
            "mistakes.png": draw_mistakes(*sheet),
        }
        with run_folder.writing(folder, stamp):
            if diagram:
                with atomic_write(folder / "model.png") as temporary:
                    temporary.write_bytes(diagram)
            draw_reconstructions(images[: args.count], reconstructions, folder)
            for name, figure in figures.items():
                save_figure(figure, folder / name)
    for name, of_run in [(folder, history), beside] if beside else []:
        print(f"{name}: {in_words(of_run)}")
    print(f"Wrote the pictures to {folder}; begin with {folder / 'reconstructions.png'}")


if __name__ == "__main__":
    cli.start(main)
