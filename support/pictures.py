"""Pictures of a user's own: read with Pillow, and prepared as MNIST's digits were, or scaled."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps, UnidentifiedImageError

from support.errors import InputError

BOX, FIELD = 20, 28  # MNIST's digits fill a box of 20x20 in a field of 28x28
WORKING_SIZE = 400  # pixels; a larger picture is scaled down to it first, which also takes away its noise
COARSE = 100  # pixels; what is joined to the edge is looked for on so small a copy
FAINTEST = 24  # of 255: a page whose ink differs less from its paper counts as empty


def read_picture(path):
    """Read a picture with Pillow; returns it upright, 8 bits, its transparent parts white, in mode L or RGB.

    Raises InputError when it is no picture, has several frames, or more than 90 megapixels.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise InputError("not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path)
        if getattr(picture, "n_frames", 1) > 1:
            raise InputError("has several frames: save one of them as a picture")
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "IF":  # 16 bits and more: its brightest point becomes white
            values = np.asarray(picture, np.float64)
            if not np.isfinite(values).all():
                raise InputError("holds points that are no numbers")
            values[values == picture.info.get("transparency")] = values.max()  # what stands for nothing is white
            picture = Image.fromarray((255 * values / max(values.max(), 1e-9)).clip(0, 255).astype(np.uint8))
        has_key = "transparency" in picture.info  # a colour that stands for nothing, or a transparent palette
        if has_key or picture.mode not in ("1", "L", "RGB", "CMYK", "YCbCr"):
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except FileNotFoundError:
        raise InputError("no such file") from None
    except UnidentifiedImageError:
        raise InputError("not a picture that can be read") from None
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
    level = np.percentile(ink[ink > 0.3 * ink.max()], 75)  # not the darkest spot, which says little of a pencil
    return ((ink / level - 0.3) / 0.5).clip(0, 1)  # a soft threshold: below it is the paper's grain


def without_border(ink):
    """Take away what is joined to the edge of the picture: a neighbour's digit that is cut off, a line, a dark frame.

    ink: of find_ink(); returns the same where more than half of it would go, as of a digit that touches the edge.
    """
    small = Image.fromarray(np.uint8(255 * ink))
    small.thumbnail((COARSE, COARSE), Image.Resampling.BOX)
    framed = ImageOps.expand(small.point(lambda value: 255 * (value > 64)), border=1, fill=255)
    ImageDraw.floodfill(framed, (0, 0), 128)
    joined = framed.point(lambda value: 255 * (value == 128)).filter(ImageFilter.MaxFilter(3))  # its grey rim, too
    joined = ImageOps.crop(joined, border=1).resize(ink.shape[::-1], Image.Resampling.NEAREST)
    rest = np.where(joined, 0, ink)
    return rest if (rest > 0.5).sum() > (ink > 0.5).sum() / 2 else ink


def prepare_digit(picture):
    """Prepare a picture of a digit as MNIST was; returns uint8 (28, 28), 255 for ink.

    The ink is cut out, scaled into a box of 20x20 with its proportions kept, and put so that its centre of mass is in
    the middle of 28x28. Raises InputError for an empty page.
    """
    grey = picture.convert("L")
    grey.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
    ink = without_border(find_ink(np.asarray(grey, np.float64)))
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
