"""Measure what the second task costs: the time of a training step with and without the decoder.

    python -m benchmarks.step_time --output-dir outputs/second_task

The two networks take turns, round after round, and the ratio is taken within a round, so that a machine
that is slower for a while favours neither. Writes step_time.json. Wants an idle machine.
"""

if __name__ == "__main__":
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import statistics
import time
from pathlib import Path

import keras
import numpy as np

from data import load_data, make_targets, preprocess
from experiments.steps import without_decoder
from support import cli
from support.environment import environment
from support.files import write_json
from train import BATCH_SIZE, new_model

OUTPUT_DIR = Path("outputs/second_task")
ROUNDS, STEPS = 7, 150


def time_steps(rounds=ROUNDS, steps=STEPS):
    """Return a dict: milliseconds a step of both in every round, and the ratios with median and range."""
    (images, labels), _, class_names = load_data()
    x = preprocess(images[: steps * BATCH_SIZE])
    targets = make_targets(x, labels[: len(x)], len(class_names))
    whole = new_model()
    contestants = {
        "with_decoder": (whole, tuple(targets.values())),
        "without_decoder": (without_decoder(new_model(), metrics=["accuracy"]), (targets["classification"],)),
    }
    milliseconds = {name: [] for name in contestants}
    clock = {}
    # From the end of the first step to the end of the last: what follows it is no training.
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: clock.update({"first" if step == 0 else "last": time.perf_counter()})
    )
    for number in range(rounds + 1):
        for name, (model, targets) in contestants.items():
            model.fit(x, targets, batch_size=BATCH_SIZE, epochs=1, shuffle=False, verbose=0, callbacks=[watch])
            if number:  # the first round warms up
                milliseconds[name].append(1000 * (clock["last"] - clock["first"]) / (steps - 1))
    return {"milliseconds_a_step": milliseconds, "steps": steps, "ratio": ratio(milliseconds), "start": environment()}


def ratio(milliseconds):
    """Return how many times as long a step with the decoder takes: of the rounds' ratios median and range."""
    ratios = np.divide(milliseconds["with_decoder"], milliseconds["without_decoder"]).tolist()
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def report(times):
    """Return what time_steps() measured as a line of text."""
    ratio = "{median:.2f} ({least:.2f} to {greatest:.2f})".format(**times["ratio"])
    return f"A step with the decoder takes {ratio} times as long as one without."


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--rounds", type=cli.number(int, 1), default=ROUNDS, help=f"default: {ROUNDS}")
    parser.set_defaults(output_dir=OUTPUT_DIR)
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    times = time_steps(args.rounds)
    write_json(args.output_dir / "step_time.json", times)
    print(report(times))
    print(f"Wrote step_time.json to {args.output_dir}.")


if __name__ == "__main__":
    cli.start(main)
