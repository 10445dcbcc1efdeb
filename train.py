"""Train the article's network on MNIST, by default as the article does.

    python train.py
    python train.py --resume                     go on with a run that was stopped
    python train.py --resume --epochs 40         train a finished run further
    python train.py --loss-weights 0.9 0 --output-dir outputs/classifier

Writes settings.json, history.csv and model.keras after every epoch.
"""

import math
import sys
import time

sys.path.insert(0, __file__.removesuffix("train.py"))  # which python -P and python -I leave out
import cli  # first, for it loads Keras without TensorFlow's greeting

import keras
import numpy as np

import run_folder
from data import DATA, PREDICT_BATCH_SIZE, InputError, check_fit, epoch_order, keras_batches, load_data, preprocess
from files import locked
from model import CLASS_NUM, INPUT_SHAPE, draw_16_bits, keras_settings, over_images, prepare_model

EPOCHS = 20  # [A]
BATCH_SIZE = 32  # [R]
LEARNING_RATE = 0.01  # [A]
MOMENTUM = 0.9  # [A] with Nesterov's correction
SEED = 0  # ours; the original fixes none
PRECISION = "float32"  # as the original; the others compute in 16 bits and keep float32 weights
PRECISIONS = (PRECISION, "mixed_bfloat16", "mixed_float16")
EPOCH_LINE = (
    "epoch {epoch}/{epochs}: loss {loss:.4f}, accuracy {classification_accuracy:.2%}, "
    "test loss {val_loss:.4f}, test accuracy {val_classification_accuracy:.2%}, {seconds:.0f} s"
)
LOSS_WEIGHTS = {"classification": 0.9, "autoencoder": 0.1}  # [A]


def compile_model(model, loss_weights=LOSS_WEIGHTS):
    """Compile the network [A]: a loss and a weight for each named output, SGD with Nesterov momentum.

    loss_weights: a dict by output. Returns the model.
    """
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        loss={"classification": "categorical_crossentropy", "autoencoder": "mean_squared_error"},
        loss_weights=loss_weights,
        # Ours; they change nothing in the training. "mean" is over the images, where Keras' own column of a loss is,
        # on TensorFlow, the mean over the batches, of which the last may be smaller.
        metrics={
            "classification": ["accuracy", keras.metrics.CategoricalCrossentropy(name="mean")],
            "autoencoder": [keras.metrics.MeanSquaredError(name="mean")],
        },
    )
    return model


def new_model(seed=SEED, loss_weights=LOSS_WEIGHTS, precision=PRECISION, input_shape=INPUT_SHAPE, class_num=CLASS_NUM):
    """Return the compiled network with initial weights that depend on the seed.

    seed: of Python, NumPy and the backend too. precision: one of PRECISIONS; the weights are float32 under each.
    input_shape, class_num: as for prepare_model().
    """
    keras.utils.set_random_seed(seed)
    with keras_settings(precision):
        model = compile_model(prepare_model(input_shape, class_num), loss_weights)
    draw_16_bits(model)
    return model


def reseed(model, seed, epoch):
    """Make what the layers draw in an epoch, as Dropout does, depend on (seed, epoch) alone, like epoch_order()."""
    layers = [layer for layer in model.layers if hasattr(layer, "seed_generator")]
    *seeds, last = np.random.default_rng([seed, epoch, 1]).integers(2**31, size=len(layers) + 1)
    for layer, layer_seed in zip(layers, seeds):
        layer.seed_generator.state.assign([layer_seed, 0])
    if keras.backend.backend() == "torch":  # where they are drawn from PyTorch's global generator
        keras.utils.set_random_seed(int(last))


