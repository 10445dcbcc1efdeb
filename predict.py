"""Ask a trained network about pictures of your own: photos, scans, drawings.

    python predict.py my_digit.png photo.jpg

It asks the network in outputs, or the recorded one while there is none; --output-dir names another. It says the answer
for each file, and writes predictions.png beside the network: the picture, what the network gets of it, and how it draws
that again. For a network trained on MNIST a picture is prepared as MNIST was; for others it is scaled to the size of
their images.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH=1 leaves out
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from data import MNIST_SHA256, load_data, to_images
from evaluate import run_network
from support import cli, run_folder
from support.data_file import name_classes
from support.drawing import percent, picture_style, save_figure
from support.errors import InputError
from support.pictures import WORKING_SIZE, prepare_digit, prepare_picture, read_picture

RECORDED = cli.ROOT / "outputs" / "reference"
SURE = 0.9  # below it the second guess is said too
ROWS = 20  # of pictures in predictions.png, at most


class Trained(NamedTuple):
    """A run's network, and what it takes to show it a picture."""

    model: keras.Model
    stamp: dict  # what model.keras says of its epoch and run
    class_names: list[str]
    prepare: Callable[[Image.Image], np.ndarray]  # makes of a picture the uint8 image that the network is to get


def choose_run() -> Path:
    """Return the folder of the network to ask if none is named: outputs, or the recorded run while there is none."""
    if (cli.OUTPUT_DIR / run_folder.MODEL).exists():
        return cli.OUTPUT_DIR
    return RECORDED.relative_to(Path.cwd()) if RECORDED.is_relative_to(Path.cwd()) else RECORDED


def load_trained(folder: Path | str) -> Trained:
    """Load a run's network, and what prepares pictures for it. Raises InputError when there is no network."""
    model, stamp = run_folder.load_network(folder)
    run_folder.check_same_run(folder, stamp)
    try:
        class_names = load_data(run_folder.data_of_run(folder))[2]
    except InputError:  # the data need not be here
        class_names = []
        if stamp["data_sha256"] != MNIST_SHA256:  # whose names are their numbers
            print("The data of this run are not here, so its classes go by their numbers", flush=True)
    class_names = name_classes(class_names, model.get_layer("classification").output.shape[-1])
    scale = functools.partial(prepare_picture, input_shape=model.input_shape[1:])
    prepare = prepare_digit if stamp["data_sha256"] == MNIST_SHA256 else scale
    trained = Trained(model, stamp, class_names, prepare)
    run_on_picture(Image.radial_gradient("L"), trained)  # a network's first answer takes longer than the next
    return trained


def run_on_picture(picture: Image.Image, trained: Trained) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Show a Pillow picture to a network of load_trained().

    Returns the image that it gets, the probabilities of the classes, and how it draws the image again, both images as
    load_data() gives them. Raises InputError for an empty page.
    """
    image = trained.prepare(picture)
    outputs = run_network(trained.model, image[np.newaxis])
    return image, outputs["classification"][0], to_images(outputs["autoencoder"])[0]


def answer_in_words(probabilities: np.ndarray, class_names: list[str]) -> str:
    """Return the answer for a picture: class and probability, and the second guess if it is not sure."""
    first, second = np.argsort(-probabilities)[:2]
    text = f"{class_names[first]}, {percent(probabilities[first])}"
    if probabilities[first] >= SURE:
        return text
    return f"{text}, or {class_names[second]}, {percent(probabilities[second])}"


def draw_predictions(rows: list[tuple]) -> Figure:
    """Draw rows of (picture, image, drawing, answer): a picture as it was given, and what was made of it.

    Returns the figure.
    """
    figure = Figure(figsize=(7, 0.6 + 2.2 * len(rows)), layout="constrained")
    figure.suptitle("The picture, what the network gets of it, how it draws that again")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for places, (*shown, answer) in zip(axes, rows):
        for place, image, title in zip(places, shown, ("", answer, "")):
            place.imshow(image, cmap="gray", vmin=0, vmax=255)
            place.set(xticks=[], yticks=[], title=title)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=choose_run())
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="a file that Pillow can read")
    args = parser.parse_args(argv)
    folder = args.output_dir
    trained = load_trained(folder)
    print(f"The network of {folder}:", flush=True)
    rows, answered = [], 0
    for path in args.pictures:
        name = " ".join(str(path).split())
        try:
            picture = read_picture(path)
            image, probabilities, drawing = run_on_picture(picture, trained)
        except InputError as error:
            print(f"{parser.prog}: {name}: {error}", file=sys.stderr)
            continue
        answered += 1
        answer = answer_in_words(probabilities, trained.class_names)
        print(f"{name}: {answer}", flush=True)
        if len(rows) < ROWS:
            picture.thumbnail((WORKING_SIZE, WORKING_SIZE))  # a photo takes up much memory
            rows.append((picture, image, drawing, answer))
    if rows:
        with picture_style():
            figure = draw_predictions(rows)
            with run_folder.writing(folder, trained.stamp):
                save_figure(figure, folder / run_folder.PREDICTIONS)
        which = f", the first {len(rows)} of {answered} pictures" if answered > len(rows) else ""
        print(f"Wrote {folder / run_folder.PREDICTIONS}{which}")
    if answered < len(args.pictures):
        sys.exit(1)


if __name__ == "__main__":
    cli.start(main)
