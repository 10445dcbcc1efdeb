"""Draw what a trained network has learnt, as PNGs in the output directory.

    python visualize.py

model.png                the layers and their shapes
reconstructions/00.png   the first test images, left the original, right the reconstruction
reconstructions.png      two examples of every digit: the classifier's answer, original above reconstruction
training.png             both losses and the errors over the epochs
confusion_matrix.png     which digit was taken for which
mistakes.png             the images it got wrong, most confident first

[A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98, and [R] its author's
repository, https://github.com/mim92/mnist, folder CNN_Autoencoder.
"""

import shutil

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import run_folder
from cli import ArgumentParser, start, whole_number
from data import CLASS_NUM, IMAGE_SHAPE, is_mnist_test, load_mnist
from evaluate import ARTICLE_ACCURACY
from run_folder import whole_file

COUNT = 3  # [A] shows as many pairs
SCALE = 8  # a pixel of MNIST becomes 8x8 pixels of a pair
GAP = 2  # of MNIST's pixels, between the two halves of a pair
MISTAKES = 24  # as many fit on a sheet
GREYS = {"cmap": "gray", "vmin": 0, "vmax": 255}
PNG = {"Software": None}  # no version, no date: the same picture is the same file


def to_greys(reconstructions):
    """Turn the network's (n, 28, 28, 1), 0 for ink, into MNIST's greys: uint8 (n, 28, 28), 255 for ink.

    [R] has (255 - y) * 255 here, in float32; its cast to uint8 overflows and draws full ink black.
    """
    return np.rint(255 * (1 - reconstructions[..., 0])).clip(0, 255).astype(np.uint8)


def save(figure, path):
    """Write a figure as PNG."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata=PNG)


def draw_model(model, path):
    """Draw the layers with their shapes; needs the program dot, of Graphviz."""
    import keras

    with whole_file(path) as temporary:
        keras.utils.plot_model(model, temporary, show_shapes=True, show_layer_names=True, dpi=80)


def draw_pairs(images, reconstructions, folder):
    """Write 00.png, 01.png, ...: left the original, right the reconstruction, of two uint8 arrays (n, 28, 28).

    Between the two is a white gap. Pairs of an earlier drawing that are more than these are removed.
    """
    folder.mkdir(exist_ok=True)
    for path in run_folder.pairs(folder):
        if int(path.stem) >= len(images):
            path.unlink()
    gap = np.full((IMAGE_SHAPE[0], GAP), 255, np.uint8)
    for number, (image, reconstruction) in enumerate(zip(images, reconstructions)):
        enlarged = np.kron(np.hstack((image, gap, reconstruction)), np.ones((SCALE, SCALE), np.uint8))
        with whole_file(folder / f"{number:02d}.png") as temporary:
            matplotlib.image.imsave(temporary, np.dstack(3 * [enlarged]), metadata=PNG)  # a colour map would round


def percent(probability):
    """Return a probability as text; what would be rounded to 100 % is called "over 99.9 %"."""
    return "over 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"


def draw_sheet(images, labels, probabilities, reconstructions, noun="digit"):
    """Draw the first two test images of every digit, each above its reconstruction, under what the classifier says.

    images, reconstructions: uint8 (n, 28, 28). probabilities: (n, 10). noun: what a label stands for,
    in this picture and the others, "digit" for MNIST, else "class". Returns the figure.
    """
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    figure.suptitle(f"Both tasks on two test images of every {noun}: answer (red: wrong), probability, drawing")
    figure.get_layout_engine().set(w_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(2, CLASS_NUM)
    gap = np.full((2, IMAGE_SHAPE[1]), 255, np.uint8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    for label in range(CLASS_NUM):
        for axes, index in zip(grid[:, label], np.flatnonzero(labels == label)):
            pair = np.vstack((images[index], gap, reconstructions[index]))
            axes.imshow(pair, interpolation="nearest", **GREYS)
            answer, probability = probabilities[index].argmax(), probabilities[index].max()
            color = "black" if answer == label else "tab:red"
            axes.set_title(f"{answer}\n{percent(probability)}", fontsize=10, color=color)
    for axes in grid[:, 0]:
        axes.set_yticks([14, 44], ["original", "reconstruction"], rotation=90, va="center")
    return figure


def draw_training(history, loss_weights=None, article_accuracy=None):
    """Draw both losses and the share of errors over the epochs, on logarithmic axes.

    history: as train() returns it. loss_weights: of classification and autoencoder, for the titles.
    article_accuracy: from 0 to 1, where it belongs to these data. Returns the figure.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    figure.suptitle("Training images: mean over each epoch, with Dropout. Test images: after each epoch.", fontsize=15)
    weights = [""] * 2 if loss_weights is None else [f", weight {weight:g}" for weight in loss_weights]
    panels = {
        "classification_loss": f"Cross-entropy{weights[0]}",
        "autoencoder_loss": f"Mean squared error{weights[1]}",
        "classification_accuracy": "Wrong answers in percent",
    }
    epochs = [row["epoch"] for row in history]
    for axes, (name, title) in zip(figure.subplots(1, 3), panels.items()):
        for key, label, style in ((name, "training images", "o-"), (f"val_{name}", "test images", "s-")):
            values = np.array([row[key] for row in history])
            if name == "classification_accuracy":
                values = np.where(values < 1, 100 * (1 - values), np.nan)  # no errors have no place on such an axis
            axes.plot(epochs, values, style, markersize=5, label=label)
        if name == "classification_accuracy" and article_accuracy:
            label = f"the article: {100 * article_accuracy:.2f} % right"
            axes.axhline(100 * (1 - article_accuracy), color="black", linestyle="--", label=label)
        axes.set(xlim=(0.5, len(epochs) + 0.5), yscale="log")
        axes.set_title(title, fontsize=14)
        axes.set_xlabel("epoch", fontsize=13)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5)), major_formatter="{x:g}", minor_formatter="")
        axes.tick_params(labelsize=12, which="both")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=12)
    return figure


