"""Draw what a trained network has learnt, as PNGs in the output directory.

    python visualize.py

model.png                the layers and their shapes
reconstructions/00.png   the first test images, left the original, right the reconstruction
reconstructions.png      two examples of every digit, original above reconstruction
training.png             both losses and the accuracy over the epochs
confusion_matrix.png     which digit was taken for which
mistakes.png             the images it got wrong, most confident first

[A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98, and [R] its author's
repository, https://github.com/mim92/mnist, folder CNN_Autoencoder.
"""

import shutil

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

import run_folder
from cli import ArgumentParser, start, whole_number
from data import CLASS_NUM, is_mnist_test, load_mnist
from run_folder import whole_file

COUNT = 3  # [A] shows as many pairs
SCALE = 8  # a pixel of MNIST becomes 8x8 pixels of a pair
MISTAKES = 24  # as many fit on a sheet
GREYS = {"cmap": "gray", "vmin": 0, "vmax": 255}
PNG = {"Software": None}  # no version, no date: the same picture is the same file


def to_greys(reconstructions):
    """Turn the network's (n, 28, 28, 1), 0 for ink, into MNIST's greys: uint8 (n, 28, 28), 255 for ink.

    [R] has (255 - y) * 255 here, which overflows uint8 and draws full ink black.
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

    Pairs of an earlier drawing that are more than these are removed.
    """
    folder.mkdir(exist_ok=True)
    for path in run_folder.pairs(folder):
        if int(path.stem) >= len(images):
            path.unlink()
    for number, pair in enumerate(zip(images, reconstructions)):
        enlarged = np.kron(np.hstack(pair), np.ones((SCALE, SCALE), np.uint8))
        with whole_file(folder / f"{number:02d}.png") as temporary:
            matplotlib.image.imsave(temporary, np.dstack(3 * [enlarged]), metadata=PNG)  # a colour map would round


def draw_sheet(images, labels, reconstructions, path, noun="digit"):
    """Draw the first two examples of every digit, each original above its reconstruction.

    noun: what a label stands for, in this picture and others: "digit" for MNIST, else "class".
    """
    tiles = np.full((4, CLASS_NUM, 30, 30), 255, np.uint8)  # 28x28 and a white edge
    for digit in range(CLASS_NUM):
        for example, index in enumerate(np.flatnonzero(labels == digit)[:2]):
            tiles[2 * example, digit, 1:-1, 1:-1] = images[index]
            tiles[2 * example + 1, digit, 1:-1, 1:-1] = reconstructions[index]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(tiles.transpose(0, 2, 1, 3).reshape(4 * 30, -1), interpolation="nearest", **GREYS)
    axes.set_title(f"Two test images of every {noun} and what the autoencoder makes of them")
    axes.set_xticks(range(15, 300, 30), range(CLASS_NUM))
    axes.set_yticks(range(15, 120, 30), 2 * ["original", "reconstruction"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)


def draw_training(history, path):
    """Draw both losses and the accuracy over the epochs; history as train() returns it."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle("Training images: mean over each epoch, with Dropout. Test images: after each epoch.")
    titles = {
        "classification_loss": "Classification loss (cross-entropy)",
        "autoencoder_loss": "Autoencoder loss (mean squared error)",
        "classification_accuracy": "Accuracy",
    }
    epochs = [row["epoch"] for row in history]
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items()):
        axes.plot(epochs, [row[name] for row in history], "o-", markersize=4, label="training images")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], "s-", markersize=4, label="test images")
        axes.set(title=title, xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, path)


def draw_confusion_matrix(labels, predicted, path, noun="digit"):
    """Draw how often each digit was taken for which; the colour shows the errors alone."""
    counts = np.zeros((CLASS_NUM, CLASS_NUM), int)
    np.add.at(counts, (labels, predicted), 1)
    errors = counts - np.diag(np.diag(counts))
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(errors.max(), 1))
    for true, guess in np.argwhere(counts):
        color = "white" if errors[true, guess] > 0.6 * errors.max() else "black"
        axes.text(guess, true, counts[true, guess], ha="center", va="center", color=color)
    title = f"{errors.sum()} errors in {len(labels)} test images"
    axes.set(title=title, xlabel=f"predicted {noun}", ylabel=f"true {noun}")
    axes.set(xticks=range(CLASS_NUM), yticks=range(CLASS_NUM))
    figure.colorbar(picture, label="errors", shrink=0.8)
    save(figure, path)


def draw_mistakes(images, labels, probabilities, reconstructions, path):
    """Draw the wrongly classified images, most confident first, each beside its reconstruction."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    figure.suptitle(f"{len(wrong)} mistakes, the {len(shown)} most confident: original and reconstruction")
    for place, index in enumerate(shown):
        axes = figure.add_subplot(4, 6, place + 1, xticks=[], yticks=[])
        axes.imshow(np.hstack((images[index], reconstructions[index])), interpolation="nearest", **GREYS)
        axes.set_title(f"{labels[index]}, taken for {predicted[index]} ({confidence[index]:.1%})", fontsize=9)
    save(figure, path)


def main():
    parser = ArgumentParser(__doc__, data_help="the one that the run was trained on")
    pairs_help = f"pairs to write to {run_folder.PAIRS}/ (default: 3)"
    parser.add_argument("--count", type=whole_number(1), default=COUNT, help=pairs_help)
    args = parser.parse_args()
    folder = args.output_dir
    run_folder.check_network(folder)
    data_path = args.data or run_folder.data_of_run(folder)
    _, (images, labels) = load_mnist(data_path)
    history = run_folder.read_history(folder / run_folder.HISTORY)
    from model import predict  # slow, so after the checks

    model, (_, epoch) = run_folder.load_network(folder)
    probabilities, reconstructions = predict(model, images)
    reconstructions = to_greys(reconstructions)
    noun = "digit" if is_mnist_test(images, labels) else "class"

    if shutil.which("dot"):
        draw_model(model, folder / "model.png")
    else:
        print("No model.png without Graphviz: apt install graphviz, brew install graphviz, or https://graphviz.org")
    draw_pairs(images[: args.count], reconstructions, folder / run_folder.PAIRS)
    draw_sheet(images, labels, reconstructions, folder / "reconstructions.png", noun)
    draw_training(history[:epoch], folder / "training.png")  # it may be an epoch ahead of the network
    draw_confusion_matrix(labels, probabilities.argmax(axis=1), folder / "confusion_matrix.png", noun)
    draw_mistakes(images, labels, probabilities, reconstructions, folder / "mistakes.png")
    if trained_on := run_folder.other_data(folder, data_path):
        print(f"Drawn with {data_path}; this run was trained on {trained_on}")
    print(f"Wrote the pictures to {folder}; begin with {folder / 'reconstructions.png'}")


if __name__ == "__main__":
    start(main)
