"""Draw what a trained network has learnt, as PNGs in the output directory.

    python visualize.py

model.png                the layers and their shapes
reconstructions/00.png   the first test images, left the original, right the reconstruction
reconstructions.png      two examples of every digit, original above reconstruction
training.png             both losses and the accuracy over the epochs
confusion_matrix.png     which digit was taken for which
mistakes.png             the digits it got wrong, most confident first
"""

import shutil

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

import data
from train import read_history

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
    with data.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata=PNG)


def draw_model(model, path):
    """Draw the layers with their shapes; needs the program dot, of Graphviz."""
    import keras

    with data.whole_file(path) as temporary:
        keras.utils.plot_model(model, temporary, show_shapes=True, show_layer_names=True, dpi=80)


def draw_pairs(images, reconstructions, folder):
    """Write 00.png, 01.png, ...: left the original, right the reconstruction, of two uint8 arrays (n, 28, 28)."""
    folder.mkdir(exist_ok=True)
    for number, pair in enumerate(zip(images, reconstructions)):
        enlarged = np.kron(np.hstack(pair), np.ones((SCALE, SCALE), np.uint8))
        with data.whole_file(folder / f"{number:02d}.png") as temporary:
            matplotlib.image.imsave(temporary, np.dstack(3 * [enlarged]), metadata=PNG)  # a colour map would round


def draw_sheet(images, labels, reconstructions, path):
    """Draw the first two examples of every digit, each original above its reconstruction."""
    tiles = np.full((4, data.CLASS_NUM, 30, 30), 255, np.uint8)  # 28x28 and a white edge
    for digit in range(data.CLASS_NUM):
        for example, index in enumerate(np.flatnonzero(labels == digit)[:2]):
            tiles[2 * example, digit, 1:-1, 1:-1] = images[index]
            tiles[2 * example + 1, digit, 1:-1, 1:-1] = reconstructions[index]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(tiles.transpose(0, 2, 1, 3).reshape(4 * 30, -1), interpolation="nearest", **GREYS)
    axes.set_title("Digits of the test set and what the autoencoder makes of them")
    axes.set_xticks(range(15, 300, 30), range(data.CLASS_NUM))
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


def draw_confusion_matrix(labels, predicted, path):
    """Draw how often each digit was taken for which; the colour shows the errors alone."""
    counts = np.zeros((data.CLASS_NUM, data.CLASS_NUM), int)
    np.add.at(counts, (labels, predicted), 1)
    errors = counts - np.diag(np.diag(counts))
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(errors.max(), 1))
    for true, guess in np.argwhere(counts):
        color = "white" if errors[true, guess] > 0.6 * errors.max() else "black"
        axes.text(guess, true, counts[true, guess], ha="center", va="center", color=color)
    axes.set(title=f"{errors.sum()} errors in {len(labels)} test images", xlabel="predicted digit", ylabel="true digit")
    axes.set(xticks=range(data.CLASS_NUM), yticks=range(data.CLASS_NUM))
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
    parser = data.ArgumentParser(__doc__)
    parser.add_argument(
        "--count", type=data.whole_number(1), default=COUNT, help="pairs to write to reconstructions/ (default: 3)"
    )
    args = parser.parse_args()
    _, (images, labels) = data.load_mnist(args.data)
    from model import load_model, predict  # slow, so after the checks

    folder = args.output_dir
    model = load_model(folder / "model.keras")
    history = read_history(folder / "history.csv")
    probabilities, reconstructions = predict(model, images)
    reconstructions = to_greys(reconstructions)

    if shutil.which("dot"):
        draw_model(model, folder / "model.png")
    else:
        print("No model.png without Graphviz: apt install graphviz, brew install graphviz, or https://graphviz.org")
    draw_pairs(images[: args.count], reconstructions, folder / "reconstructions")
    draw_sheet(images, labels, reconstructions, folder / "reconstructions.png")
    draw_training(history, folder / "training.png")
    draw_confusion_matrix(labels, probabilities.argmax(axis=1), folder / "confusion_matrix.png")
    draw_mistakes(images, labels, probabilities, reconstructions, folder / "mistakes.png")
    print(f"Wrote the pictures to {folder}; begin with {folder / 'reconstructions.png'}")


if __name__ == "__main__":
    data.run(main)
