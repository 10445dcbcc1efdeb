"""Train the article's network on MNIST, by default as the article does.

    python train.py
    python train.py --resume                     go on with a run that was stopped
    python train.py --resume --epochs 40         train a finished run further
    python train.py --loss-weights 1 0 --output-dir outputs/no-autoencoder

Writes settings.json, history.csv (one row an epoch), checkpoint.keras (after every epoch) and
model.keras (at the end) to the output directory.
"""

import argparse
import csv
import hashlib
import itertools
import json
import math
import platform
import signal
import sys
import time
import zipfile
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
PRECISION = "float32"  # as the original; the others compute in 16 bits and keep float32 weights
PRECISIONS = (PRECISION, "mixed_bfloat16", "mixed_float16")

RUN_FILES = ("settings.json", "history.csv", "checkpoint.keras", "model.keras")
ARGUMENTS = ("epochs", "batch_size", "seed", "limit", "loss_weights", "precision")
LOSSES = ("loss", "classification_loss", "autoencoder_loss", "classification_accuracy")
EPOCH_LINE = (
    "epoch {epoch}/{epochs}: loss {loss:.4f}, accuracy {classification_accuracy:.2%}, "
    "test loss {val_loss:.4f}, test accuracy {val_classification_accuracy:.2%}, {seconds:.0f} s"
)
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
        # XLA on JAX and on TensorFlow's GPUs; none on PyTorch, nor on TensorFlow's CPU, where it is 2.4 times as slow.
        jit_compile="auto",
    )
    return model


def new_model(seed=SEED, loss_weights=LOSS_WEIGHTS, precision=PRECISION):
    """Return the compiled network with initial weights that depend on the seed.

    precision: one of PRECISIONS, which becomes Keras' dtype policy; the weights are float32 under each.
    """
    from model import keras, prepare_model

    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    model = compile_model(prepare_model(), loss_weights)
    if precision != PRECISION and keras.backend.backend() == "tensorflow":
        for layer in dropouts(model):
            draw_16_bits(layer)
    return model


def dropouts(model):
    """Return the Dropout layers of a model."""
    import keras

    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def draw_16_bits(dropout):
    """Make a Dropout layer draw 16 random bits an element, on TensorFlow; it stays a stock layer wherever it is saved.

    Under the 16-bit policies TensorFlow draws 32 bits and keeps 7 or 10 of them, so that bfloat16
    makes 13/128 of a rate of 0.1, and the drawing takes a third of a training step.
    """
    import tensorflow as tf

    def call(inputs, training=False):
        if not training:
            return inputs
        seed = tf.cast(dropout.seed_generator.next() % tf.int32.max, tf.int32)
        count = tf.size(inputs)
        pairs = tf.random.stateless_uniform([(count + 1) // 2], seed, None, None, tf.uint32)
        bits = tf.reshape(tf.bitcast(pairs, tf.uint16), [-1])[:count]
        keep = tf.reshape(bits, tf.shape(inputs)) >= round(dropout.rate * 2**16)
        return inputs * (tf.cast(keep, inputs.dtype) * (1 / (1 - dropout.rate)))

    dropout.call = call


def seed_dropout(model, seed, epoch):
    """Make the Dropout masks of an epoch depend on (seed, epoch) alone, as the order of the images does."""
    import keras

    layers = dropouts(model)
    *seeds, last = np.random.default_rng([seed, epoch, 1]).integers(2**31, size=len(layers) + 1)
    for layer, layer_seed in zip(layers, seeds):
        layer.seed_generator.state.assign([layer_seed, 0])
    keras.utils.set_random_seed(int(last))  # for PyTorch, where Dropout draws from the global generator


def train(
    model,
    train_set,
    test_set,
    *,
    epochs=EPOCHS,
    batch_size=BATCH_SIZE,
    seed=SEED,
    first_epoch=0,
    after_epoch=None,
    verbose=0,
):
    """Train a compiled model; the test set is measured after every epoch, for the curves only.

    train_set, test_set: (images, labels) as load_mnist gives them. first_epoch: how many of the
    epochs the model has behind it. Returns the history: a dict an epoch with the keys of HISTORY,
    losses as means over the images, accuracies from 0 to 1. After each epoch after_epoch(row) is
    called with its row. Raises FloatingPointError when a loss becomes infinite or NaN.
    """
    import keras

    rows = []
    started = 0.0

    def begin(epoch, logs):
        nonlocal started
        started = time.perf_counter()

    def before_step(step, logs):
        if step == 0:  # not in begin(): what PyTorch draws from its generator to start a DataLoader would come between
            seed_dropout(model, seed, first_epoch + len(rows))

    def check(step, logs):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"the loss became {logs['loss']} in epoch {first_epoch + len(rows) + 1}")

    def end(epoch, logs):
        check(None, {"loss": logs["val_loss"]})  # the last step can break the weights after its loss was taken
        measured = {name: logs[name] for name in HISTORY[1:-1]}
        rows.append({"epoch": epoch + 1, **measured, "seconds": time.perf_counter() - started})
        if after_epoch:
            after_epoch(rows[-1])

    x, steps = data.feed(*train_set, batch_size, seed, first_epoch)
    test_x, test_steps = data.feed(*test_set, data.PREDICT_BATCH_SIZE)
    model.fit(
        x,
        steps_per_epoch=steps,
        epochs=epochs,
        initial_epoch=first_epoch,
        shuffle=False,  # batches() has done it
        validation_data=test_x,
        validation_steps=test_steps,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_begin=begin, on_train_batch_begin=before_step, on_train_batch_end=check, on_epoch_end=end
            )
        ],
        verbose=verbose,
    )
    return rows


