"""Train the article's network on MNIST, by default as the article does.

    python train.py
    python train.py --resume                     go on with a run that was stopped
    python train.py --resume --epochs 40         train a finished run further
    python train.py --loss-weights 0.9 0 --output-dir outputs/classifier

Writes settings.json, history.csv, checkpoint.keras and model.keras after every epoch.

[A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98, and [R] its author's
repository, https://github.com/mim92/mnist, folder CNN_Autoencoder.
"""

import math
import sys
import time

import cli
import run_folder
from cli import ArgumentParser, next_command, number_from_0, whole_number
from data import DATA, PREDICT_BATCH_SIZE, feed, load_mnist, steps_in_epoch

# Keras is imported where it is needed: that takes seconds, and a mistyped argument is answered at once.

EPOCHS = 20  # [A]
BATCH_SIZE = 32  # [R]
LOSS_WEIGHTS = (0.9, 0.1)  # [A] classification, autoencoder
LEARNING_RATE = 0.01  # [A]
MOMENTUM = 0.9  # [A] with Nesterov's correction
SEED = 0  # ours; the original fixes none
PRECISION = "float32"  # as the original; the others compute in 16 bits and keep float32 weights
PRECISIONS = (PRECISION, "mixed_bfloat16", "mixed_float16")

ARGUMENTS = ("epochs", "batch_size", "seed", "limit", "loss_weights", "precision")  # what defines a run
EPOCH_LINE = (
    "epoch {epoch}/{epochs}: loss {loss:.4f}, accuracy {classification_accuracy:.2%}, "
    "test loss {val_loss:.4f}, test accuracy {val_classification_accuracy:.2%}, {seconds:.0f} s"
)


def compile_model(model, loss_weights=LOSS_WEIGHTS):
    """Compile the network [A]: a loss and a weight for each named output, SGD with Nesterov momentum.

    loss_weights: of classification and autoencoder. Returns the model.
    """
    import keras

    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        loss={"classification": "categorical_crossentropy", "autoencoder": "mean_squared_error"},
        loss_weights={"classification": loss_weights[0], "autoencoder": loss_weights[1]},
        metrics={"classification": "accuracy"},  # ours; it changes nothing in the training
        # XLA on JAX and on TensorFlow's GPUs; none on PyTorch, nor on TensorFlow's CPU, where it is 2.4 times as slow.
        jit_compile="auto",
    )
    return model


def new_model(seed=SEED, loss_weights=LOSS_WEIGHTS, precision=PRECISION):
    """Return the compiled network with initial weights that depend on the seed.

    seed: seeds Python, NumPy and the backend, as keras.utils.set_random_seed() does. precision: one
    of PRECISIONS, the dtype policy of the layers; the weights are float32 under each.
    """
    from dropout import draw_16_bits, dropouts
    from model import keras, prepare_model

    keras.utils.set_random_seed(seed)
    model = compile_model(prepare_model(dtype=precision), loss_weights)
    if precision != PRECISION and keras.backend.backend() == "tensorflow":
        for layer in dropouts(model):
            draw_16_bits(layer)
    return model


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
    callbacks=(),
    verbose=0,
):
    """Train a compiled model; the test set is measured after every epoch, for the curves only.

    train_set, test_set: (images, labels) as load_mnist gives them. first_epoch: how many of the
    epochs the model has behind it. Returns the history: a dict an epoch with the keys of
    run_folder.COLUMNS, losses as means over the images, accuracies from 0 to 1. After each epoch
    after_epoch(row) is called with its row; callbacks are Keras' own. Raises FloatingPointError when a
    loss becomes infinite or NaN.
    """
    from dropout import seed_dropout
    from model import keras

    rows, started = [], 0.0
    before_last = {"train": {}, "test": {}}  # the means when all batches but the last were done

    def begin(epoch, logs):
        nonlocal started
        started = time.perf_counter()

    def before_step(step, logs):
        if step == 0:  # not in begin(): what PyTorch draws from its generator to start a DataLoader would come between
            seed_dropout(model, seed, first_epoch + len(rows))

    def after_step(step, logs):
        cli.stop_if_interrupted()
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"the loss became {logs['loss']} in epoch {first_epoch + len(rows) + 1}")
        if step == steps - 2:
            before_last["train"] = dict(logs)

    def after_test_step(step, logs):
        if step == test_steps - 2:
            before_last["test"] = {f"val_{name}": value for name, value in logs.items()}

    def end(epoch, logs):
        after_step(None, {"loss": logs["val_loss"]})  # the last step can break the weights after its loss was taken
        row = {"epoch": epoch + 1, **{name: logs[name] for name in run_folder.COLUMNS[1:-1]}}
        if keras.backend.backend() == "tensorflow":  # where Keras takes the mean of the two losses over the batches
            row |= mean_over_images(logs, before_last["train"], len(train_set[0]), batch_size)
            row |= mean_over_images(logs, before_last["test"], len(test_set[0]), PREDICT_BATCH_SIZE)
        rows.append({**row, "seconds": time.perf_counter() - started})
        if after_epoch:
            after_epoch(rows[-1])

    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=begin,
        on_train_batch_begin=before_step,
        on_train_batch_end=after_step,
        on_test_batch_end=after_test_step,
        on_epoch_end=end,
    )
    x, steps = feed(*train_set, batch_size, seed, first_epoch)
    test_x, test_steps = feed(*test_set, PREDICT_BATCH_SIZE)
    model.fit(
        x,
        steps_per_epoch=steps,
        epochs=epochs,
        initial_epoch=first_epoch,
        shuffle=False,  # batches() has done it
        validation_data=test_x,
        validation_steps=test_steps,
        callbacks=[callback, *callbacks],
        verbose=verbose,
    )
    return rows


