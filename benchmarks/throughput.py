"""Measure how many images a second the network trains on, in this project and in other ways to write it.

    python benchmarks/throughput.py            up to an hour on two cores
    python benchmarks/throughput.py --quick    some minutes: one round, short epochs, rough figures

Every contestant trains in a process of its own, on real batches of 32, and is warmed up before the
clock starts. They take turns, round after round, and the ratio of two is taken within a round, so
that a machine that is slower for a while does not favour either. Needs benchmarks/requirements.txt.
Writes throughput.json and throughput.png to the output directory.
"""

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
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # first, for it loads Keras without TensorFlow's greeting

import keras
from matplotlib.figure import Figure

from data import InputError, batches, epoch_order, load_data, make_targets, output_shapes, preprocess
from files import write_json
from model import prepare_model
from run_folder import processor
from train import BATCH_SIZE, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, new_model, train
from visualize import save_figure

WARM_UP = 10 * BATCH_SIZE  # images; the first steps trace, compile and allocate
ROUNDS, IMAGES = 3, 300 * BATCH_SIZE
QUICK_ROUNDS, QUICK_IMAGES = 1, 40 * BATCH_SIZE
PLAIN_EPOCHS = 2  # (c) is timed by whole epochs, and by more than one, for the stall at their end comes and goes
CONVOLUTION = (32, 28, 28, 64)  # the measure of the machine: batch, height, width, channels, 64 to 64 with 3x3
CONVOLUTION_SECONDS = 5
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


def multiply_adds(model):
    """Count the multiplications, each with an addition, that a Keras model needs for one image, forward."""
    count = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            count += np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:3])
        elif isinstance(layer, keras.layers.Dense):
            count += np.prod(layer.kernel.shape)
    return int(count)


def training_flop(model):
    """Return the floating-point operations of one image in training: forward, and twice that backward."""
    return 3 * 2 * multiply_adds(model)


def keras_project(precision):
    """(a), (b): as train.py trains. Returns what trains on so many images, and what gives the weights."""
    (images, labels), (test_images, test_labels), _ = load_data()
    model = new_model(precision=precision)

    def train_on(count):
        test_set = test_images[:BATCH_SIZE], test_labels[:BATCH_SIZE]
        list(train(model, (images[:count], labels[:count]), test_set, epochs=1))

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


def pytorch(autocast=False, compiled=False):
    """(d), (e), (f): the same network, losses, optimizer and batches in PyTorch, channels last, eager or compiled.

    The sizes stand here again: nothing of this process is Keras but the batches.
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
    network = nn.ModuleList([encoder, classifier, decoder]).to(memory_format=torch.channels_last)
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


def best_rate(convolve):
    """Return the GFLOP/s of the quickest of many calls of a convolution of the size CONVOLUTION."""
    batch, height, width, channels = CONVOLUTION
    best, end = float("inf"), time.perf_counter() + CONVOLUTION_SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        convolve()
        best = min(best, time.perf_counter() - started)
    return 2 * batch * height * width * 3 * 3 * channels**2 / best / 1e9


def convolutions_tensorflow():
    """Return the GFLOP/s of TensorFlow's convolution, by dtype."""
    import tensorflow as tf

    rates = {}
    for dtype in (tf.float32, tf.bfloat16):
        x, kernel = tf.random.normal(CONVOLUTION), tf.random.normal((3, 3, CONVOLUTION[-1], CONVOLUTION[-1]))
        x, kernel = tf.cast(x, dtype), tf.cast(kernel, dtype)
        convolve = tf.function(lambda x, kernel=kernel: tf.nn.conv2d(x, kernel, 1, "SAME"))
        rates[dtype.name] = best_rate(lambda: convolve(x))  # noqa: B023 - called at once
    return rates


def convolutions_pytorch():
    """Return the GFLOP/s of PyTorch's convolution, channels last, by dtype."""
    import torch

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.Conv2d(CONVOLUTION[-1], CONVOLUTION[-1], 3, padding="same", bias=False)
        layer = layer.to(dtype=dtype, memory_format=torch.channels_last)
        x = torch.randn(CONVOLUTION).to(dtype).permute(0, 3, 1, 2)
        with torch.inference_mode():
            rates[str(dtype).removeprefix("torch.")] = best_rate(lambda: layer(x))  # noqa: B023 - called at once
    return rates


PREPARE = {
    "a": lambda: keras_project("float32"),
    "b": lambda: keras_project("mixed_bfloat16"),
    "c": keras_plain,
    "d": pytorch,
    "e": lambda: pytorch(autocast=True),
    "f": lambda: pytorch(compiled=True),
}
CONVOLUTIONS = {"tensorflow": convolutions_tensorflow, "pytorch": convolutions_pytorch}


def time_contestant(contestant, images):
    """Train on so many images, warmed up; returns images a second and this process' peak memory in MB."""
    import resource  # not on Windows

    train_on, _ = PREPARE[contestant]()
    train_on(WARM_UP)
    started = time.perf_counter()
    train_on(images)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"images": images, "images_per_second": images / seconds, "peak_memory_mb": peak / 1e6}


