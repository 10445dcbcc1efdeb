"""The page to draw a digit in: its answers here, and a visitor's, in a browser."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import REFERENCE, ROOT, copy_run, files, run_script, succeed
from PIL import Image
from test_predict import STROKES, draw

from demo import draw as demo
from demo.answers import BARS, answer
from predict import load_trained, run_on_picture
from support.errors import InputError

SCRIPT = "demo/draw.py"


@pytest.fixture(autouse=True)
def gradios_folder(tmp_path, monkeypatch):
    """Gradio's own is one for all users of a machine, and belongs to the first."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))


@pytest.fixture(scope="module")
def reader():
    return load_trained(REFERENCE)


def classes(answer):
    """The classes that an answer shows, the likeliest first."""
    return re.findall("<tr><th>(.+?)<td>", answer)


def test_answers_of_both_tasks(reader):
    """The three likeliest classes, and two images: what the network gets, and what it draws."""
    (said,) = answer(draw(3, np.random.default_rng(0)), [reader])
    assert classes(said)[0] == "3"
    assert len(set(classes(said))) == BARS
    images = [Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall('base64,(.+?)"', said)]
    assert [image.size for image in images] == [(28, 28)] * 2
    gets, draws = (np.asarray(image, float) for image in images)
    assert (gets == reader.prepare(draw(3, np.random.default_rng(0)))).all()
    assert 0 < np.abs(draws - gets).mean() < 20


@pytest.fixture
def certain(reader):
    """A network that answers its class 1 always, and is sure of it."""
    other = reader._replace(model=keras.models.clone_model(reader.model))
    weights = other.model.get_layer("classification").get_weights()
    other.model.get_layer("classification").set_weights([weights[0] * 0, np.eye(10)[1] * 50])
    return other


def test_two_networks_keep_their_order(reader, certain):
    page = draw(3, np.random.default_rng(0))
    for networks, expected in (([reader, certain], ["3", "1"]), ([certain, reader], ["1", "3"])):
        assert [classes(said)[0] for said in answer(page, networks)] == expected


def test_no_probability_is_said_to_be_all(certain):
    """However sure a network is, and whatever its classes are called."""
    (said,) = answer(draw(3, np.random.default_rng(0)), [certain._replace(class_names=["<b>"] * 10)])
    assert said.startswith("<table><tr><th>&lt;b&gt;<td><meter value=1.0000></meter><td>over 99.9 %<tr>")


def test_the_page_reads_what_is_drawn_and_not_what_is_behind_it(reader):
    page = demo.build([reader], np.zeros((3, 28, 28), np.uint8))
    empty, drawn = Image.new("L", (300, 300), 255), draw(3, np.random.default_rng(0))
    on_change = next(one.fn for one in page.fns.values() if one.fn and one.targets and one.targets[0][1] == "change")
    said = on_change({"background": empty, "layers": [], "composite": drawn}, None, None)[-1]
    assert classes(said)[0] == "3"


def test_the_page_is_for_this_machine_alone(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--help"])
    assert "default: 127.0.0.1, for this machine alone" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_read_is_said(reader, tmp_path):
    """An empty field is no picture, and a picture of nothing has a name: its own, not where it lies here."""
    empty = Image.new("L", (300, 300), 255)
    assert answer(None, [reader]) == answer(empty, [reader]) == [""]
    empty.save(tmp_path / "empty.png")
    assert answer(str(tmp_path / "empty.png"), [reader, reader]) == ["<p>empty.png: looks like an empty page</p>", ""]
    (tmp_path / "text.png").write_text("text", encoding="utf-8")
    assert answer(str(tmp_path / "text.png"), [reader]) == ["<p>text.png: not a picture that can be read</p>"]


def test_the_page_says_what_the_network_knows(reader):
    """Digits for the network that was trained on them, and so many classes for another."""
    title, _, below = demo.describe(reader)
    assert title.startswith("Draw a digit,")
    assert "knows only digits, and calls everything one of the 10" in below
    title, _, below = demo.describe(reader._replace(prepare=print, class_names=["cat", "dog"]))
    assert title.startswith("Draw,")
    assert "knows only its classes, and calls everything one of the 2" in below


def test_the_last_example_is_a_mistake(mnist, reader):
    images, labels = mnist[1]
    right = [
        run_on_picture(Image.fromarray(images[index]), reader)[1].argmax() == labels[index] for index in demo.EXAMPLES
    ]
    assert right == [True, True, False]


def test_the_page_has_a_second_network_if_there_is_one(reader):
    """And says after how many epochs each is."""
    images = np.zeros((3, 28, 28), np.uint8)
    first = reader._replace(stamp={"epoch": 1})
    texts = [str(demo.build(readers, images).get_config_file()) for readers in ([reader], [reader, first])]
    assert ["answer1" in text for text in texts] == [False, True]
    assert "**After 20 epochs**" in texts[1]
    assert "**After 1 epoch**" in texts[1]


def test_a_folder_without_a_network(tmp_path):
    with pytest.raises(InputError, match="no run in"):
        demo.main(["--output-dir", str(tmp_path)])


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "::2"])
def test_an_address_that_is_not_this_machines_is_refused_before_it_says_open(host, capsys):
    with pytest.raises(InputError, match=rf"cannot listen at {host}, port \d+ \(.+\): choose another --port, or"):
        demo.main(["--output-dir", str(REFERENCE), "--host", host, "--port", str(free_port())])
    assert capsys.readouterr().out == ""


