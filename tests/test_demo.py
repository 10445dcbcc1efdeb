"""The page to draw a digit in: its answers here, and a visitor's, in a browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import REFERENCE, ROOT, copy_run, run_script, succeed
from PIL import Image
from test_predict import STROKES, draw

from data import InputError
from demo import draw as demo
from predict import load_trained, run_on_picture

SCRIPT = "demo/draw.py"


@pytest.fixture(scope="module")
def reader():
    return load_trained(REFERENCE)


def test_answers_of_both_tasks(reader):
    """Of two networks, here the same one twice: what it gets, the probabilities and the drawing, in this order."""
    seen, *answers = demo.answer(draw(3, np.random.default_rng(0)), [reader, reader])
    assert (seen.shape, seen.dtype) == ((224, 224), np.uint8)
    for probabilities, drawing in (answers[:2], answers[2:]):
        assert max(probabilities, key=probabilities.get) == "3"
        assert list(probabilities) == [*"0123456789"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert np.abs(drawing.astype(float) - seen).mean() < 20


def test_two_networks_keep_their_order(reader):
    """The other one answers 1 always."""
    other = reader._replace(model=keras.models.clone_model(reader.model))
    weights = other.model.get_layer("classification").get_weights()
    other.model.get_layer("classification").set_weights([weights[0] * 0, np.eye(10)[1] * 50])
    page = draw(3, np.random.default_rng(0))
    for networks, expected in (([reader, other], ["3", "1"]), ([other, reader], ["1", "3"])):
        answers = demo.answer(page, networks)[1::2]
        assert [max(one, key=one.get) for one in answers] == expected


def test_the_page_reads_what_is_drawn_and_not_what_is_behind_it(reader):
    page = demo.build([reader], np.zeros((3, 28, 28), np.uint8))
    empty, drawn = Image.new("L", (300, 300), 255), draw(3, np.random.default_rng(0))
    on_change = next(one.fn for one in page.fns.values() if one.targets and one.targets[0][1] == "change")
    _, probabilities, _ = on_change({"background": empty, "layers": [], "composite": drawn})
    assert max(probabilities, key=probabilities.get) == "3"


def test_the_page_is_for_this_machine_alone(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--help"])
    assert "default: 127.0.0.1, for this machine alone" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_read_is_said(reader, tmp_path):
    empty = Image.new("L", (300, 300), 255)
    assert demo.answer(empty, [reader]) == [None, "looks like an empty page", None]
    (tmp_path / "text.png").write_text("text")
    nothing, said, drawing = demo.answer(str(tmp_path / "text.png"), [reader])
    assert (nothing, drawing) == (None, None)
    assert said.startswith("not a picture that can be read")


def test_the_last_example_is_a_mistake(mnist, reader):
    images, labels = mnist[1]
    right = [
        run_on_picture(Image.fromarray(images[index]), reader)[1].argmax() == labels[index] for index in demo.EXAMPLES
    ]
    assert right == [True, True, False]


def test_the_page_has_a_second_network_if_there_is_one(reader):
    images = np.zeros((3, 28, 28), np.uint8)
    texts = [str(demo.build(readers, images).get_config_file()) for readers in ([reader], [reader, reader])]
    assert ["after 20 epoch(s) of training" in text for text in texts] == [False, True]


def test_a_folder_without_a_network(tmp_path):
    with pytest.raises(InputError, match="no run in"):
        demo.main(["--output-dir", str(tmp_path)])


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
new MutationObserver(() => { window.answered ??= performance.now() }).observe(document.querySelector("#answer"), what)
"""


def find(browser, css):
    return browser.find_element("css selector", css)


def visit(browser, site):
    """Open the page, and wait until its pen is chosen."""
    browser.get(site)
    find(browser, "#field [aria-label=Brush]")
    time.sleep(3)


def wait_for_answer(browser, wanted, seconds=30):
    """Wait until the page gives an answer that matches."""
    end = time.perf_counter() + seconds
    while not re.match(wanted, find(browser, "#answer").text.partition("\n")[2]):
        assert time.perf_counter() < end, find(browser, "#answer").text
        time.sleep(0.2)  # asking costs the page time


def draw_with_the_pointer(browser, digit):
    """Draw the strokes of a digit; returns when the pointer is up."""
    from selenium.webdriver import ActionChains

    canvas = find(browser, "#field canvas")
    for stroke in STROKES[digit]:
        places = [(round(150 * x - 75), round(150 * y - 112)) for x, y in stroke]
        pointer = ActionChains(browser, duration=10).move_to_element_with_offset(canvas, *places[0]).click_and_hold()
        for place in places[1:]:
            pointer.move_to_element_with_offset(canvas, *place)
        pointer.release().perform()


def drop(browser, path):
    """Give the page a file, as dropping it does."""
    browser.execute_script("document.querySelector('#file [aria-label=Clear]')?.click()")
    find(browser, "#file input[type=file]").send_keys(str(path))


@pytest.mark.slow
def test_a_visitor_draws(site, browser):
    """A 3 and a 7 with the pointer. What the page asked for is all of this machine.

    With DEMO_SCREENSHOT=docs/demo.png it makes README's picture.
    """
    visit(browser, site)
    browser.execute_script(WATCH)
    for digit in (3, 7):
        draw_with_the_pointer(browser, digit)
        wait_for_answer(browser, str(digit))
        took = browser.execute_script("return window.answered - window.up")
        print(f"\n{digit}: {took / 1000:.2f} s from the stroke to the answer")
        if digit == 3 and "DEMO_SCREENSHOT" in os.environ:
            time.sleep(2)
            browser.save_screenshot(os.environ["DEMO_SCREENSHOT"])
        find(browser, '#field [aria-label="Clear canvas"]').click()
        wait_for_answer(browser, "$")
        find(browser, "#field [aria-label=Brush]").click()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 10
    assert {url for url in asked if not url.startswith((site, "data:", "blob:"))} == set()


@pytest.mark.slow
def test_a_visitor_drops_files(site, browser, tmp_path):
    visit(browser, site)
    draw(3, np.random.default_rng(0)).save(tmp_path / "three.png")
    (tmp_path / "text.png").write_text("text")
    Image.new("L", (10_000, 10_000), 255).save(tmp_path / "huge.png")
    (tmp_path / "long.png").write_bytes(bytes(25_000_000))
    drop(browser, tmp_path / "three.png")
    wait_for_answer(browser, "3")
    drop(browser, tmp_path / "text.png")
    wait_for_answer(browser, "not a picture that can be read")
    drop(browser, tmp_path / "huge.png")
    wait_for_answer(browser, "too large, over 90 megapixels")
    drop(browser, tmp_path / "long.png")
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 30).until(lambda browser: "maximum allowed size" in find(browser, "[class*=toast]").text)
    drop(browser, tmp_path / "three.png")
    wait_for_answer(browser, "3")


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
