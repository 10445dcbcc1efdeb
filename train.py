"""Train the article's network on MNIST, by default as the article does.

    python train.py
    python train.py --epochs 1
    python train.py --loss-weights 1 0 --output-dir outputs/no-autoencoder

Writes settings.json, history.csv (one row an epoch) and model.keras to the output directory.
"""

import argparse
import csv
import json
import math
import platform
import sys
import time
from importlib.metadata import version

import numpy as np

import data

# Keras is imported where it is needed: that takes seconds, and a mistyped argument is answered at once.

EPOCHS = 20  # [A]
BATCH_SIZE = 32  # [R]
LOSS_WEIGHTS = (0.9, 0.1)  # [A] classification, autoencoder
LEARNING_RATE = 0.01  # [A]
MOMENTUM = 0.9  # [A] with Nesterov's correction
SEED = 0  # ours; the original fixes none

RUN_FILES = ("settings.json", "history.csv", "model.keras")
LOSSES = ("loss", "classification_loss", "autoencoder_loss", "classification_accuracy")
HISTORY = ("epoch", *LOSSES, *(f"val_{name}" for name in LOSSES), "seconds")


def compile_model(model, loss_weights=LOSS_WEIGHTS):
    """Compile the network [A]: a loss and a weight for each named output, SGD with Nesterov momentum.

    loss_weights: of classification and autoencoder. Returns the model.
    """
    import keras

    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        loss={"classification": "categorical_crossentropy", "autoencoder": "mean_squared_error"},
        loss_weights=dict(zip(("classification", "autoencoder"), loss_weights)),
        metrics={"classification": "accuracy"},  # ours; it changes nothing in the training
    )
    return model


def new_model(seed=SEED, loss_weights=LOSS_WEIGHTS):
    """Return the compiled network with initial weights that depend on the seed."""
    from model import keras, prepare_model

    keras.utils.set_random_seed(seed)
    return compile_model(prepare_model(), loss_weights)


def seed_dropout(model, seed, epoch):
    """Make the Dropout masks of an epoch depend on (seed, epoch) alone, as the order of the images does."""
    import keras

    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    seeds = np.random.default_rng([seed, epoch, 1]).integers(2**31, size=len(dropouts))
    for layer, layer_seed in zip(dropouts, seeds):
        layer.seed_generator.state.assign([layer_seed, 0])


def train(model, train_set, test_set, *, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=SEED, after_epoch=None, verbose=0):
    """Train a compiled model; the test set is measured after every epoch, for the curves only.

    train_set, test_set: (images, labels) as load_mnist gives them. Returns the history: a dict an
    epoch with the keys of HISTORY, losses as means over the images, accuracies from 0 to 1. After
    each epoch after_epoch(row) is called with its row.
    """
    import keras

    rows = []
    started = 0.0

    def begin(epoch, logs):
        nonlocal started
        started = time.perf_counter()
        seed_dropout(model, seed, epoch)

    def end(epoch, logs):
        measured = {name: logs[name] for name in HISTORY[1:-1]}
        rows.append({"epoch": epoch + 1, **measured, "seconds": time.perf_counter() - started})
        if after_epoch:
            after_epoch(rows[-1])

    x, steps = data.feed(*train_set, batch_size, seed)
    test_x, test_steps = data.feed(*test_set, data.PREDICT_BATCH_SIZE)
    model.fit(
        x,
        steps_per_epoch=steps,
        epochs=epochs,
        shuffle=False,  # batches() has done it
        validation_data=test_x,
        validation_steps=test_steps,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)],
        verbose=verbose,
    )
    return rows


def write_history(path, rows):
    """Write the rows that train() returns as CSV, numbers with six significant digits."""
    with data.whole_file(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def read_history(path):
    """Read what write_history() wrote; raises InputError when the file is missing or holds else."""
    try:
        with open(path, newline="") as file:
            return [{name: float(row[name]) for name in HISTORY} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise data.InputError(f"no history {path}: run python train.py first") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise data.InputError(f"{path}: not a history that train.py wrote") from None


def write_model(path, model):
    """Save the network alone: a model of the same layers that was never compiled has no optimizer state."""
    import keras

    with data.whole_file(path) as temporary:
        keras.Model(model.inputs, model.outputs, name=model.name).save(temporary)


def write_settings(path, args, images):
    """Write what defines the run, and the versions that it runs on."""
    import keras

    backend = keras.backend.backend()
    settings = {name: getattr(args, name) for name in ("epochs", "batch_size", "seed", "limit", "loss_weights")}
    settings |= {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "nesterov": True}
    settings |= {"data": args.data.name, "training_images": len(images), "backend": backend}
    settings["versions"] = {"python": platform.python_version()}
    settings["versions"] |= {name: version(name) for name in ("keras", backend, "numpy")}
    with data.whole_file(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")


def loss_weight(text):
    """The argparse type of a finite number from 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def parse_args():
    parser = data.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--epochs", type=data.whole_number(1), default=EPOCHS, help="passes over the training images (default: 20)")
    add("--batch-size", type=data.whole_number(1), default=BATCH_SIZE, help="images in a training step (default: 32)")
    add("--seed", type=data.whole_number(0), default=SEED, help="of weights, image order and Dropout (default: 0)")
    add("--limit", type=data.whole_number(1), help="train on the first LIMIT images only, for a quick try")
    add(
        "--loss-weights",
        type=loss_weight,
        nargs=2,
        default=LOSS_WEIGHTS,
        metavar=("C", "A"),
        help="of classification and autoencoder (default: 0.9 0.1)",
    )
    add("--overwrite", action="store_true", help="replace the run that the output directory holds")
    return parser.parse_args()


def main():
    args = parse_args()
    (images, labels), test_set = data.load_mnist(args.data)
    images, labels = images[: args.limit], labels[: args.limit]
    settings_path, history_path, model_path = paths = [args.output_dir / name for name in RUN_FILES]
    if any(path.exists() for path in paths) and not args.overwrite:
        ways = "replace it with --overwrite, or choose another --output-dir"
        raise data.InputError(f"{args.output_dir} already holds a run: {ways}")
    args.output_dir.mkdir(parents=True, exist_ok=True)

    model = new_model(args.seed, args.loss_weights)
    for path in paths:
        path.unlink(missing_ok=True)
    write_settings(settings_path, args, images)
    history = []
    terminal = sys.stdout.isatty()  # there Keras' progress bar says it all

    def after_epoch(row):
        history.append(row)
        write_history(history_path, history)
        if not terminal:
            print(
                "epoch {epoch}/{epochs}: loss {loss:.4f}, accuracy {classification_accuracy:.4f}, test loss "
                "{val_loss:.4f}, test accuracy {val_classification_accuracy:.4f}, {seconds:.0f} s".format(
                    epochs=args.epochs, **row
                ),
                flush=True,
            )

    train(
        model,
        (images, labels),
        test_set,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        after_epoch=after_epoch,
        verbose=int(terminal),
    )
    write_model(model_path, model)
    print(f"Wrote {', '.join(map(str, paths))}. Next: {data.next_command('evaluate.py', args)}")


if __name__ == "__main__":
    data.run(main)
