"""What the page to draw in says of a picture: HTML, an answer for each network."""

import base64
import html
import io
import itertools
from pathlib import Path

from PIL import Image, ImageOps

from predict import run_on_picture
from support.drawing import percent
from support.errors import InputError
from support.pictures import read_picture

BARS = 3  # classes that are shown, the likeliest


def figure(caption, picture):
    """Return a picture, Pillow's, as HTML with its caption below it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'


def show(network, picture, with_picture):
    """Return as HTML what a network of load_trained() says of a Pillow picture, and perhaps the picture.

    Raises InputError for an empty page.
    """
    image, probabilities, drawing = run_on_picture(picture, network)
    bars, shown = "", {"it gets / 入力": Image.fromarray(image), "it draws / 復元": Image.fromarray(drawing)}
    for number in (-probabilities).argsort()[:BARS]:
        name, probability = html.escape(network.class_names[number]), probabilities[number]
        bars += f"<tr><th>{name}<td><meter value={probability:.4f}></meter><td>{percent(probability)}"
    if with_picture:
        shown["picture / 元の画像"] = ImageOps.contain(picture, (400, 400))
    return f"<table>{bars}</table><section>{''.join(itertools.starmap(figure, shown.items()))}</section>"


def is_empty(source):
    """Return whether a picture is none, or an empty field."""
    return source is None or (not isinstance(source, str) and source.getextrema() == (255, 255))


def answer(source, networks):
    """Return the page's answers to a picture, Pillow's or a file's path: HTML for each of networks of load_trained().

    A file's picture stands in the first. Where nothing can be read the first says why. Of an empty field all are "".
    """
    if is_empty(source):
        return [""] * len(networks)
    is_file = isinstance(source, str)
    try:
        picture = read_picture(source) if is_file else source
        return [show(network, picture, is_file and network is networks[0]) for network in networks]
    except InputError as error:
        why = f"{Path(source).name}: {error}" if is_file else str(error)
        return [f"<p>{html.escape(why)}</p>", *[""] * (len(networks) - 1)]
