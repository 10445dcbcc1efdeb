"""A picture of one's own: prepared as MNIST was, and whatever file it comes in."""

import functools
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import REFERENCE, ROOT, call, copy_run, make_pipe
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from sklearn.datasets import load_digits

from data import preprocess
from evaluate import run_network
from predict import ROWS, SURE, answer_in_words, choose_run, draw_predictions, load_trained, run_on_picture
from support.errors import InputError
from support.pictures import find_ink, prepare_digit, prepare_picture, read_picture
from support.run_folder import load_network, read_stamp


def circle(x, y, width, height, start=0, end=360):
    """Points on an arc of an ellipse; 0 degrees is right, 90 below."""
    angles = np.radians(np.linspace(start, end, 24))
    return [(x + width * np.cos(angle), y + height * np.sin(angle)) for angle in angles]


STROKES = {  # as one writes them, in a box of 1 by 1.5
    0: [circle(0.5, 0.75, 0.42, 0.7)],
    1: [[(0.5, 0), (0.48, 1.5)]],
    2: [[*circle(0.5, 0.4, 0.4, 0.4, 190, 380), (0.7, 0.85), (0.1, 1.45), (0.95, 1.45)]],
    3: [[*circle(0.45, 0.37, 0.38, 0.36, 210, 440), *circle(0.45, 1.1, 0.42, 0.38, 270, 510)]],
    4: [[(0.55, 0), (0.08, 0.95), (0.95, 0.95)], [(0.7, 0.45), (0.68, 1.5)]],
    5: [[(0.88, 0.03), (0.25, 0.03), (0.17, 0.68), *circle(0.45, 1.05, 0.42, 0.42, 250, 500)]],
    6: [[(0.75, 0.02), (0.4, 0.3), (0.15, 0.8), *circle(0.48, 1.1, 0.34, 0.38, 190, 550)]],
    7: [[(0.08, 0.05), (0.92, 0.05), (0.4, 1.5)]],
    8: [[*circle(0.5, 0.38, 0.3, 0.36, 90, 450)], [*circle(0.5, 1.1, 0.36, 0.38, -90, 270)]],
    9: [[*circle(0.48, 0.42, 0.34, 0.4, 0, 360), (0.8, 0.8), (0.72, 1.5)]],
}


def draw(digit, random):
    """A digit in black on white, written with some pen somewhere on a page, not two alike."""
    size = int(random.integers(160, 700))
    height = size * random.uniform(0.3, 0.6)
    pen = max(2, round(height * random.choice([0.03, 0.06, 0.1, 0.14])))
    margin = 0.06 * size + pen
    left = random.uniform(margin, size - margin - height / 1.5)
    top = random.uniform(margin, size - margin - height)
    slant, squeeze = random.uniform(-0.12, 0.2), random.uniform(0.8, 1.1)
    page = Image.new("L", (size, size), 255)
    canvas = ImageDraw.Draw(page)
    for stroke in STROKES[digit]:
        points = []
        for x, y in stroke:
            slanted = x * squeeze + slant * (0.75 - y)
            place = np.array([slanted, y]) + random.normal(0, 0.006, 2)
            points.append(tuple(np.array([left, top]) + place * height / 1.5))
        canvas.line(points, fill=0, width=pen, joint="curve")
        for x, y in (points[0], points[-1]):
            canvas.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=0)
    return page


def photograph(page, random):
    """The page under a lamp: light that falls off to one side, grey ink, a little blur, grain, and JPEG's noise."""
    size = page.size[0]
    values = 70 + np.asarray(page.filter(ImageFilter.GaussianBlur(size / 300)), float) * 0.55
    light = np.linspace(1, random.uniform(0.65, 0.9), size)
    values = values * (light if random.integers(2) else light[:, None]) + random.normal(0, 4, values.shape)
    jpeg = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=60)
    return Image.open(jpeg)


KINDS = {
    "black on white": lambda page, random: page,
    "white on black": lambda page, random: page.point(lambda value: 255 - value),
    "photographed": photograph,
}


