"""Ask a trained network about pictures of your own: photos, scans, drawings.

    python predict.py my_digit.png photo.jpg
    python predict.py my_digit.png --output-dir outputs/reference      with the recorded network

Says the answer for each file, and writes predictions.png to the output directory: the picture, what the
network gets of it, and how it draws that again. For a network trained on MNIST a picture is prepared as
MNIST was; for others it is scaled to the size of their images.
"""

import functools
import sys
import warnings
from pathlib import Path

sys.path.insert(0, __file__.removesuffix("predict.py"))  # which python -P and python -I leave out
import cli  # first, for it loads Keras without TensorFlow's greeting

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

import run_folder
from data import MNIST_SHA256, InputError, load_data, name_classes
from model import predict
from visualize import enlarge, percent, save_figure, to_images

BOX, FIELD = 20, 28  # MNIST's digits fill a box of 20x20 in a field of 28x28
WORKING_SIZE = 400  # pixels; a larger picture is scaled down to it first, which also takes away its noise
FAINTEST = 24  # of 255: a page whose ink differs less from its paper counts as empty
SURE = 0.9  # below it the second guess is said too
ROWS = 20  # as many pictures are drawn in predictions.png


def read_picture(path):
    """Read a picture with Pillow; returns it upright, 8 bits, its transparent parts white, in mode L or RGB.

    Raises InputError when it is no picture, has several frames, or more than 90 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path)
        if getattr(picture, "n_frames", 1) > 1:
            raise InputError("has several frames: save one of them as a picture")
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "IF":  # 16 bits and more: its brightest point becomes white
            values = np.asarray(picture, np.float64)
            picture = Image.fromarray((255 * values / max(values.max(), 1e-9)).clip(0, 255).astype(np.uint8))
        if picture.mode not in ("1", "L", "RGB", "CMYK", "YCbCr"):
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except FileNotFoundError:
        raise InputError("no such file") from None
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError("too large, over 90 megapixels: scale it down") from None
    except Exception as error:  # a strange or damaged file can fail in a dozen ways
        raise InputError(f"not a picture that can be read ({error})") from None


def find_ink(grey):
    """Return how much ink there is at each point of a grey picture (height, width): float from 0 to 1.

    The paper may be light or dark, and its light may fall off to one side: a plane through the edge of the picture is
    taken for it. Ink is what differs most from that, to one side. Raises InputError for an empty page.
    """
    height, width = grey.shape
    y, x = np.mgrid[:height, :width]
    edge = np.minimum.reduce([y, x, height - 1 - y, width - 1 - x]) < max(1, min(height, width) // 20)
    plane = np.stack([np.ones_like(x), x, y], axis=-1).astype(np.float64)
    values, found = grey[edge].astype(np.float64), np.linalg.lstsq(plane[edge], grey[edge], rcond=None)[0]
    near = np.abs(values - plane[edge] @ found) < 2 * np.std(values - plane[edge] @ found) + 1
    found = np.linalg.lstsq(plane[edge][near], values[near], rcond=None)[0]  # again, without ink at the edge
    difference = grey - plane @ found
    ink = difference if difference.max() > -difference.min() else -difference
    if ink.max() < FAINTEST:
        raise InputError("looks like an empty page")
    return ((ink / ink.max() - 0.3) / 0.5).clip(0, 1)  # a soft threshold: below it is the paper's grain


def prepare_digit(picture):
    """Prepare a picture of a digit as MNIST was; returns uint8 (28, 28), 255 for ink.

    The ink is cut out, scaled into a box of 20x20 with its proportions kept, and put so that its centre of mass is in
    the middle of 28x28. Raises InputError for an empty page.
    """
    grey = picture.convert("L")
    grey.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
    ink = find_ink(np.asarray(grey, np.float64))
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    size = [max(1, round(scale * side)) for side in ink.shape[::-1]]
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BOX), np.float64)
    small = (small / small.max()).clip(0, 1)
    digit = np.zeros((FIELD, FIELD))
    corner = []
    for axis, side in enumerate(small.shape):
        mass = small.sum(axis=1 - axis)
        middle = (mass * (np.arange(side) + 0.5)).sum() / mass.sum()
        corner.append(int(np.clip(round(FIELD / 2 - middle), 0, FIELD - side)))
    digit[corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = small
    return np.rint(255 * digit).astype(np.uint8)


def prepare_picture(picture, input_shape):
    """Scale a picture to a network's input (height, width, channels); returns uint8 as load_data() gives images."""
    height, width, channels = input_shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def load_reader(folder):
    """Load a run's network, and what reads pictures for it.

    Returns (model, stamp, class_names, prepare): prepare() takes a Pillow picture and returns the uint8 image that the
    network is to get. Raises InputError when there is no network.
    """
    model, stamp = run_folder.load_network(folder)
    try:
        class_names = load_data(run_folder.data_of_run(folder))[2]
    except InputError:  # the data need not be here
        class_names = []
    class_names = name_classes(class_names, model.get_layer("classification").output.shape[-1])
    prepare = functools.partial(prepare_picture, input_shape=model.input_shape[1:])
    reader = model, stamp, class_names, prepare_digit if stamp["data_sha256"] == MNIST_SHA256 else prepare
    look(Image.radial_gradient("L"), reader)  # a network's first answer takes longer than the next
    return reader


