"""Train the article's network on MNIST, by default as the article does.

    python train.py
    python train.py --resume                     go on with a run that was stopped
    python train.py --resume --epochs 40         train a finished run further
    python train.py --loss-weights 0.9 0 --output-dir outputs/classifier

Writes settings.json, history.csv and model.keras after every epoch.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH=1 leaves out
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import argparse
import math
import time
from collections.abc import Iterable, Iterator

import keras

from data import DATA, InputError, epoch_order, preprocess
from model import CLASS_NUM, INPUT_SHAPE, prepare_model
from support import cli, run_folder
from support.backend import (
    MEAN,
    PREDICT_BATCH_SIZE,
    check_fit,
    draw_16_bits,
    keras_batches,
    keras_settings,
    means_over_images,
)
from support.callbacks import CheckColumns, ProgressBar, Reseed, stoppable
from support.files import locked

EPOCHS = 20  # [A]
BATCH_SIZE = 32  # [R]
LEARNING_RATE = 0.01  # [A]
MOMENTUM = 0.9  # [A] with Nesterov's correction
LOSS_WEIGHTS = {"classification": 0.9, "autoencoder": 0.1}  # [A]
SEED = 0  # ours; the original fixes none
PRECISION = "float32"  # as the original; the others compute in 16 bits and keep float32 weights
PRECISIONS = (PRECISION, "mixed_bfloat16", "mixed_float16")
EPOCH_LINE = (
    "epoch {epoch}/{epochs}: loss {loss:.4f}, accuracy {classification_accuracy:.2%}; "
    "test {val_loss:.4f}, {val_classification_accuracy:.2%}; {seconds:.0f} s"
)


def compile_model(model: keras.Model, loss_weights: dict[str, float] = LOSS_WEIGHTS) -> keras.Model:
    """Compile the network [A]: a loss and a weight for each named output, SGD with Nesterov momentum.

    loss_weights: a dict by output. Returns the model.
    """
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        loss={"classification": "categorical_crossentropy", "autoencoder": "mean_squared_error"},
        loss_weights=loss_weights,
        # Ours; they change nothing in the training. MEAN is over the images, where Keras' own column of a loss is,
        # on TensorFlow, the mean over the batches, of which the last may be smaller.
        metrics={
            "classification": ["accuracy", keras.metrics.CategoricalCrossentropy(name=MEAN)],
            "autoencoder": [keras.metrics.MeanSquaredError(name=MEAN)],
        },
    )
    return model


def new_model(
    seed: int = SEED,
    loss_weights: dict[str, float] = LOSS_WEIGHTS,
    precision: str = PRECISION,
    input_shape: tuple[int, int, int] = INPUT_SHAPE,
    class_num: int = CLASS_NUM,
    **more,
) -> keras.Model:
    """Return the compiled network with initial weights that depend on the seed.

    seed: of Python, NumPy and the backend too. precision: one of PRECISIONS; the weights are float32 under each.
    input_shape, class_num and more: as for prepare_model().
    """
    keras.utils.set_random_seed(seed)
    with keras_settings(precision):
        model = compile_model(prepare_model(input_shape, class_num, **more), loss_weights)
    draw_16_bits(model)
    return model


def train(
    model: keras.Model,
    train_set: tuple,
    test_set: tuple,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = SEED,
    first_epoch: int = 0,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    verbose: int = 0,
) -> Iterator[dict[str, float]]:
    """Train a compiled model epoch by epoch, and yield the row of each for history.csv.

    train_set, test_set: (images, labels) as load_data() gives them; the test set is measured after every
    epoch, for the curves only. first_epoch: how many of the epochs the model has behind it. verbose: 1 shows a bar.
    callbacks: Keras' own. Each epoch is a fit() of its own, so one that remembers begins anew in each: EarlyStopping
    never stops, ReduceLROnPlateau never lowers, CSVLogger keeps one row. To stop early, leave the loop.
    A row is a dict: epoch, seconds, and what Keras measured, losses as means over the images, accuracies from 0 to 1.
    Raises FloatingPointError when a loss becomes infinite or NaN, and InputError, before the first step, when the
    images or labels do not fit the model.
    """
    for epoch in range(first_epoch, epochs):
        started = time.perf_counter()
        x, steps = keras_batches(model, *train_set, batch_size, epoch_order(len(train_set[0]), seed, epoch))
        test_x, test_steps = keras_batches(model, *test_set, PREDICT_BATCH_SIZE)
        ours = [keras.callbacks.TerminateOnNaN(), Reseed(seed, epoch), *([ProgressBar()] if verbose else [])]
        with keras_settings():
            history = model.fit(
                x,
                steps_per_epoch=steps,
                initial_epoch=epoch,
                epochs=epoch + 1,
                shuffle=False,  # epoch_order() has done it
                validation_data=test_x,
                validation_steps=test_steps,
                callbacks=[*ours, *callbacks],
                verbose=0,
            ).history
        # The last step can break the weights after its own loss was taken; the test images tell.
        loss = history["loss"][0] + history["val_loss"][0]
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}")
        row = means_over_images({name: values[0] for name, values in history.items()})
        yield {"epoch": epoch + 1, **row, "seconds": time.perf_counter() - started}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, data_help="MNIST")
    add = parser.add_argument
    add("--epochs", type=cli.number(int, 1), default=EPOCHS, help="passes over the training images (default: 20)")
    add("--batch-size", type=cli.number(int, 1), default=BATCH_SIZE, help="images in a training step (default: 32)")
    add("--seed", type=cli.number(int, 0), default=SEED, help="seed of weights, image order, Dropout (default: 0)")
    add("--limit", type=cli.number(int, 1), help="train on the first LIMIT images only, for a quick try")
    add("--precision", choices=PRECISIONS, default=PRECISION, help="what the layers compute in (default: float32)")
    default, names = list(LOSS_WEIGHTS.values()), tuple(name.upper() for name in LOSS_WEIGHTS)
    weights = {"type": cli.number(float, 0), "nargs": len(names), "default": default, "metavar": names}
    add("--loss-weights", **weights, help=f"of the outputs (default: {' '.join(map(str, default))})")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on with the run in the output directory")
    mode.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    args = parser.parse_args(argv)
    if args.resume:  # what the command line leaves open is as it was
        saved = run_folder.read_settings(args.output_dir)
        parser.set_defaults(**{name: saved[name] for name in run_folder.RUN_FLAGS})
        args = parser.parse_args(argv)
        if args.precision not in PRECISIONS or len(args.loss_weights) != len(LOSS_WEIGHTS):
            raise InputError(f"cannot resume: {args.output_dir} is not a run of this train.py, see its settings.json")
        args.data = args.data or run_folder.data_of_run(args.output_dir)
    if not any(args.loss_weights):
        parser.error("argument --loss-weights: with 0 everywhere there is nothing to train")
    args.data = args.data or DATA
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folder = args.output_dir
    ((images, labels), test_set, class_names), data = run_folder.load_with_entry(args.data)
    train_set = images[: args.limit], labels[: args.limit]
    terminal = bool(sys.stdout) and sys.stdout.isatty()
    run_folder.make(folder)
    with locked(folder / run_folder.LOCK, "train.py") as lock:
        loss_weights = dict(zip(LOSS_WEIGHTS, args.loss_weights))
        model = new_model(args.seed, loss_weights, args.precision, preprocess(images[:1]).shape[1:], len(class_names))
        check_fit(model, images, labels)
        settings, history = run_folder.settings_of(model, args, data), []
        if args.resume:
            settings, history = run_folder.resume(folder, model, settings)
        else:
            settings = run_folder.begin(folder, settings, args.overwrite)
        now, done = settings["starts"][-1], f"{len(history)} of {args.epochs} epochs done"
        try:
            with stoppable() as stop:
                print(f"Training on {now['device']}, {len(train_set[0])} images: {done}", flush=True)
                for name, value in settings["starts"][0].items():
                    if name != "after_epoch" and now.get(name, value) != value:
                        began, goes_on = map(run_folder.in_words, (value, now[name]))
                        print(f"The numbers may differ, this run began with {name} {began}, not {goes_on}")
                if len(history) == args.epochs:
                    print("Nothing is left to train; more --epochs train it further")
                options = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
                options |= {
                    "first_epoch": len(history),
                    "callbacks": [stop, CheckColumns(history)],
                    "verbose": int(terminal),
                }
                for row in train(model, train_set, test_set, **options):
                    run_folder.save_epoch(folder, model, settings, [*history, row], lock)
                    history.append(row)
                    print(EPOCH_LINE.format(epochs=args.epochs, **row), flush=True)
        except (KeyboardInterrupt, OSError, MemoryError, FloatingPointError) as error:
            advice = f"go on with: {cli.next_command('train.py --resume', folder)}"
            if isinstance(error, FloatingPointError):  # the same step would break again
                advice = "try other --loss-weights, or a smaller LEARNING_RATE in train.py"
            kept = f"epoch {len(history)} is the last one kept" if history else "no epoch had ended"
            cli.give_up(error, f"; {kept}; {advice}")
    print(f"Wrote the run to {folder}. Next: {cli.next_command('evaluate.py', folder)}")


if __name__ == "__main__":
    cli.start(main)