def mean_over_images(after, before, count, batch_size):
    """Turn the outputs' losses from means over the batches into means over the images.

    after, before: Keras' means with and without the last batch, which may be smaller than the others
    and then counts for less; before is empty where there is one batch only.
    """
    steps = steps_in_epoch(count, batch_size)
    share = steps * (count - (steps - 1) * batch_size) / count  # 1 where the last batch is a whole one
    names = [name for name in before if name.endswith(("classification_loss", "autoencoder_loss"))]
    return {name: share * after[name] + (1 - share) * before[name] for name in names}


def parse_args(argv=None):
    parser = ArgumentParser(__doc__, data_help="MNIST")
    add = parser.add_argument
    add("--epochs", type=whole_number(1), default=EPOCHS, help="passes over the training images (default: 20)")
    add("--batch-size", type=whole_number(1), default=BATCH_SIZE, help="images in a training step (default: 32)")
    add("--seed", type=whole_number(0), default=SEED, help="seed of weights, image order, Dropout (default: 0)")
    add("--limit", type=whole_number(1), help="train on the first LIMIT images only, for a quick try")
    add("--precision", choices=PRECISIONS, default=PRECISION, help="what the layers compute in (default: float32)")
    two_weights = {"type": number_from_0, "nargs": 2, "default": list(LOSS_WEIGHTS), "metavar": ("C", "A")}
    add("--loss-weights", **two_weights, help="of classification and autoencoder (default: 0.9 0.1)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on with the run in the output directory")
    how.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.resume:  # what the command line leaves open is as it was
        saved = run_folder.read_settings(args.output_dir)
        args = parser.parse_args([*cli.as_options({name: saved.get(name) for name in ARGUMENTS}), *argv])
        args.data = args.data or run_folder.data_of_run(args.output_dir)
    if not any(args.loss_weights):
        parser.error("argument --loss-weights: with 0 and 0 there is nothing to train")
    args.data = args.data or DATA
    return args


def describe(args, model):
    """Return what defines a run, as settings.json holds it."""
    from model import describe_network, keras

    return {
        **{name: getattr(args, name) for name in ARGUMENTS},
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "nesterov": True,
        "network": describe_network(model),
        **run_folder.describe_data(args.data),
        "backend": keras.backend.backend(),
    }


def open_run(args, steps):
    """Begin the run that the arguments describe, or go on with it; returns the model, its settings, its history."""
    if not args.resume and not args.overwrite:
        run_folder.refuse_a_run(args.output_dir)
    model = new_model(args.seed, args.loss_weights, args.precision)
    settings = describe(args, model)
    if args.resume:
        return model, *run_folder.resume(args.output_dir, model, settings, steps)
    return model, run_folder.begin(args.output_dir, settings), []


def main(argv=None):
    args = parse_args(argv)
    (images, labels), test_set = load_mnist(args.data)
    train_set = images[: args.limit], labels[: args.limit]
    terminal = bool(sys.stdout) and sys.stdout.isatty()  # there Keras' progress bar says what is to be said
    with run_folder.locked(args.output_dir):
        model, settings, history = open_run(args, steps_in_epoch(len(train_set[0]), args.batch_size))

        def after_epoch(row):
            run_folder.save_epoch(args.output_dir, model, settings["run"], [*history, row])
            history.append(row)
            if not terminal:
                print(EPOCH_LINE.format(epochs=args.epochs, **row), flush=True)

        where, done = " and ".join(settings["starts"][-1]["devices"]), f"{len(history)} of {args.epochs} epochs done"
        how = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed, "first_epoch": len(history)}
        try:
            print(f"Training on {where}, {len(train_set[0])} images: {done}", flush=True)
            for change in run_folder.changes(settings):
                print(f"Not as when this run began, so the numbers may differ: {change}", flush=True)
            with cli.interruptible():
                train(model, train_set, test_set, **how, after_epoch=after_epoch, verbose=int(terminal))
        except (KeyboardInterrupt, OSError, FloatingPointError) as error:
            advice = f"go on with: {next_command('train.py --resume', args.output_dir)}"
            if isinstance(error, FloatingPointError):  # the same step would break again
                advice = "try other --loss-weights, or a smaller LEARNING_RATE in train.py"
            kept = f"epoch {len(history)} is the last one kept" if history else "no epoch had ended"
            cli.give_up(error, f"; {kept}; {advice}")
    print(f"Wrote the run to {args.output_dir}. Next: {next_command('evaluate.py', args.output_dir)}")


if __name__ == "__main__":
    cli.start(main)