def write_history(path, rows):
    """Write the rows that train() returns as CSV, numbers with six significant digits."""
    with data.whole_file(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def read_history(path, epochs=None):
    """Read what write_history() wrote, or its first epochs; raises InputError when the file does not hold them."""
    try:
        with open(path, newline="") as file:
            rows = itertools.islice(csv.DictReader(file), epochs)
            rows = [{name: float(row[name]) for name in HISTORY} for row in rows]
    except FileNotFoundError:
        raise data.InputError(f"no history {path}: python train.py writes it") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        rows = []
    if not rows or [row["epoch"] for row in rows] != list(range(1, (epochs or len(rows)) + 1)):
        raise data.InputError(f"{path}: damaged, it does not hold the epochs that train.py wrote")
    return rows


def write_model(path, model):
    """Save the network alone, without optimizer state, and computing in float32 whatever it was trained in."""
    from model import keras, prepare_model

    keras.config.set_dtype_policy(PRECISION)
    network = prepare_model()
    network.set_weights(model.get_weights())
    with data.whole_file(path) as temporary:
        network.save(temporary)


def write_checkpoint(path, model, epochs):
    """Save the network with the optimizer's state and the number of epochs behind it."""
    model.save(path)
    # The optimizer's own count leaves out the steps that mixed_float16 skips. A file more in the archive would
    # make Keras unpack it all to disk when it loads it.
    with zipfile.ZipFile(path, "a") as file:
        file.comment = str(epochs).encode()


def restore(path, model, steps):
    """Put the weights and the optimizer's state of a checkpoint into a new model, the same network compiled anew.

    steps: in an epoch. Returns how many epochs the checkpoint has behind it. Raises InputError when
    the file is no checkpoint of such a run.
    """
    from model import load_model

    saved = load_model(path, compile=True)
    model.optimizer.build(model.trainable_variables)
    new = [*model.weights, *model.optimizer.variables]
    old = [*saved.weights, *saved.optimizer.variables] if saved.compiled else []
    if [variable.shape for variable in new] != [variable.shape for variable in old]:
        raise data.InputError(f"{path}: not a checkpoint of this network")
    for variable, value in zip(new, old):
        variable.assign(value)
    try:
        with zipfile.ZipFile(path) as file:
            epochs = int(file.comment)
    except ValueError:
        raise data.InputError(f"{path}: not a checkpoint, it does not say of which epoch") from None
    skipped = epochs * steps - int(model.optimizer.iterations)
    if skipped < 0 or (skipped and model.dtype_policy.name != "mixed_float16"):
        raise data.InputError(f"{path}: not a checkpoint of this run, it has not its number of steps")
    return epochs


def describe(args):
    """Return what defines a run, and the versions that it runs on, as settings.json holds it."""
    import keras

    backend = keras.backend.backend()
    return {
        **{name: getattr(args, name) for name in ARGUMENTS},
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "nesterov": True,
        "data": args.data.name,
        "data_sha256": hashlib.sha256(args.data.read_bytes()).hexdigest(),
        "backend": backend,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("keras", backend, "numpy")},
    }


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
    add("--seed", type=data.whole_number(0), default=SEED, help="seed of weights, image order, Dropout (default: 0)")
    add("--limit", type=data.whole_number(1), help="train on the first LIMIT images only, for a quick try")
    add(
        "--loss-weights",
        type=loss_weight,
        nargs=2,
        default=list(LOSS_WEIGHTS),
        metavar=("C", "A"),
        help="weights of the losses of classification and autoencoder (default: 0.9 0.1)",
    )
    add("--precision", choices=PRECISIONS, default=PRECISION, help="what the layers compute in (default: float32)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on with the run in the output directory")
    how.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    args = parser.parse_args()
    if args.resume:  # what the command line leaves open is as it was
        saved, line = saved_run(args.output_dir)
        args = parser.parse_args([*line, *sys.argv[1:]], argparse.Namespace(saved=saved))
    return args


