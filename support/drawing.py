"""What several programs draw with: Matplotlib's own look, fonts that have the letters of the class names, PNG files."""

import contextlib
import re
import warnings

import matplotlib.style
from matplotlib import font_manager

from support.files import atomic_write

# Fonts that have Japanese, Chinese or Korean letters, as Linux, Windows and macOS call them.
WIDE_FONTS = [
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAPGothic",
    "IPAGothic",
    "TakaoPGothic",
    "VL PGothic",
]
WIDE_FONTS += ["Yu Gothic", "Meiryo", "MS Gothic", "Hiragino Sans", "Hiragino Kaku Gothic ProN"]
WIDE_FONTS += ["WenQuanYi Micro Hei", "Droid Sans Fallback", "Arial Unicode MS", "Malgun Gothic", "Microsoft YaHei"]
PNG = {"Software": None}  # no version, no date: the same picture is the same file


@contextlib.contextmanager
def picture_style():
    """Within the block Matplotlib draws as it does by itself, whatever the user's settings are.

    A $ is a dollar. Says in one line which letters no installed font has.
    """
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(font for font in WIDE_FONTS if font in installed)]  # each for what those before it lack
    style = {"text.parse_math": False, "font.family": fonts}
    with matplotlib.style.context(["default", style]), warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings("always", message="Glyph .* missing")
        yield
    letters = set()
    for warning in said:
        if glyph := re.match(r"Glyph (\d+) .* missing", str(warning.message)):
            letters.add(chr(int(glyph.group(1))))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing := "".join(sorted(filter(str.isprintable, letters))):
        print(f"No font here has {missing[:10]}: install one, such as Noto Sans CJK (apt install fonts-noto-cjk)")


def save_figure(figure, path):
    """Write a figure as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata=PNG)


def short(name):
    """Return the name of a class as it fits above a picture."""
    return name if len(name) <= 14 else f"{name[:13]}…"


def percent(probability):
    """Return a probability in percent, but never as 100 %."""
    return "over 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"
