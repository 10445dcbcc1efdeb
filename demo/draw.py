"""Draw a digit in the browser, and watch both tasks answer: which digit it is, and how the network draws it again.

    pip install -r demo/requirements.txt && python demo/draw.py

Then open the address that it prints. Nothing leaves this machine, and nothing is fetched from another one.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

from data import InputError, load_data
from predict import load_trained, run_on_picture
from support import cli
from support.pictures import read_picture
from support.run_folder import MODEL, data_of_run
from visualize import enlarge

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio
except ImportError:
    sys.exit("draw.py: no Gradio here: pip install -r demo/requirements.txt")

RECORDED, FIRST = ROOT / "outputs" / "reference", ROOT / "outputs" / "first"
EXAMPLES = (0, 1, 115)  # test images; of MNIST's, the last is a 4 that the recorded network takes for a 9
TEXT = """# Draw a digit, and watch both tasks answer
One network says which digit it is, and draws it again. Use the mouse or a finger, or drop a picture.\n
1つのネットワークが、数字を予測すると同時に復元します。マウスか指で描くか、画像をドロップしてください。"""
COMPARED = """The same picture after {0} epoch(s) of training. Compare it with the one above, after {1}.\n
同じ画像を、{0}エポック学習後のネットワークに通した結果です。上の{1}エポック学習後のものと比べてください。"""


def answer(source, networks):
    """Return what the page shows of a picture, Pillow's or a file's path: what networks of load_trained() say of it.

    A list: the image that the first one gets, then for each the probabilities by class and its drawing. Where nothing
    can be read it is None, then for each what is wrong and None. Of no picture, None, it is nothing.
    """
    if source is None:
        return [None] * (1 + 2 * len(networks))
    try:
        picture = read_picture(source) if isinstance(source, str) else source
        found = [run_on_picture(picture, network) for network in networks]
    except InputError as error:
        return [None, *[str(error), None] * len(networks)]
    shown = [enlarge(found[0][0], 8)]
    for network, (_, probabilities, drawing) in zip(networks, found):
        shown += [dict(zip(network.class_names, probabilities.tolist())), enlarge(drawing, 8)]
    return shown


def build(networks, images):
    """Return the page, a Gradio app, for networks of load_trained() and example images."""
    image = {"interactive": False, "height": 240, "buttons": []}
    pen = gradio.Brush(default_size=20, colors=["#000000"], color_mode="fixed")
    canvas = {"brush": pen, "canvas_size": (400, 400), "layers": False, "transforms": (), "format": "png"}
    with gradio.Blocks(title="Draw a digit") as page:
        gradio.Markdown(TEXT)
        with gradio.Row():
            with gradio.Column():
                field = gradio.Sketchpad(label="draw / 描く", elem_id="field", type="pil", image_mode="L", **canvas)
                gradio.Examples([[enlarge(one, 8)] for one in images], field, label="test images / テスト画像")
                file = gradio.File(label="or a picture / 画像", file_types=["image"], height=150, elem_id="file")
            with gradio.Column():
                with gradio.Row():
                    seen = gradio.Image(label="what the network gets / 入力", **image)
                    drawn = gradio.Image(label="what it draws / 復元", **image)
                bars = gradio.Label(label="which digit? / 予測", elem_id="answer")
        shown = [seen, bars, drawn]  # in the order of answer()
        if len(networks) > 1:
            gradio.Markdown(COMPARED.format(networks[1].stamp["epoch"], networks[0].stamp["epoch"]))
            with gradio.Row():
                shown += [gradio.Label(num_top_classes=3, show_label=False), gradio.Image(show_label=False, **image)]
        page.load(js="() => setTimeout(() => document.querySelector('#field [aria-label=Brush]').click(), 500)")
        field.change(lambda editor: answer(editor["composite"], networks), field, shown, show_progress="hidden")
        file.upload(lambda path: answer(path, networks), file, shown, show_progress="hidden")
    return page


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=cli.OUTPUT_DIR if (cli.OUTPUT_DIR / MODEL).exists() else RECORDED)
    parser.add_argument("--port", type=cli.number(int, 1, 65535), default=7860, help="default: 7860")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, for this machine alone")
    args = parser.parse_args(argv)
    networks = [load_trained(folder) for folder in [args.output_dir] + [FIRST] * (FIRST / MODEL).exists()]
    images = load_data(data_of_run(args.output_dir))[1][0].take(EXAMPLES, axis=0, mode="wrap")
    print(f"The network of {args.output_dir}. Open http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
    fonts = gradio.themes.Default(font="sans-serif", font_mono="monospace")  # the machine's own; none is fetched
    alone = {"theme": fonts, "share": False, "ssr_mode": False, "run_history": False, "footer_links": [], "quiet": True}
    build(networks, images).launch(server_name=args.host, server_port=args.port, max_file_size="20mb", **alone)


if __name__ == "__main__":
    cli.start(main)