def pages(kind, count=10):
    """Pages of one kind, `count` of each digit, and the digits."""
    random = np.random.default_rng(0)
    labels = np.arange(10).repeat(count)
    return [KINDS[kind](draw(digit, random), random) for digit in labels], labels


def share_right(network, images, labels):
    return (run_network(network, np.stack(images))["classification"].argmax(axis=1) == labels).mean()


@pytest.fixture(scope="module")
def network():
    return load_network(REFERENCE)[0]


def real_digits(neighbour=False):
    """scikit-learn's 1,797 digits of real people, enlarged smoothly from 8x8 onto a white page, and the digits.

    neighbour: the next one stands at the right, cut off by the edge of the page.
    """
    digits = load_digits()
    ink = [Image.fromarray((255 - values * 255 / 16).astype(np.uint8)) for values in digits.images]
    ink = [one.resize((160, 160), Image.Resampling.BICUBIC) for one in ink]
    enlarged = [Image.new("L", (240, 240), 255) for _ in ink]
    for number, page in enumerate(enlarged):
        if neighbour:
            page.paste(ink[(number + 1) % len(ink)], (195, 40))
        page.paste(ink[number], (40, 40))
    return enlarged, digits.target


# What Debian calls handwriting, or handwritten; a file is a hand, or another pen of it.
FONTS = {
    "breip": ["Breip", "breipfont"],
    "bwht": [f"BecauseWe{do}-Regular" for do in ("Build", "Connect", "Create", "Learn", "Mentor", "Organize")],
    "dkg-handwriting": ["dkg", "dkgBI", "dkgBd", "dkgIt"],
    "femkeklaver": ["femkeklaver"],  # in outlines
    "humor-sans": ["Humor-Sans"],
    "kiloji": ["kiloji", "kiloji_b", "kiloji_d", "kiloji_p"],
    "klee": ["KleeOne-Regular", "KleeOne-SemiBold"],
    "rufscript": ["Rufscript010"],
    "seto": ["setofont"],
    "sjfonts": ["Delphine", "SteveHand"],
    "yusei-magic": ["YuseiMagic-Regular"],
}


def written_with_fonts(characters):
    """A page for each character in each of FONTS, and the characters. Skips the test where they are not installed."""
    installed = {path.stem: path for path in Path("/usr/share/fonts").glob("*type/*/*.[to]tf")}
    names = [name for faces in FONTS.values() for name in faces]
    if not installed.keys() >= set(names):
        pytest.skip("no handwriting fonts here: apt install " + " ".join(f"fonts-{package}" for package in FONTS))
    written = []
    for name in names:
        font = ImageFont.truetype(installed[name], 200)
        for character in characters:
            written.append(Image.new("L", (400, 400), 255))
            ImageDraw.Draw(written[-1]).text((200, 200), character, 0, font, anchor="mm")
    return written, np.array([*characters] * len(names))


def written_digits():
    pages, digits = written_with_fonts("0123456789")
    return pages, digits.astype(int)


REAL = {
    "real": real_digits,
    "real, with a neighbour": functools.partial(real_digits, neighbour=True),
    "fonts": written_digits,
}
PAGES = ("your_own_problem.md", "your_own_problem.ja.md")


@pytest.mark.parametrize(
    "kind", [*KINDS, "real", pytest.param("real, with a neighbour", marks=pytest.mark.slow), "fonts"]
)
def test_digits_are_read_when_they_are_prepared(kind, network):
    """The share that is right, in percent, as the page's table says it. A processor may round a few otherwise."""
    drawn, labels = REAL[kind]() if kind in REAL else pages(kind)
    resized = [prepare_picture(page, (28, 28, 1)) for page in drawn]
    prepared = [prepare_digit(page) for page in drawn]
    shares = [share_right(network, images, labels) for images in (resized, [255 - one for one in resized], prepared)]
    print(f"\n{kind}: resized {shares[0]:.0%}, inverted too {shares[1]:.0%}, prepared {shares[2]:.0%} of {len(labels)}")
    assert shares[2] >= 0.9
    for page in PAGES:
        table = re.findall(
            r"(?m)^\| [^|]+ \| (\d+)% \| (\d+)% \| (\d+)% \|$", (ROOT / "docs" / page).read_text(encoding="utf-8")
        )
        said = np.array(table[[*KINDS, *REAL].index(kind)], float)
        assert np.allclose(said, np.array(shares) * 100, atol=2), page


