"""Measure what the second task costs: the time of a training step with and without the decoder.

    python experiments/step_time.py --output-dir outputs/second_task

The two networks take turns, round after round, and the ratio is taken within a round, so that a machine
that is slower for a while favours neither. Writes step_time.json. Wants an idle machine.
"""

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cli import ArgumentParser, start, whole_number
from data import CLASS_NUM, load_mnist, preprocess
from experiments.second_task import OUTPUT_DIR
from run_folder import describe_start, write_json
from train import BATCH_SIZE, LEARNING_RATE, MOMENTUM, new_model

ROUNDS, STEPS = 7, 150


def without_decoder(model):
    """Return the classifier alone, compiled as the whole network is: its layers up to the classification."""
    from model import keras

    alone = keras.Model(model.input, model.get_layer("classification").output)
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    alone.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return alone


def measure(rounds=ROUNDS, steps=STEPS):
    """Return a dict: milliseconds a step of both in every round, and the ratios with median and range."""
    from model import keras

    (images, labels), _ = load_mnist()
    x = preprocess(images[: steps * BATCH_SIZE])
    y = keras.utils.to_categorical(labels[: len(x)], CLASS_NUM)
    whole = new_model()
    contestants = {
        "with_decoder": (whole, {"classification": y, "autoencoder": x}),
        "without_decoder": (without_decoder(new_model()), y),
    }
    found = {name: [] for name in contestants}
    clock = {}
    # From the end of the first step to the end of the last: after it, TensorFlow may wait, as feed() in data.py says.
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: clock.update({"first" if step == 0 else "last": time.perf_counter()})
    )
    for number in range(rounds + 1):
        for name, (model, targets) in contestants.items():
            model.fit(x, targets, batch_size=BATCH_SIZE, epochs=1, shuffle=False, verbose=0, callbacks=[watch])
            if number:  # the first round warms up
                found[name].append(1000 * (clock["last"] - clock["first"]) / (steps - 1))
    ratios = [one / other for one, other in zip(found["with_decoder"], found["without_decoder"])]
    ratio = {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
    return {"milliseconds_a_step": found, "steps": steps, "ratio": ratio, "start": describe_start()}


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=ROUNDS, help=f"default: {ROUNDS}")
    parser.set_defaults(output_dir=OUTPUT_DIR)
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    found = measure(args.rounds)
    write_json(args.output_dir / "step_time.json", found)
    ratio = "{median:.2f} ({least:.2f} to {greatest:.2f})".format(**found["ratio"])
    print(f"A step with the decoder takes {ratio} times as long as one without.")
    print(f"Wrote step_time.json to {args.output_dir}.")


if __name__ == "__main__":
    start(main)
