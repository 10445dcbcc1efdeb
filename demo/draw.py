"""Draw a digit in the browser, and watch both tasks answer: which digit it is, and how the network draws it again.

    pip install -r demo/requirements.txt && python demo/draw.py

Then open the address that it prints. It shows the network in outputs, or the recorded one while there is none, and
beside it the one in outputs/first, if there is one. Nothing leaves this machine, nothing is fetched, and nothing stays:
a picture that a visitor gives lies in a temporary folder, which goes when the page ends.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("demo", "gradio")

from PIL import Image

from data import load_data
from demo.answers import answer, is_empty
from predict import choose_run, load_trained
from support import cli
from support.errors import InputError
from support.pictures import prepare_digit
from support.run_folder import MODEL, data_of_run

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio

FIRST = ROOT / "outputs" / "first"
EXAMPLES = (0, 1, 115)  # test images; of MNIST's, the last is a 4 that the recorded network takes for a 9
STYLE = Path(__file__).with_name("draw.css")
# Gradio's pen is off in a new field, and in one that was cleared. A moment later, when the field is there, click it.
PEN = "() => { setTimeout(() => document.querySelector('#field [aria-label=Brush]:not(.highlight)')?.click(), 500) }"


def describe(network):
    """Return the title of the page, what is said above, and what is said below, of a network of load_trained()."""
    digits, count = network.prepare is prepare_digit, len(network.class_names)
    title = "Draw a digit, and watch both tasks answer" if digits else "Draw, and watch both tasks answer"
    above = "One network says what it is, and draws it again. / 1つのネットワークが、予測と復元を同時に行います。"
    knows = "digits" if digits else "its classes"
    below = f"""The network knows only {knows}, and calls everything one of the {count}.<br>
このネットワークが知っているのは{count}種類のみです。何を見せても、そのどれかだと答えます。"""
    return title, above, below


def build(networks, images):
    """Return the page, a Gradio app, for networks of load_trained() and example images."""
    title, above, below = describe(networks[0])
    pen = gradio.Brush(default_size=12, colors=["#000000"], color_mode="fixed")
    canvas = {"canvas_size": (400, 400), "height": 480, "layers": False, "transforms": (), "format": "png"}
    with gradio.Blocks(title=title) as page:
        gradio.Markdown(f"# {title}\n{above}")
        with gradio.Row():
            field = gradio.Sketchpad(show_label=False, elem_id="field", type="pil", image_mode="L", brush=pen, **canvas)
            answers = []
            for network in networks:
                epoch = network.stamp["epoch"]
                with gradio.Column(min_width=320):
                    trained = f"**After {epoch} epoch{'s' if epoch > 1 else ''}** / {epoch}エポック学習後"
                    gradio.Markdown(trained, visible=len(networks) > 1)
                    answers.append(gradio.HTML(elem_id=f"answer{len(answers)}", elem_classes="answer"))
        gradio.Markdown(below)
        with gradio.Row():
            example = gradio.Image(type="filepath", visible="hidden")
            file = gradio.File(label="or a picture / 画像", file_types=["image"], height=120, elem_id="file")

        def of_field(editor, *pictures):
            drawing = editor and editor["composite"]
            if is_empty(drawing) and any(pictures):  # one has just taken the place of the drawing
                return [gradio.skip()] * (2 + len(networks))
            return [None, None, *answer(drawing, networks)]

        def of_picture(path):
            return [dict.fromkeys(("background", "layers", "composite")), *answer(path, networks)]

        thumbnails = [[Image.fromarray(image)] for image in images]
        examples = gradio.Examples(thumbnails, example, label="test images / テスト画像")
        drawn = {"inputs": [field, file, example], "outputs": [file, example, *answers]}
        field.change(of_field, **drawn, show_progress="hidden")
        for event, picture in ((examples.load_input_event.success, example), (file.upload, file), (file.clear, file)):
            event(of_picture, picture, [field, *answers], show_progress="hidden")
        for event in (page.load, field.change):
            event(js=PEN)
    return page


def check_address(host, port):
    """Raise InputError when nothing can listen at an address and port of this machine."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        other = "choose another --port, or an address of this machine as --host"
        raise InputError(f"cannot listen at {host}, port {port} ({error.strerror}): {other}") from None


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=choose_run())
    parser.add_argument("--port", type=cli.number(int, 1, 65535), default=7860, help="default: 7860")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, for this machine alone")
    args = parser.parse_args(argv)
    check_address(args.host, args.port)
    networks = [load_trained(folder) for folder in [args.output_dir] + [FIRST] * (FIRST / MODEL).exists()]
    images = load_data(data_of_run(args.output_dir))[1][0].take(EXAMPLES, axis=0, mode="wrap")
    fonts = gradio.themes.Default(font="sans-serif", font_mono="monospace")  # the machine's own; none is fetched
    alone = {"theme": fonts, "css_paths": STYLE, "share": False, "ssr_mode": False, "run_history": False}
    alone |= {"footer_links": [], "quiet": True, "max_file_size": "20mb", "prevent_thread_lock": True}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends as with Ctrl-C
    with tempfile.TemporaryDirectory(prefix="draw-") as uploads, contextlib.suppress(KeyboardInterrupt):
        os.environ["GRADIO_TEMP_DIR"] = uploads  # by default one for all users of this machine, in which all stays
        page = build(networks, images)
        page.launch(server_name=args.host, server_port=args.port, **alone)
        print(f"The network of {args.output_dir}. Open http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    cli.start(main)
