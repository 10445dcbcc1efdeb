"""Measure how many images a second the network trains on, in this project and in other ways to write it.

    python -m benchmarks.throughput            up to an hour on two cores
    python -m benchmarks.throughput --quick    some minutes: one round, short epochs, rough figures

Every contestant trains in a process of its own, on real batches of 32, and is warmed up before the
clock starts. They take turns, round after round, and the ratio of two is taken within a round, so
that a machine that is slower for a while does not favour either. Needs benchmarks/requirements.txt.
Writes throughput.json and throughput.png to the output directory.
"""

if __name__ == "__main__":
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

from matplotlib.figure import Figure

from data import batches, epoch_order, load_data, make_targets, output_shapes, preprocess
from model import prepare_model
from support import cli
from support.drawing import picture_style, save_figure
from support.environment import processor
from support.errors import InputError
from support.files import write_json
from train import BATCH_SIZE, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, new_model, train

WARM_UP = 10 * BATCH_SIZE  # images; the first steps trace, compile and allocate
ROUNDS, IMAGES = 3, 300 * BATCH_SIZE
QUICK_ROUNDS, QUICK_IMAGES = 1, 40 * BATCH_SIZE
PLAIN_EPOCHS = 2  # (c) is timed by whole epochs, and by more than one, for the stall at their end comes and goes
CONTESTANTS = {
    "a": ("this project, float32", "float32"),
    "b": ("this project, mixed_bfloat16", "bfloat16"),
    "c": ("plain Keras script, float32", "float32"),
    "d": ("PyTorch, float32", "float32"),
    "e": ("PyTorch, bfloat16 autocast", "bfloat16"),
    "f": ("PyTorch, torch.compile, float32", "float32"),
}
RATIOS = ("a/c", "a/d", "b/a", "b/e", "f/d")
OF_PYTORCH = "def"


def keras_project(precision):
    """(a), (b): as train.py trains. Returns a function that trains on images, and one that gives the weights."""
    (images, labels), (test_images, test_labels), _ = load_data()
    model = new_model(precision=precision)

    def train_on(count):
        test_set = test_images[:BATCH_SIZE], test_labels[:BATCH_SIZE]
        train(model, (images[:count], labels[:count]), test_set, epochs=1)

    return train_on, model.get_weights


def keras_plain():
    """(c): the whole set as float32 arrays, and fit, as most scripts have it.

    More images than there are make more epochs.
    """
    (images, labels), _, class_names = load_data()
    x = preprocess(images)
    targets = tuple(make_targets(x, labels, len(class_names)).values())
    model = new_model()

    def train_on(count):
        model.fit(
            x[:count],
            tuple(y[:count] for y in targets),
            batch_size=BATCH_SIZE,
            epochs=math.ceil(count / len(x)),
            verbose=0,
        )

    return train_on, model.get_weights


def pytorch_network():
    """Return the same network in PyTorch, channels last: its encoder, classifier, which gives logits, and decoder.

    The sizes stand here again: nothing of (d), (e) and (f) is Keras but the batches.
    """
    import torch
    from torch import nn

    def conv(channels_in, channels_out=64):
        return nn.Conv2d(channels_in, channels_out, 3, padding="same")

    def block(channels_in, *more):
        return conv(channels_in), nn.ReLU(), *more

    drop, pool, upsample = nn.Dropout(0.1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
    encoder = nn.Sequential(
        *block(1, drop), *block(64, drop), *block(64, drop, pool), *block(64, drop), *block(64, drop), *block(64, pool)
    )
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(7 * 7 * 64, 1024), nn.ReLU(), nn.Linear(1024, 10))
    decoder = nn.Sequential(upsample, *block(64, upsample), conv(64, 1))
    return nn.ModuleList([encoder, classifier, decoder]).to(memory_format=torch.channels_last)


def pytorch(network=None, autocast=False, compiled=False):
    """(d), (e), (f): the same losses, optimizer and batches in PyTorch, eager or compiled."""
    import torch
    from torch import nn

    network = network or pytorch_network()
    encoder, classifier, decoder = network
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    if compiled:
        encoder, classifier, decoder = map(torch.compile, (encoder, classifier, decoder))
    (images, labels), *_ = load_data()
    outputs = output_shapes(prepare_model())

    def train_on(count):
        count -= count % BATCH_SIZE
        for batch, targets in batches(images[:count], labels[:count], BATCH_SIZE, epoch_order(count, 0, 0), outputs):
            x = torch.from_numpy(batch).permute(0, 3, 1, 2)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                encoding = encoder(x)
                logits, drawing = classifier(encoding), decoder(encoding)
            cross_entropy = nn.functional.cross_entropy(logits.float(), torch.from_numpy(targets[0]))
            squared_error = nn.functional.mse_loss(drawing.float().sigmoid(), x)
            optimizer.zero_grad()
            (LOSS_WEIGHTS["classification"] * cross_entropy + LOSS_WEIGHTS["autoencoder"] * squared_error).backward()
            optimizer.step()

    def weights():
        return [parameter.detach().numpy().copy() for parameter in network.parameters()]

    return train_on, weights


PREPARE = {
    "a": lambda: keras_project("float32"),
    "b": lambda: keras_project("mixed_bfloat16"),
    "c": keras_plain,
    "d": pytorch,
    "e": lambda: pytorch(autocast=True),
    "f": lambda: pytorch(compiled=True),
}