def look(picture, reader):
    """Show a Pillow picture to a network of load_reader().

    Returns the image that it gets, the probabilities of the classes, and how it draws the image again, both images as
    load_data() gives them. Raises InputError for an empty page.
    """
    model, _, _, prepare = reader
    image = prepare(picture)
    outputs = predict(model, image[np.newaxis])
    return image, outputs["classification"][0], to_images(outputs["autoencoder"])[0]


def answer(source, readers):
    """Return what demo/draw.py shows of a picture, Pillow's or a file's path: what the networks of load_reader() say.

    A list: the image that the first one gets, then for each the probabilities by class and its drawing. Where nothing
    can be read it is None, then for each what is wrong and None. Of no picture, None, it is nothing.
    """
    if source is None:
        return [None] * (1 + 2 * len(readers))
    try:
        picture = read_picture(source) if isinstance(source, str) else source
        found = [look(picture, reader) for reader in readers]
    except InputError as error:
        return [None, *[str(error), None] * len(readers)]
    shown = [enlarge(found[0][0], 8)]
    for (_, _, class_names, _), (_, probabilities, drawing) in zip(readers, found):
        shown += [dict(zip(class_names, probabilities.tolist())), enlarge(drawing, 8)]
    return shown


def say(probabilities, class_names):
    """Return the answer for a picture as text: class and probability, and the second guess if it is not sure."""
    first, second = np.argsort(-probabilities)[:2]
    text = f"{class_names[first]}, {percent(probabilities[first])}"
    return (
        text if probabilities[first] >= SURE else f"{text}, or {class_names[second]}, {percent(probabilities[second])}"
    )


def draw_predictions(rows):
    """Draw rows of (picture, image, drawing, answer): a picture as it was given, and what look() and say() make of it.

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


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="a file that Pillow can read")
    args = parser.parse_args(argv)
    folder = args.output_dir
    reader = load_reader(folder)
    _, stamp, class_names, _ = reader
    rows = []
    for path in args.pictures:
        try:
            picture = read_picture(path)
            image, probabilities, drawing = look(picture, reader)
        except InputError as error:
            print(f"{parser.prog}: {path}: {error}", file=sys.stderr)
            continue
        rows.append((picture, image, drawing, say(probabilities, class_names)))
        print(f"{path}: {rows[-1][-1]}", flush=True)
    if rows:
        figure = draw_predictions(rows[:ROWS])
        with run_folder.writing(folder, stamp):
            save_figure(figure, folder / run_folder.PREDICTIONS)
        print(f"Wrote {folder / run_folder.PREDICTIONS}")
    if len(rows) < len(args.pictures):
        sys.exit(1)


if __name__ == "__main__":
    cli.start(main)
