"""The look of the pictures: Matplotlib's own, and a font that has the letters of the class names."""

import contextlib
import warnings

import matplotlib.style
from matplotlib import font_manager

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


def letters_of(font):
    """Return the letters that an installed font has, as a set of numbers."""
    return {*font_manager.get_font(font_manager.findfont(font, fallback_to_default=False)).get_charmap()}


def fonts_for(texts):
    """Return the fonts that together have the letters of texts, as far as such are installed, and the letters left."""
    left, fonts = {ord(letter) for text in texts for letter in text if letter.isprintable()}, []
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    for font in ["DejaVu Sans", *(font for font in WIDE_FONTS if font in installed)]:
        if not fonts or (left and left & letters_of(font)):  # a font is read only if a letter is missing
            fonts.append(font)
            left -= letters_of(font)
    return fonts, "".join(sorted(map(chr, left)))


@contextlib.contextmanager
def picture_style(texts=()):
    """Within the block Matplotlib draws as it does by itself, whatever the user's settings are.

    texts: class names, in which $ is a dollar. Says in one line which of their letters no installed font has.
    """
    fonts, left = fonts_for(texts)
    if left:
        print(f"No font here has {left[:10]}: install one, such as Noto Sans CJK (apt install fonts-noto-cjk)")
    style = {"text.parse_math": False, "font.family": fonts}
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it has been said
        yield
