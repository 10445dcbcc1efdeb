"""What the network does on a GPU, with JAX or PyTorch: is it the same, how fast does it train, are its losses finite?

    KERAS_BACKEND=jax python benchmarks/gpu.py               some eight minutes on a recent GPU
    KERAS_BACKEND=torch python benchmarks/gpu.py --epochs 3
    KERAS_BACKEND=jax python benchmarks/gpu.py --limit 320 --epochs 2      a try, on any machine

Everything runs in a process of its own, with the variables that the table names. Adds what it measured to gpu.json in
the output directory, and prints it. The study's runs need experiments/requirements.txt.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

if __name__ == "__main__":
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import keras
import numpy as np

from data import InputError, load_data
from support import cli
from support.backend import reseed
from support.files import write_json
from support.run_folder import environment
from train import EPOCHS, new_model, train

OUTPUT_DIR = Path("outputs/gpu")
# A recent NVIDIA GPU may multiply float32 as TF32, with 10 bits of the 23 after the point.
FULL = {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
WAYS = {  # to compute the study's runs: what could be at fault is taken away
    "full float32": {},
    "again": {},
    "no autotuning": {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},
    "no command buffer": {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="},
    "deterministic": {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"},
    "one kernel at a time": {"CUDA_LAUNCH_BLOCKING": "1"},
}
KINDS = {"outputs before": "test_", "losses": "train_", "weights": ("kernel_", "bias_"), "outputs after": "after_"}
# Part E's seed 4 with 1,000 labels: with JAX on an H100 the first became NaN in step 423, the second in step 794.
STUDY = {"alone": 0, "weight 10": 10}


def parity():
    """Yield how far the network is from the recording of the original program: a dict, the largest differences."""
    from tests import parity

    found, _ = parity.without_dropout()
    yield {kind: max(value for key, value in found.items() if key.startswith(begin)) for kind, begin in KINDS.items()}


def training(limit, epochs):
    """Train as train.py does; yields after each epoch the seconds, images a second after the first, and the row."""
    (images, labels), test_set, _ = load_data()
    seconds, row = [], {}
    try:
        for row in train(new_model(), (images[:limit], labels[:limit]), test_set, epochs):
            seconds.append(row["seconds"])
            rate = len(images[:limit]) * (len(seconds) - 1) / sum(seconds[1:]) if seconds[1:] else None
            yield {**row, "seconds": sum(seconds), "images_per_second": rate}
    except FloatingPointError as error:
        yield {**row, "seconds": sum(seconds), "broken": str(error)}


def study(weight, limit):
    """Do a run of the study's part E; yields the step in which the loss was no number, and the last losses."""
    from one_run import choose_images, new_network
    from second_task import new_run

    from data import make_targets, preprocess

    (images, labels), *_ = load_data()
    run = new_run("E", (0.9, weight), 4, 1000, 1250 if limit is None else limit // 32, held_out=5000)
    network, (indices, _, steps_an_epoch) = new_network(run), choose_images(run, labels)
    losses, started = [], time.perf_counter()
    for step, chosen in enumerate(indices):
        if step % steps_an_epoch == 0:
            reseed(network, run["seed"], step // steps_an_epoch)
        x = preprocess(images[chosen])
        targets = make_targets(x, labels[chosen], 10)
        loss = network.train_on_batch(x, tuple(targets[name] for name in network.output_names))
        losses.append(float(np.ravel(loss)[0]))
        if not np.isfinite(losses[-1]):
            break
    found = {"nan_in_step": None if np.isfinite(losses[-1]) else len(losses), "last_losses": losses[-6:]}
    yield {**found, "seconds": time.perf_counter() - started}


def plan(backend, epochs, limit):
    """Yield what is measured: name, variables of the process, and the call with its arguments."""
    for name, variables in (("as it comes", {}), ("full float32", FULL)):
        yield f"parity, {name}", variables, ("parity",)
        yield f"training, {name}", variables, ("training", limit, epochs)
    if backend == "jax":
        for way, variables in WAYS.items():
            for arm, weight in STUDY.items():
                yield f"study, {arm}, {way}", {**FULL, **variables}, ("study", weight, limit)


def report(results):
    """Return what was measured as lines of text."""
    lines = []
    for name, found in results.items():
        if "parity" in name:
            text = "greatest differences: " + ", ".join(f"{kind} {found[kind]:.1e}" for kind in KINDS)
        elif "study" in name:
            text = f"NaN in step {found['nan_in_step']}" if found["nan_in_step"] else "finite"
        elif found.get("broken"):
            text = found["broken"]
        else:
            text = "epoch {epoch}, {seconds:.0f} s, {val_classification_accuracy:.2%}".format(**found)
            text += f", {found['images_per_second']:.0f} images/s" if found["images_per_second"] else ""
        lines.append(f"{name:42}{text}")
    return lines


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    parser.add_argument("--epochs", type=cli.number(int, 1), default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--limit", type=cli.number(int, 32), help="images of an epoch and of the study's runs")
    parser.add_argument("--do", help=cli.argparse.SUPPRESS)  # in a process of its own: what, as JSON
    args = parser.parse_args(argv)
    if args.do:
        what, *arguments = json.loads(args.do)
        for found in {"parity": parity, "training": training, "study": study}[what](*arguments):
            print(json.dumps({**found, "on": environment()}), flush=True)
        return
    backend = keras.backend.backend()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "gpu.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, variables, call in plan(backend, args.epochs, args.limit):
        command, key = [sys.executable, __file__, "--do", json.dumps(call)], f"{backend}: {name}"
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}) as process:
            for line in process.stdout:  # one, or one an epoch
                results[key] = {**json.loads(line), "variables": variables}
                write_json(path, results)
        if process.returncode:
            raise InputError(f"{key} ended with status {process.returncode}")
        print("\n".join(report({key: results[key]})), flush=True)


if __name__ == "__main__":
    cli.start(main)