def test_neither_task_notices_what_is_no_digit(network, mnist):
    """Letters: how many get a digit with 90 % and more, and how many are drawn worse than 99 % of MNIST's digits."""
    letters, _ = written_with_fonts("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

    def ask(images):
        images = np.stack(images)
        outputs = run_network(network, images)
        difference = outputs["autoencoder"].reshape(images.shape) - preprocess(images).reshape(images.shape)
        return outputs["classification"].max(axis=1), np.square(difference).mean(axis=(1, 2))

    sure, errors = ask([prepare_digit(page) for page in letters])
    limit = np.quantile(ask(mnist[1][0])[1], 0.99)
    found = np.array([(sure >= SURE).mean(), (errors > limit).mean()]) * 100
    print(f"\nof {len(letters)} letters {found[0]:.0f} % are sure digits, {found[1]:.0f} % drawn badly")
    assert found[0] > 70
    assert found[1] < 20


@pytest.fixture
def folder(tmp_path):
    """The recorded run, copied, so that nothing is written into it."""
    (tmp_path / "run").mkdir()
    copy_run(REFERENCE, tmp_path / "run")
    return tmp_path / "run"


def ask(folder, *paths):
    """Run predict.py in this process; returns its status, and what it said on stdout and on stderr by run_script."""
    return subprocess.run(
        [sys.executable, ROOT / "predict.py", "--output-dir", folder, *paths],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def seven():
    return draw(7, np.random.default_rng(5))


def rotated_by_exif(page):
    """As a telephone stores it that was held upright: on its side, with a note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter, clockwise
    return page.rotate(90, expand=True), {"exif": exif}


def transparent(page):
    """Black ink on nothing; what is below it, black too, does not show."""
    return Image.merge("RGBA", [Image.new("L", page.size, 0)] * 3 + [page.point(lambda value: 255 - value)]), {}


def transparent_by_key(page, mode):
    """Ink on paper that the file itself says is nothing, by its colour: one as dark as the ink, or darker."""
    key = page.point(lambda value: 255 * (value > 128))  # 255 is paper
    ink, nothing = (10, 0) if mode != "1" else (0, 255)
    picture = key.point(lambda value: nothing if value else ink)
    if mode == "I;16":  # on white paper, as the brightest point is
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        picture.paste(65535, (0, 0, 3, 3))
    else:
        picture = picture.convert(mode)
    return picture, {"transparency": (nothing,) * 3 if mode == "RGB" else nothing}


def of_16_bits(page):
    return Image.fromarray(np.asarray(page).astype(np.uint16) * 257), {}


FILES = {
    "photo.jpg": rotated_by_exif,
    "transparent.png": transparent,
    "palette.gif": lambda page: (page.convert("P"), {}),
    "transparent_palette.png": lambda page: (transparent(page)[0].quantize(), {}),
    "bits16.png": of_16_bits,
    "bits16.tif": of_16_bits,
    "bits1.png": lambda page: (page.convert("1"), {}),
    "colour.webp": lambda page: (page.convert("RGB"), {}),
    "key_of_grey.png": lambda page: transparent_by_key(page, "L"),
    "key_of_1_bit.png": lambda page: transparent_by_key(page, "1"),
    "key_of_16_bits.png": lambda page: transparent_by_key(page, "I;16"),
    "key_of_colours.png": lambda page: transparent_by_key(page, "RGB"),
    "cmyk.jpg": lambda page: (page.convert("CMYK"), {}),
    "grey_alpha.png": lambda page: (page.convert("LA"), {}),
}


@pytest.mark.parametrize("name", FILES)
def test_whatever_file_a_picture_comes_in(name, network, tmp_path):
    page, options = FILES[name](seven())
    page.save(tmp_path / name, **options)
    digit = prepare_digit(read_picture(tmp_path / name))
    expected = prepare_digit(seven())
    assert np.abs(digit.astype(int) - expected).mean() < 6
    assert run_network(network, digit[None])["classification"].argmax() == 7


def write_frames(path):
    seven().save(path, save_all=True, append_images=[seven().rotate(20)])


def write_header(path):
    """A PNG that says it has a thousand megapixels, and has none."""
    page = io.BytesIO()
    Image.new("L", (8, 8)).save(page, "PNG")
    content = bytearray(page.getvalue())
    content[16:24] = (40_000).to_bytes(4, "big") + (25_000).to_bytes(4, "big")
    path.write_bytes(content)


def write_a_gap(path):
    """A TIFF of floats, as instruments make them, with a point that is no number."""
    values = np.asarray(seven(), np.float32) / 255
    values[3, 3] = np.nan
    Image.fromarray(values).save(path)


REFUSED = {
    "animated.gif": (write_frames, "has several frames"),
    "huge.png": (write_header, "too large|not a picture"),
    "notes.txt": (lambda path: path.write_text("seven", encoding="utf-8"), "not a picture"),
    "cut.png": (lambda path: (seven().save(path), path.write_bytes(path.read_bytes()[:-300])), "not a picture"),
    "empty.png": (lambda path: path.touch(), "not a picture"),
    "folder.png": (lambda path: path.mkdir(), "not a file"),
    "gap.tiff": (write_a_gap, "points that are no numbers"),
    "pipe.png": (make_pipe, "not a file"),
    "none.png": (lambda path: None, "no such file"),
    "page.png": (lambda path: Image.new("L", (300, 200), 250).save(path), "looks like an empty page"),
    "point.png": (lambda path: Image.new("L", (1, 1), 250).save(path), "looks like an empty page"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    write, said = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=said) as refused:
        prepare_digit(read_picture(tmp_path / name))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_others_are_still_answered(folder, tmp_path):
    seven().save(tmp_path / "seven.png")
    (tmp_path / "notes.txt").write_text("seven", encoding="utf-8")
    done = ask(folder, tmp_path / "notes.txt", tmp_path / "seven.png")
    assert done.returncode == 1
    assert done.stdout.startswith(f"The network of {folder}:\n{tmp_path / 'seven.png'}: 7, ")
    assert done.stderr.startswith(f"predict.py: {tmp_path / 'notes.txt'}: not a picture")
    assert done.stderr.count("\n") == 1
    assert matplotlib.image.imread(folder / "predictions.png").shape[0] > 200


def test_without_its_data_classes_go_by_numbers_and_it_says_so(folder, tmp_path, capsys):
    """Not where they are MNIST's digits, whose names are their numbers."""
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    for data_sha256, numbered in ((settings["data_sha256"], 0), ("0" * 64, 1)):
        changed = {**settings, "data": "gone.npz", "data_sha256": data_sha256}
        (folder / "settings.json").write_text(json.dumps(changed), "utf-8")
        stamp = {**read_stamp(folder / "model.keras"), "data_sha256": data_sha256}
        with zipfile.ZipFile(folder / "model.keras", "a") as file:
            file.comment = json.dumps(stamp).encode()
        assert load_trained(folder).class_names == [*"0123456789"]
        said = capsys.readouterr().out
        assert said.count("The data of this run are not here, so its classes go by their numbers\n") == numbered


def test_without_a_run_it_says_which_to_use(tmp_path):
    seven().save(tmp_path / "seven.png")
    with pytest.raises(InputError, match="--output-dir outputs/reference has the recorded one"):
        call("predict.py", tmp_path / "seven.png", "--output-dir", tmp_path / "none")


def test_which_network_is_asked(tmp_path, monkeypatch):
    """That in outputs; the recorded one while there is none, from whatever folder."""
    monkeypatch.chdir(tmp_path)
    assert choose_run() == REFERENCE
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "model.keras").touch()
    assert choose_run() == Path("outputs")
    monkeypatch.chdir(ROOT / "tests" / "..")
    if not (ROOT / "outputs" / "model.keras").exists():
        assert choose_run() == Path("outputs", "reference")


def test_the_second_guess_is_said_when_the_first_is_not_sure():
    names = ["cat", "dog", "cow"]
    assert answer_in_words(np.array([0.05, 0.92, 0.03]), names) == "dog, 92.0 %"
    assert answer_in_words(np.array([0.3, 0.6, 0.1]), names) == "dog, 60.0 %, or cat, 30.0 %"


def test_a_digit_is_put_where_mnist_puts_it():
    """In a box of 20x20, and its centre of mass, to half a pixel, in the middle of the field."""
    random = np.random.default_rng(2)
    for digit in range(10):
        prepared = prepare_digit(draw(digit, random))
        rows, columns = np.nonzero(prepared)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        assert prepared.max() == 255
        middle = (prepared.sum(axis=1) @ (np.arange(28) + 0.5), prepared.sum(axis=0) @ (np.arange(28) + 0.5))
        assert np.allclose(np.array(middle) / prepared.sum(), 14, atol=0.51)


def test_the_picture_of_the_readme():
    trained = load_trained(REFERENCE)
    _, probabilities, drawing = run_on_picture(read_picture(ROOT / "docs" / "three.jpg"), trained)
    assert probabilities.argmax() == 3
    assert drawing.shape == (28, 28)


def test_many_large_pictures_are_drawn_small_and_it_says_how_many(folder, tmp_path, monkeypatch):
    """As many as fit, scaled down before they are kept. A name with a newline is one line."""
    page = seven().convert("L").resize((1200, 900))
    paths = [tmp_path / f"page\n{number}.png" for number in range(ROWS + 1)]
    for path in paths:
        page.save(path)
    drawn = []

    def draw_and_note(rows):
        drawn.extend(picture.size for picture, *_ in rows)
        return draw_predictions(rows[:1])

    monkeypatch.setattr(sys.modules["predict"], "draw_predictions", draw_and_note)
    lines = call("predict.py", *paths, "--output-dir", folder).splitlines()
    assert len(lines) == ROWS + 3
    assert lines[1].startswith(f"{tmp_path}/page 0.png: 7, ")
    assert lines[-1].endswith(f"predictions.png, the first {ROWS} of {ROWS + 1} pictures")
    assert drawn == ROWS * [(400, 300)]


def test_the_brightest_point_of_16_bits_is_white(tmp_path):
    """As of a camera with 12 bits: 4,000 is as bright as it gets."""
    values = np.linspace(0, 4000, 64).reshape(8, 8)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    found = np.asarray(read_picture(tmp_path / "deep.png"))
    assert (found.min(), found.max()) == (0, 255)
    assert np.abs(found - 255 * values / 4000).max() < 1.1  # cut to whole numbers twice


def test_ink_at_the_edge_is_not_taken_for_paper():
    """A page in uneven light, with a black bar at a third of its left edge: paper elsewhere is free of ink."""
    page = np.tile(np.linspace(150, 230, 120), (120, 1))
    page[:, 50:60] = 20
    page[:40, :8] = 0
    ink = find_ink(page)
    assert (ink[20:100, 54] == 1).all()
    assert ink[60:, 20:45].max() < 0.02
    assert ink[:, 70:].max() < 0.02


def test_ink_that_is_joined_to_the_edge_is_no_digit():
    """A neighbour that is cut off goes. A digit that itself touches the edge stays."""
    page = draw(3, np.random.default_rng(0))
    width, height = page.size
    expected = prepare_digit(page)
    neighbour = page.copy()
    ImageDraw.Draw(neighbour).rectangle((width - 3, height // 3, width, height), fill=0)
    assert np.array_equal(prepare_digit(neighbour), expected)
    left, top, right, bottom = ImageOps.invert(page).getbbox()
    cut_out = prepare_digit(page.crop((left, top, right, bottom)))
    assert np.abs(cut_out.astype(int) - expected).mean() < 10