def train(
    model, train_set, test_set, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=SEED, first_epoch=0, callbacks=(), verbose=0
):
    """Train a compiled model epoch by epoch, and yield the row of each for history.csv.

    train_set, test_set: (images, labels) as load_data() gives them; the test set is measured after every
    epoch, for the curves only. first_epoch: how many of the epochs the model has behind it. callbacks:
    Keras' own. A row is a dict: epoch, seconds, and what Keras measured, losses as means over the images,
    accuracies from 0 to 1. Raises FloatingPointError when a loss becomes infinite or NaN, and InputError, before
    the first step, when the images or labels do not fit the model.
    """
    for epoch in range(first_epoch, epochs):
        started = time.perf_counter()
        x, steps = keras_batches(model, *train_set, batch_size, epoch_order(len(train_set[0]), seed, epoch))
        test_x, test_steps = keras_batches(model, *test_set, PREDICT_BATCH_SIZE)
        of_this_epoch = keras.callbacks.LambdaCallback(
            # Not before fit(): what PyTorch draws from its generator to start a DataLoader would come between.
            on_train_batch_begin=lambda step, logs, epoch=epoch: step or reseed(model, seed, epoch),
            on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", True),
        )
        try:
            with keras_settings():
                history = model.fit(
                    x,
                    steps_per_epoch=steps,
                    initial_epoch=epoch,
                    epochs=epochs,  # for the progress bar; the callback ends fit() after this one
                    shuffle=False,  # epoch_order() has done it
                    validation_data=test_x,
                    validation_steps=test_steps,
                    callbacks=[keras.callbacks.TerminateOnNaN(raise_error=True), of_this_epoch, *callbacks],
                    verbose=verbose,
                ).history
            loss = history["val_loss"][0]  # the last step can break the weights after its own loss was taken
        except RuntimeError as error:
            _, raised_by_terminate, value = str(error).partition("Loss value: ")
            if not raised_by_terminate:
                raise
            loss = float(value.split(".")[0])
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}")
        row = over_images({name: values[0] for name, values in history.items()})
        yield {"epoch": epoch + 1, **row, "seconds": time.perf_counter() - started}


def parse_args(argv=None):
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
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.resume:  # what the command line leaves open is as it was
        saved = run_folder.read_settings(args.output_dir)
        for name in run_folder.RUN_FLAGS:
            values = saved[name] if isinstance(saved[name], list) else [saved[name]]
            if values != [None]:
                argv = [f"--{name.replace('_', '-')}", *map(str, values), *argv]
        args = parser.parse_args(argv)
        args.data = args.data or run_folder.data_of_run(args.output_dir)
    if not any(args.loss_weights):
        parser.error("argument --loss-weights: with 0 everywhere there is nothing to train")
    args.data = args.data or DATA
    return args


def main(argv=None):
    args = parse_args(argv)
    folder = args.output_dir
    if not 1980 <= time.localtime().tm_year < 2108:  # the dates that a zip archive can hold, and a .keras file is one
        raise InputError(f"the clock says {time.ctime()}, with which no network can be saved: set it right")
    (images, labels), test_set, class_names = load_data(args.data)
    train_set = images[: args.limit], labels[: args.limit]
    terminal = bool(sys.stdout) and sys.stdout.isatty()  # there Keras' progress bar says what is to be said
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", "train.py"):
        loss_weights = dict(zip(LOSS_WEIGHTS, args.loss_weights))
        model = new_model(args.seed, loss_weights, args.precision, preprocess(images[:1]).shape[1:], len(class_names))
        check_fit(model, images, labels)
        settings, history = run_folder.settings_of(model, args), []
        if args.resume:
            settings, history = run_folder.resume(folder, model, settings)
        else:
            settings = run_folder.begin(folder, settings, args.overwrite)
        now, done = settings["starts"][-1], f"{len(history)} of {args.epochs} epochs done"
        try:
            with cli.stoppable() as stop:
                print(f"Training on {now['device']}, {len(train_set[0])} images: {done}", flush=True)
                for name, value in settings["starts"][0].items():
                    if name != "after_epoch" and now.get(name, value) != value:
                        print(f"The numbers may differ, this run began with {name} {value}, not {now[name]}")
                options = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
                options |= {"first_epoch": len(history), "callbacks": [stop], "verbose": int(terminal)}
                for row in train(model, train_set, test_set, **options):
                    run_folder.save_epoch(folder, model, settings, [*history, row])
                    history.append(row)
                    if not terminal:
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