def saved_run(output_dir):
    """Return the settings of a run, as a dict and as a command line, so that the parser checks them too."""
    path = output_dir / "settings.json"
    try:
        settings = {"precision": PRECISION, **json.loads(path.read_text())}  # the first recorded runs do not name it
        line = []
        for name in ARGUMENTS:
            value = settings[name]
            if value is not None:
                line += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    except FileNotFoundError:
        raise data.InputError(f"nothing to resume in {output_dir}: run python train.py without --resume") from None
    except (KeyError, TypeError, ValueError):
        raise data.InputError(f"{path}: damaged, not the settings that train.py wrote") from None
    return settings, line


def open_run(args, steps):
    """Begin the run that the arguments describe, or go on with it; returns the model and the history so far.

    steps: in an epoch. Raises InputError, and leaves the output directory as it is, when that holds
    another run, or none that can be resumed.
    """
    settings_path, history_path, checkpoint_path, model_path = paths = [args.output_dir / name for name in RUN_FILES]
    if any(path.exists() for path in paths) and not args.resume and not args.overwrite:
        done = len(read_history(history_path)) if history_path.exists() else 0
        ways = "go on with --resume, replace it with --overwrite, or choose another --output-dir"
        raise data.InputError(f"{args.output_dir} holds a run that stopped after epoch {done}: {ways}")
    args.output_dir.mkdir(parents=True, exist_ok=True)

    model = new_model(args.seed, args.loss_weights, args.precision)
    settings = describe(args)
    history = []
    if args.resume:
        for name, value in settings.items():
            saved = args.saved.get(name)
            if name not in ("epochs", "data", "versions") and value != saved:
                raise data.InputError(f"cannot resume: {name} is {saved} in this run, not {value}")
        if checkpoint_path.exists():
            done = restore(checkpoint_path, model, steps)
            if done > args.epochs:
                raise data.InputError(f"cannot resume: this run has {done} epochs, more than --epochs {args.epochs}")
            history = read_history(history_path, done)
        elif model_path.exists() or (history_path.exists() and len(read_history(history_path)) > 1):
            # One epoch of history alone is right: the run was killed just before its first checkpoint was in place.
            raise data.InputError(f"cannot resume: {checkpoint_path} is missing; --overwrite starts this run anew")
    else:
        for path in paths:
            path.unlink(missing_ok=True)
    with data.whole_file(settings_path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")
    return model, history


def interrupt(number, frame):
    """Turn Ctrl-C and SIGTERM into the same exception."""
    raise KeyboardInterrupt(number)


def main():
    args = parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    (images, labels), test_set = data.load_mnist(args.data)
    train_set = images[: args.limit], labels[: args.limit]
    model, history = open_run(args, data.steps_in_epoch(len(train_set[0]), args.batch_size))
    _, history_path, checkpoint_path, model_path = (args.output_dir / name for name in RUN_FILES)
    terminal = sys.stdout.isatty()  # there Keras' progress bar says what is to be said

    def after_epoch(row):
        # Killed at whatever moment, this leaves a complete checkpoint, and a history that holds its epochs
        # and perhaps one more, which open_run() then drops.
        with data.whole_file(checkpoint_path) as temporary:
            write_checkpoint(temporary, model, row["epoch"])
            write_history(history_path, [*history, row])
        history.append(row)
        if not terminal:
            print(EPOCH_LINE.format(epochs=args.epochs, **row), flush=True)

    print(f"Training on {len(train_set[0])} images: {len(history)} of {args.epochs} epochs done", flush=True)
    settings = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed, "first_epoch": len(history)}
    try:
        train(model, train_set, test_set, **settings, after_epoch=after_epoch, verbose=int(terminal))
        write_model(model_path, model)
    except (KeyboardInterrupt, OSError, FloatingPointError) as error:
        reason, status = " ".join(str(error).split()), 1
        advice = f"go on with: {data.next_command('train.py --resume', args)}"
        if isinstance(error, KeyboardInterrupt):
            reason, status = "stopped", 128 + error.args[0]
        elif isinstance(error, FloatingPointError):  # the same step would break again
            advice = "try other --loss-weights, or a smaller LEARNING_RATE in train.py"
        kept = f"epoch {len(history)} is the last one kept" if history else "no epoch had ended"
        print(f"train.py: {reason}; {kept}; {advice}", file=sys.stderr)
        sys.exit(status)
    print(f"Wrote {', '.join(RUN_FILES)} to {args.output_dir}. Next: {data.next_command('evaluate.py', args)}")


if __name__ == "__main__":
    data.run(main)