def draw_confusion_matrix(labels, predicted, noun="digit"):
    """Draw how often each digit was taken for which; the colour shows the errors alone. Returns the figure."""
    counts = np.zeros((CLASS_NUM, CLASS_NUM), int)
    np.add.at(counts, (labels, predicted), 1)
    errors = counts - np.diag(np.diag(counts))
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(errors.max(), 1))
    for true, guess in np.argwhere(counts):
        color = "white" if errors[true, guess] > 0.6 * errors.max() else "black"
        axes.text(guess, true, counts[true, guess], ha="center", va="center", color=color)
    title = f"{errors.sum()} errors in {len(labels)} test images\nThe diagonal is right, red is wrong"
    axes.set(title=title, xlabel=f"predicted {noun}", ylabel=f"true {noun}")
    axes.set(xticks=range(CLASS_NUM), yticks=range(CLASS_NUM))
    figure.colorbar(picture, label="errors", shrink=0.8)
    return figure


def draw_mistakes(images, labels, probabilities, reconstructions):
    """Draw the wrongly classified images, most confident first, each beside its reconstruction. Returns the figure."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    figure = Figure(figsize=(12, 7), layout="constrained")
    title = f"{len(wrong)} mistakes, of which the {len(shown)} that the network was surest of: original, reconstruction"
    figure.suptitle(f"{title}\nAbove each: what it is, what it was taken for, the network's probability", fontsize=14)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    gap = np.full((IMAGE_SHAPE[0], 1), 255, np.uint8)
    for place, index in enumerate(shown):
        axes = figure.add_subplot(4, 6, place + 1, xticks=[], yticks=[])
        pair = np.hstack((images[index], gap, reconstructions[index]))
        axes.imshow(pair, interpolation="nearest", **GREYS)
        axes.spines[:].set_visible(False)
        text = f"{labels[index]}, taken for {predicted[index]}\n{percent(confidence[index])}"
        axes.set_title(text, fontsize=13, pad=3)
    return figure


def main(argv=None):
    parser = ArgumentParser(__doc__, data_help="the one that the run was trained on")
    pairs_help = f"pairs to write to {run_folder.PAIRS}/ (default: 3)"
    parser.add_argument("--count", type=whole_number(1), default=COUNT, help=pairs_help)
    args = parser.parse_args(argv)
    folder = args.output_dir
    run_folder.check_network(folder)
    data_path = args.data or run_folder.data_of_run(folder)
    _, (images, labels) = load_mnist(data_path)
    history = run_folder.read_history(folder / run_folder.HISTORY)
    from model import predict  # slow, so after the checks

    model, (_, epoch) = run_folder.load_network(folder)
    probabilities, reconstructions = predict(model, images)
    reconstructions = to_greys(reconstructions)
    noun, article = ("digit", ARTICLE_ACCURACY) if is_mnist_test(images, labels) else ("class", None)
    settings = run_folder.read_settings(folder) if (folder / run_folder.SETTINGS).exists() else {}

    if shutil.which("dot"):
        draw_model(model, folder / "model.png")
    else:
        print("No model.png without Graphviz: apt install graphviz, brew install graphviz, or https://graphviz.org")
    draw_pairs(images[: args.count], reconstructions, folder / run_folder.PAIRS)
    sheet = draw_sheet(images, labels, probabilities, reconstructions, noun)
    save(sheet, folder / "reconstructions.png")
    history = history[:epoch]  # on disk it may be an epoch ahead of the network
    save(draw_training(history, settings.get("loss_weights"), article), folder / "training.png")
    save(draw_confusion_matrix(labels, probabilities.argmax(axis=1), noun), folder / "confusion_matrix.png")
    save(draw_mistakes(images, labels, probabilities, reconstructions), folder / "mistakes.png")
    if trained_on := run_folder.other_data(folder, data_path):
        print(f"Drawn with {data_path}; this run was trained on {trained_on}")
    print(f"Wrote the pictures to {folder}; begin with {folder / 'reconstructions.png'}")


if __name__ == "__main__":
    start(main)