def test_what_visitors_give_lies_in_a_folder_that_goes(tmp_path):
    """A file that was uploaded is in a temporary folder of this page alone; at its end nothing is left there."""
    port = free_port()
    command = [sys.executable, ROOT / SCRIPT, "--port", str(port), "--output-dir", REFERENCE]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("GRADIO_TEMP_DIR", None)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert "Open" in server.stdout.readline()
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="mine.png"\r\n\r\npicture\r\n--x--\r\n'
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
        )
        with urllib.request.urlopen(request, timeout=60) as answered:
            (path,) = json.load(answered)
        assert Path(path).read_bytes() == b"picture"
        assert Path(path).relative_to(tmp_path).parts[0].startswith("draw-")
        server.terminate()
        assert server.communicate(timeout=120) == ("", "")
    finally:
        server.kill()
    assert files(tmp_path) == {}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def site(small_data, tmp_path_factory):
    """The address of the page, served from a copy of the project with the recorded network in outputs."""
    copy = tmp_path_factory.mktemp("site") / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "tests", "docs"))
    (copy / "outputs").mkdir()
    copy_run(REFERENCE, copy / "outputs")
    succeed("train.py", "--epochs", 1, "--limit", 320, "--data", small_data, "--output-dir", copy / "outputs" / "first")
    port = free_port()
    command = [sys.executable, copy / SCRIPT, "--port", str(port)]
    with subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        said = server.stdout.readline()
        assert said == f"The network of outputs. Open http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        yield f"http://127.0.0.1:{port}/"
        server.terminate()
        assert server.stdout.read() == ""


@pytest.fixture
def browser():
    """Headless Chromium, which notes what it asks for. Needs selenium, and from Debian chromium and chromium-driver."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    paths = shutil.which("chromium"), shutil.which("chromedriver")
    if None in paths:
        pytest.skip("no Chromium here: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1366,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1])) as browser:
        browser.implicitly_wait(30)
        yield browser


# The browser's own clock, from the pointer's going up to the first change of the answer.
WATCH = """
addEventListener("pointerup", () => { window.up = performance.now(); window.answered = null }, true)
const what = { childList: true, subtree: true, characterData: true }
new MutationObserver(() => { window.answered ??= performance.now() }).observe(document.querySelector("#answer0"), what)
"""


def find(browser, css):
    return browser.find_element("css selector", css)


def visit(browser, site):
    """Open the page, and wait until its pen is chosen."""
    browser.get(site)
    find(browser, "#field [aria-label=Brush].highlight")
    find(browser, "#field canvas")
    time.sleep(1)


def wait_for_answer(browser, wanted, seconds=30):
    """Wait until the page gives an answer that matches."""
    end = time.perf_counter() + seconds
    while not re.match(wanted, find(browser, "#answer0").text):
        assert time.perf_counter() < end, find(browser, "#answer0").text
        time.sleep(0.2)  # asking costs the page time


def draw_with_the_pointer(browser, digit):
    """Draw the strokes of a digit; returns when the pointer is up."""
    from selenium.webdriver import ActionChains

    canvas = find(browser, "#field canvas")
    scale = min(canvas.rect["width"], canvas.rect["height"]) / 480
    for stroke in STROKES[digit]:
        places = [(round(scale * (150 * x - 75)), round(scale * (150 * y - 112))) for x, y in stroke]
        pointer = ActionChains(browser, duration=10).move_to_element_with_offset(canvas, *places[0]).click_and_hold()
        for place in places[1:]:
            pointer.move_to_element_with_offset(canvas, *place)
        pointer.release().perform()


def click(browser, css, number=0):
    browser.execute_script("arguments[0].click()", browser.find_elements("css selector", css)[number])


def drop(browser, path):
    """Give the page a file, as dropping it does."""
    browser.execute_script("document.querySelector('#file [aria-label=Clear]')?.click()")
    find(browser, "#file input[type=file]").send_keys(str(path))


def share_of_ink(browser):
    """Return the share of the field's points that are dark, as it is seen."""
    browser.execute_script("scrollTo(0, 0)")
    field = Image.open(io.BytesIO(find(browser, "#field canvas").screenshot_as_png)).convert("L")
    middle = field.crop([round(side * part) for part in (0.25, 0.75) for side in field.size])
    return (np.asarray(middle) < 60).mean()


