"""Train the article's network on MNIST, by default as the article does.

    python train.py
    python train.py --resume                     go on with a run that was stopped
    python train.py --resume --epochs 40         train a finished run further
    python train.py --loss-weights 0.9 0 --output-dir outputs/classifier

After 20 epochs, one to two hours on two cores, 99.22 % of the test images are right: 68 to 87 errors in 10,000 (five
seeds). Writes settings.json, history.csv and model.keras after every epoch.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH=1 leaves out
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import argparse
import itertools
import math
from collections.abc import Iterable

import keras

from data import DATA, batches, check_fit, epoch_order, even_batches, load_data, output_shapes, preprocess
from model import CLASS_NUM, INPUT_SHAPE, prepare_model
from support import cli, run_folder
from support.backend import draw_16_bits, feed, keras_settings
from support.callbacks import ProgressBar, Reseed, StopAtNaN, stoppable
from support.data_file import data_entry, read_bytes
from support.errors import InputError
from support.files import locked
from support.record import Record
from support.resume import begin, resume, settings_of, what_differs

EPOCHS = 20  # [A]
BATCH_SIZE = 32  # [R]
LEARNING_RATE = 0.01  # [A]
MOMENTUM = 0.9  # [A] with Nesterov's correction
LOSS_WEIGHTS = {"classification": 0.9, "autoencoder": 0.1}  # [A]
SEED = 0  # ours; the original fixes none
PRECISION = "float32"  # as the original; the others compute in 16 bits and keep float32 weights
PRECISIONS = (PRECISION, "mixed_bfloat16", "mixed_float16")


def compile_model(model: keras.Model, loss_weights: dict[str, float] = LOSS_WEIGHTS) -> keras.Model:
    """Compile the network [A]: a loss and a weight for each named output, SGD with Nesterov momentum.

    loss_weights: a dict by output. Returns the model.
    """
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        loss={"classification": "categorical_crossentropy", "autoencoder": "mean_squared_error"},
        loss_weights=loss_weights,
        metrics={"classification": "accuracy"},  # ours; it changes nothing in the training
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
) -> keras.callbacks.History:
    """Train a compiled model by one fit(); returns what Keras' fit() does, its History.

    train_set, test_set: (images, labels) as load_data() gives them; the test set is measured after every epoch, for
    the curves only. first_epoch: how many of the epochs the model has behind it. callbacks: any of Keras'. verbose: 1
    shows a bar. Accuracies are from 0 to 1. Losses are means: those of the test set over its images, those of the
    training over its batches, of which the last may be smaller. Raises FloatingPointError when a loss becomes infinite
    or NaN, and InputError, before the first step, when the images or labels do not fit the model.
    """
    for images, labels in (train_set, test_set):
        check_fit(model, images, labels)
    count, outputs = len(train_set[0]), output_shapes(model)
    test_batch_size, test_steps = even_batches(len(test_set[0]))

    def training_batches():
        for epoch in itertools.count(first_epoch):
            yield from batches(*train_set, batch_size, epoch_order(count, seed, epoch), outputs)

    ours = [StopAtNaN(), Reseed(seed), *([ProgressBar()] if verbose else [])]
    with keras_settings():
        return model.fit(
            feed(training_batches),
            steps_per_epoch=math.ceil(count / batch_size),
            initial_epoch=first_epoch,
            epochs=epochs,
            shuffle=False,  # epoch_order() has done it
            validation_data=feed(lambda: batches(*test_set, test_batch_size, outputs=outputs), test_steps),
            validation_steps=test_steps,
            callbacks=[*ours, *callbacks],
            verbose=0,
        )


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
    folder, content = args.output_dir, read_bytes(args.data)
    (images, labels), test_set, class_names = load_data(args.data, content)
    train_set = images[: args.limit], labels[: args.limit]
    run_folder.make(folder)
    with locked(folder / run_folder.LOCK, "train.py") as lock:
        loss_weights = dict(zip(LOSS_WEIGHTS, args.loss_weights))
        model = new_model(args.seed, loss_weights, args.precision, preprocess(images[:1]).shape[1:], len(class_names))
        check_fit(model, images, labels)
        settings, history = settings_of(model, args, data_entry(args.data, content)), []
        if args.resume:
            settings, history = resume(folder, model, settings)
        else:
            settings = begin(folder, settings, args.overwrite)
        device, done = settings["starts"][-1]["device"], f"{len(history)} of {args.epochs} epochs done"
        try:
            with stoppable() as stop:
                print(f"Training on {device}, {len(train_set[0])} images: {done}", flush=True)
                for difference in what_differs(settings):
                    print(f"The numbers may differ, this run began with {difference}")
                if len(history) == args.epochs:
                    print("Nothing is left to train; more --epochs train it further")
                train(
                    model,
                    train_set,
                    test_set,
                    epochs=args.epochs,
                    batch_size=args.batch_size,
                    seed=args.seed,
                    first_epoch=len(history),
                    callbacks=[stop, Record(folder, settings, history, lock)],
                    verbose=int(bool(sys.stdout) and sys.stdout.isatty()),
                )
        except (KeyboardInterrupt, OSError, MemoryError, FloatingPointError) as error:
            advice = f"go on with: {cli.next_command('train.py --resume', folder)}"
            if isinstance(error, FloatingPointError):  # the same step would break again
                advice = "try other --loss-weights, or a smaller LEARNING_RATE in train.py"
            kept = f"epoch {len(history)} is the last one kept" if history else "no epoch had ended"
            cli.give_up(error, f"; {kept}; {advice}")
    print(f"Wrote the run to {folder}. Next: {cli.next_command('evaluate.py', folder)}")


if __name__ == "__main__":
    cli.start(main)