def in_a_process(backend, *arguments):
    """Run this script anew with an option of its own, and return what it measured.

    backend: Keras' own, so that PyTorch's contestants have no TensorFlow beside them.
    """
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{' '.join(map(str, arguments))} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def middle(values):
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def summarise_rounds(rounds, flop):
    """Make of the rounds medians and ranges, ratios within a round, and each contestant's share of the machine's best.

    rounds: a dict a round, by contestant what time_contestant() returns, and by library under "convolutions"
    the GFLOP/s by dtype. flop: of one image in training.
    """
    best = {
        dtype: max(rates[dtype] for measured in rounds for rates in measured["convolutions"].values())
        for dtype in ("float32", "bfloat16")
    }
    contestants = {}
    for letter, (name, dtype) in CONTESTANTS.items():
        if letter not in rounds[0]:  # an older record has fewer
            continue
        rates = middle([measured[letter]["images_per_second"] for measured in rounds])
        memory = middle([measured[letter]["peak_memory_mb"] for measured in rounds])
        share = rates["median"] * flop / 1e9 / best[dtype]
        contestants[letter] = {
            "name": name,
            "images_per_second": rates,
            "share_of_best": share,
            "peak_memory_mb": memory,
        }
    ratios = {}
    for ratio in RATIOS:
        above, below = ratio.split("/")
        if {above, below} <= {*contestants}:
            ratios[ratio] = middle(
                [measured[above]["images_per_second"] / measured[below]["images_per_second"] for measured in rounds]
            )
    return {"best_gflops": best, "contestants": contestants, "ratios": ratios}


def report(summary):
    """Return the summary as lines of text."""
    lines = [f"{'':36}{'images/s, median (range)':28}{'of the best':14}peak memory"]
    for letter, speed in summary["contestants"].items():
        rate = "{median:.0f} ({least:.0f} to {greatest:.0f})".format(**speed["images_per_second"])
        memory = f"{speed['peak_memory_mb']['median']:.0f} MB"
        lines.append(f"({letter}) {speed['name']:32}{rate:28}{speed['share_of_best']:<14.0%}{memory}")
    for name, ratio in summary["ratios"].items():
        lines.append("{}  {median:.2f} ({least:.2f} to {greatest:.2f})".format(name, **ratio))
    best = "{float32:.0f} GFLOP/s float32, {bfloat16:.0f} GFLOP/s bfloat16".format(**summary["best_gflops"])
    return [*lines, f"The machine's best, a 3x3 convolution, forward: {best}"]


def draw(summary, path):
    """Draw the contestants' rates as bars, a PNG; the summary with the machine in it."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for place, (letter, speed) in enumerate(summary["contestants"].items()):
        dtype, rate = CONTESTANTS[letter][1], speed["images_per_second"]
        error = [[rate["median"] - rate["least"]], [rate["greatest"] - rate["median"]]]
        color = {"float32": "tab:gray", "bfloat16": "tab:olive"}[dtype]
        axes.barh(place, rate["median"], xerr=error, color=color, capsize=4)
        axes.annotate(
            f"{rate['median']:.0f}, {speed['share_of_best']:.0%} of the machine's best in {dtype}",
            (rate["greatest"], place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xlim(0, 1.02 * max(speed["images_per_second"]["greatest"] for speed in summary["contestants"].values()))
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
    add("--contestant", choices=PREPARE, help=argparse.SUPPRESS)  # these three are for the processes it starts
    add("--images", type=cli.number(int, 1), help=argparse.SUPPRESS)
    add("--convolutions", choices=CONVOLUTIONS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.contestant:
        return print(json.dumps(time_contestant(args.contestant, args.images)))
    if args.convolutions:
        return print(json.dumps(CONVOLUTIONS[args.convolutions]()))
    if not importlib.util.find_spec("torch"):
        raise InputError("no PyTorch here: pip install -r benchmarks/requirements.txt")

    flop = training_flop(prepare_model())
    rounds, images = (QUICK_ROUNDS, QUICK_IMAGES) if args.quick else (ROUNDS, IMAGES)
    rounds = args.rounds or rounds
    plain_images = 2 * images if args.quick else PLAIN_EPOCHS * len(load_data()[0][0])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    measured = []
    for number in range(1, rounds + 1):
        speeds = {"convolutions": {}}
        for library in CONVOLUTIONS:
            speeds["convolutions"][library] = in_a_process(
                "torch" if library == "pytorch" else library, "--convolutions", library
            )
            best = ", ".join(f"{rate:.0f} GFLOP/s {dtype}" for dtype, rate in speeds["convolutions"][library].items())
            print(f"round {number}/{rounds}: convolution in {library}: {best}", flush=True)
        for letter, (name, _) in CONTESTANTS.items():
            count = plain_images if letter == "c" else images
            speeds[letter] = in_a_process(
                "torch" if letter in OF_PYTORCH else "tensorflow", "--contestant", letter, "--images", count
            )
            rate = speeds[letter]["images_per_second"]
            print(f"round {number}/{rounds}: ({letter}) {name}: {rate:.0f} images/s over {count}", flush=True)
        measured.append(speeds)
        summary = summarise_rounds(measured, flop)  # after every round, so that a stopped run leaves the rounds it had
        record = {"machine": machine(), "flop_per_image": flop, **summary, "rounds": measured}
        write_json(args.output_dir / "throughput.json", record)
        draw(record, args.output_dir / "throughput.png")
    print("", *report(summary), f"Wrote throughput.json and throughput.png to {args.output_dir}.", sep="\n")


if __name__ == "__main__":
    cli.start(main)