@pytest.mark.slow
def test_a_visitor_draws(site, browser):
    """A 3 and at once a 7 with the pointer. What the page asked for is all of this machine."""
    visit(browser, site)
    browser.execute_script(WATCH)
    for digit in (3, 7, 3):
        draw_with_the_pointer(browser, digit)
        wait_for_answer(browser, str(digit))
        took = browser.execute_script("return window.answered - window.up")
        print(f"\n{digit}: {took / 1000:.2f} s from the stroke to the answer")
        click(browser, '#field [aria-label="Clear canvas"]')
        wait_for_answer(browser, "$")
        time.sleep(1)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 10
    assert {url for url in asked if not url.startswith((site, "data:", "blob:"))} == set()


@pytest.mark.slow
def test_a_visitor_takes_back_everything(site, browser):
    """Undo, to the empty field: no answer, and no complaint."""
    visit(browser, site)
    draw_with_the_pointer(browser, 7)
    wait_for_answer(browser, "7")
    click(browser, "#field [aria-label=Undo]")
    wait_for_answer(browser, "$")
    draw_with_the_pointer(browser, 3)
    wait_for_answer(browser, "3")


@pytest.mark.slow
def test_a_visitor_clicks_the_examples(site, browser):
    """Each answers, takes the drawing's place and is shown; a stroke afterwards is on an empty field."""
    visit(browser, site)
    for number, said in enumerate("729"):
        draw_with_the_pointer(browser, 3)
        wait_for_answer(browser, "3")
        assert share_of_ink(browser) > 0.05
        click(browser, ".gallery-item", number)
        wait_for_answer(browser, said)
        assert "picture / 元の画像" in find(browser, "#answer0").text
        assert share_of_ink(browser) == 0
        time.sleep(1)
    draw_with_the_pointer(browser, 7)
    wait_for_answer(browser, "7")
    assert "picture / 元の画像" not in find(browser, "#answer0").text


@pytest.mark.slow
def test_a_visitor_drops_files(site, browser, tmp_path):
    visit(browser, site)
    draw(3, np.random.default_rng(0)).save(tmp_path / "three.png")
    (tmp_path / "text.png").write_text("text", encoding="utf-8")
    Image.new("L", (10_000, 10_000), 255).save(tmp_path / "huge.png")
    (tmp_path / "long.png").write_bytes(bytes(25_000_000))
    draw_with_the_pointer(browser, 7)
    wait_for_answer(browser, "7")
    drop(browser, tmp_path / "three.png")
    wait_for_answer(browser, "3")
    assert "picture / 元の画像" in find(browser, "#answer0").text
    assert share_of_ink(browser) == 0
    drop(browser, tmp_path / "text.png")
    wait_for_answer(browser, "text.png: not a picture that can be read$")
    drop(browser, tmp_path / "huge.png")
    wait_for_answer(browser, "huge.png: too large, over 90 megapixels")
    drop(browser, tmp_path / "long.png")
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 30).until(lambda browser: "maximum allowed size" in find(browser, "[class*=toast]").text)
    drop(browser, tmp_path / "three.png")
    wait_for_answer(browser, "3")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(400, 800), (1366, 768), (1920, 1080)])
def test_answers_are_in_sight_while_one_draws(site, browser, size):
    """On a telephone the answer, on a screen everything. With DEMO_SCREENSHOTS=folder the pictures stay there."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    visit(browser, site)
    draw_with_the_pointer(browser, 3)
    wait_for_answer(browser, "3")
    browser.execute_script("scrollTo(0, 0)")
    time.sleep(1)
    if "DEMO_SCREENSHOTS" in os.environ:
        browser.save_screenshot(os.path.join(os.environ["DEMO_SCREENSHOTS"], f"{width}.png"))
    of_first = find(browser, "#answer0 table" if width < 500 else "#answer0 section").rect
    of_second = find(browser, "#answer1 section").rect
    assert of_first["y"] + of_first["height"] < height
    assert width < 500 or of_second["y"] + of_second["height"] < height
    assert find(browser, "#file").rect["y"] > of_second["y"]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_ten_visitors_at_once(site, browser, tmp_path):
    """Ten windows, each with another digit, all at once: each gets its own answer."""
    windows = {}
    for digit in range(10):
        draw(digit, np.random.default_rng(digit)).save(tmp_path / f"{digit}.png")
        if digit:
            browser.switch_to.new_window("window")
        visit(browser, site)
        windows[digit] = browser.current_window_handle
    for digit, window in windows.items():
        browser.switch_to.window(window)
        drop(browser, tmp_path / f"{digit}.png")
    for digit, window in windows.items():
        browser.switch_to.window(window)
        wait_for_answer(browser, str(digit))


@pytest.mark.slow
def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run_script(SCRIPT, "--port", taken.getsockname()[1], "--output-dir", REFERENCE)
    assert done.returncode == 1
    assert re.fullmatch(r"draw.py: .*port.*\n", done.stderr)