def time_contestant(contestant, images):
    """Train on this number of images, warmed up; returns images a second and this process' peak memory in MB."""
    import resource  # not on Windows

    train_on, _ = PREPARE[contestant]()
    train_on(WARM_UP)
    started = time.perf_counter()
    train_on(images)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"images": images, "images_per_second": images / seconds, "peak_memory_mb": peak / 1e6}


def in_a_process(backend, *arguments):
    """Run this program anew with an option of its own, and return what it measured.

    backend: Keras' own, so that PyTorch's contestants have no TensorFlow beside them.
    """
    command = [sys.executable, "-m", "benchmarks.throughput", *map(str, arguments)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cli.ROOT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{' '.join(map(str, arguments))} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def middle(values):
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def summarise_rounds(rounds):
    """Make medians and ranges of the rounds, each a dict of what time_contestant() returns, and ratios in a round."""
    contestants = {}
    for letter, (name, _) in CONTESTANTS.items():
        if letter not in rounds[0]:  # an older record has fewer
            continue
        rates = middle([measured[letter]["images_per_second"] for measured in rounds])
        memory = middle([measured[letter]["peak_memory_mb"] for measured in rounds])
        contestants[letter] = {"name": name, "images_per_second": rates, "peak_memory_mb": memory}
    ratios = {}
    for ratio in RATIOS:
        above, below = ratio.split("/")
        if {above, below} <= {*contestants}:
            ratios[ratio] = middle(
                [measured[above]["images_per_second"] / measured[below]["images_per_second"] for measured in rounds]
            )
    return {"contestants": contestants, "ratios": ratios}


def report(summary):
    """Return the summary as lines of text."""
    lines = [f"{'':36}{'images/s, median (range)':28}peak memory"]
    for letter, speed in summary["contestants"].items():
        rate = "{median:.0f} ({least:.0f} to {greatest:.0f})".format(**speed["images_per_second"])
        memory = f"{speed['peak_memory_mb']['median']:.0f} MB"
        lines.append(f"({letter}) {speed['name']:32}{rate:28}{memory}")
    for name, ratio in summary["ratios"].items():
        lines.append("{}  {median:.2f} ({least:.2f} to {greatest:.2f})".format(name, **ratio))
    return lines


def draw(summary, path):
    """Draw the contestants' rates as bars, a PNG; the summary with the machine in it."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for place, (letter, speed) in enumerate(summary["contestants"].items()):
        dtype, rate = CONTESTANTS[letter][1], speed["images_per_second"]
        error = [[rate["median"] - rate["least"]], [rate["greatest"] - rate["median"]]]
        color = {"float32": "tab:gray", "bfloat16": "tab:olive"}[dtype]
        axes.barh(place, rate["median"], xerr=error, color=color, capsize=4)
        place_of_text = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{rate['median']:.0f}", (rate["greatest"], place), **place_of_text)
    axes.set_xlim(0, 1.1 * max(speed["images_per_second"]["greatest"] for speed in summary["contestants"].values()))
    cores = "{cores} cores of {processor}".format(**summary["machine"])
    axes.set_title(f"How fast it trains: more images a second is better\n{cores}, batches of {BATCH_SIZE}")
    axes.set(xlabel="images a second while training: median, least and greatest round")
    names = [f"{speed['name']} ({letter})" for letter, speed in summary["contestants"].items()]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def machine():
    """Return what the figures depend on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("keras", "tensorflow", "torch", "numpy")},
    }


def parse_args(argv=None):
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="one round with short epochs, some minutes")
    add("--rounds", type=cli.number(int, 1), help=f"default: {ROUNDS}, with --quick {QUICK_ROUNDS}")
    add("--contestant", choices=PREPARE, help=argparse.SUPPRESS)  # these two are for the processes it starts
    add("--images", type=cli.number(int, 1), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.contestant:
        return print(json.dumps(time_contestant(args.contestant, args.images)))
    if not importlib.util.find_spec("torch"):
        raise InputError("no PyTorch here: pip install -r benchmarks/requirements.txt")

    rounds, images = (QUICK_ROUNDS, QUICK_IMAGES) if args.quick else (ROUNDS, IMAGES)
    rounds = args.rounds or rounds
    plain_images = 2 * images if args.quick else PLAIN_EPOCHS * len(load_data()[0][0])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    measured = []
    for number in range(1, rounds + 1):
        speeds = {}
        for letter, (name, _) in CONTESTANTS.items():
            count = plain_images if letter == "c" else images
            speeds[letter] = in_a_process(
                "torch" if letter in OF_PYTORCH else "tensorflow", "--contestant", letter, "--images", count
            )
            rate = speeds[letter]["images_per_second"]
            print(f"round {number}/{rounds}: ({letter}) {name}: {rate:.0f} images/s over {count}", flush=True)
        measured.append(speeds)
        summary = summarise_rounds(measured)  # after every round, so that a stopped run leaves the rounds it had
        record = {"machine": machine(), **summary, "rounds": measured}
        write_json(args.output_dir / "throughput.json", record)
        with picture_style():
            draw(record, args.output_dir / "throughput.png")
    print("", *report(summary), f"Wrote throughput.json and throughput.png to {args.output_dir}.", sep="\n")


if __name__ == "__main__":
    cli.start(main)
