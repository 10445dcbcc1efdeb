"""Measure a trained network on the test images.

    python evaluate.py

Prints accuracy, errors, the losses and the accuracy of each class, and writes the same to metrics.json in the output
directory, in half a minute. Of a run of 20 epochs it says 99.13 % to 99.32 % (five seeds), of the recorded one, with
--output-dir outputs/reference, 99.16 %. The data are those that the run was trained on, unless --data names others.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH=1 leaves out
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import keras
import numpy as np

from data import MNIST_SHA256, batches, check_fit, even_batches, load_data, output_shapes, preprocess
from support import cli, run_folder
from support.backend import feed, keras_settings
from support.data_file import data_entry, name_classes, read_bytes
from support.files import write_json

ARTICLE_ACCURACY = 0.9933  # [A] after 20 epochs


def run_network(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run the network on images as load_data() gives them; returns its outputs by name, arrays float32 (n, ...).

    Raises InputError when the images do not fit the network.
    """
    check_fit(model, images)
    batch_size, steps = even_batches(len(images))
    with keras_settings():
        if steps == 1:  # a pipeline takes ten times as long as the network does for one image
            x = keras.tree.pack_sequence_as(model.input, [preprocess(images)])  # in a list, if the network was loaded
            outputs = model.predict_on_batch(x)
        else:
            outputs = model.predict(feed(lambda: batches(images, None, batch_size), steps), steps=steps, verbose=0)
    return dict(zip(model.output_names, keras.tree.flatten(outputs)))


def compute_metrics(
    images: np.ndarray, labels: np.ndarray, outputs: dict[str, np.ndarray], class_names: list[str] | None = None
) -> dict:
    """Hold what run_network() returned for images against them and their labels (n,), both as load_data() gives them.

    class_names: by default their numbers. Returns a dict: counts of images and errors, accuracies from 0 to 1
    (None for a class that does not occur), the losses as means over the images; no autoencoder_loss without a decoder.
    """
    probabilities = outputs["classification"]
    correct = probabilities.argmax(axis=1) == labels  # [R]
    # Keras on TensorFlow takes the cross-entropy of the logits, where nothing is cut off; the probabilities can be too
    # small for a float32. Clipped at the smallest one, such an image counts as 87, where Keras may count more.
    of_truth = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny)
    losses = {"classification_loss": round(float(-np.log(of_truth, dtype=np.float64).mean()), 6)}
    if "autoencoder" in outputs:  # the study has networks that only classify
        squared = np.square(outputs["autoencoder"] - preprocess(images))
        losses["autoencoder_loss"] = round(float(squared.mean(dtype=np.float64)), 6)
    class_names = class_names or name_classes([], probabilities.shape[1])
    hits = {name: correct[labels == label] for label, name in enumerate(class_names)}
    return {
        "accuracy": round(float(correct.mean()), 6),
        "errors": int((~correct).sum()),
        "images": len(labels),
        **losses,
        "accuracy_of_class": {name: round(float(hit.mean()), 6) if len(hit) else None for name, hit in hits.items()},
    }


def measure_others(model, images, labels):
    """Return the losses and metrics, as compiled, of the outputs that the article does not have, measured by Keras."""
    others = tuple(name for name in model.output_names if name not in ("classification", "autoencoder"))
    (batch_size, steps), outputs = even_batches(len(images)), output_shapes(model)
    with keras_settings():
        x = feed(lambda: batches(images, labels, batch_size, outputs=outputs), steps)
        measured = model.evaluate(x, steps=steps, return_dict=True, verbose=0)
    return {name: round(value, 6) for name, value in measured.items() if name.startswith(others)}


def evaluate(model: keras.Model, images: np.ndarray, labels: np.ndarray, class_names: list[str] | None = None) -> dict:
    """Run a network on images and labels as load_data() gives them; returns what compute_metrics() does.

    Of a compiled network with more outputs than the article's, "other_outputs" has their losses and metrics.
    """
    check_fit(model, images, labels)
    metrics = compute_metrics(images, labels, run_network(model, images), class_names)
    if model.compiled and len(model.outputs) > 2:
        metrics["other_outputs"] = measure_others(model, images, labels)
    return metrics


def report(metrics):
    """Return what metrics.json holds as lines of text."""
    lines = {
        "Measured": "after epoch {epoch}, on {images} test images of {data}".format(**metrics),
        "Test accuracy": "{accuracy:.2%}, {errors} errors in {images} images".format(**metrics),
        "The article's": f"{metrics['article_accuracy']:.2%}" if "article_accuracy" in metrics else None,
        "Classification loss": f"{metrics['classification_loss']:.4f} (cross-entropy)",
        "Autoencoder loss": f"{metrics['autoencoder_loss']:.4f} (mean squared error)",
    }
    lines |= {name: f"{value:.4f}" for name, value in metrics.get("other_outputs", {}).items()}
    for name, accuracy in metrics["accuracy_of_class"].items():
        lines[f"Accuracy of {name}"] = "no such image" if accuracy is None else f"{accuracy:.2%}"
    width = max(20, *map(len, lines))
    return [f"{name:{width}} {text}" for name, text in lines.items() if text]


def main(argv: list[str] | None = None) -> None:
    args = cli.ArgumentParser(__doc__, data_help="the one that the run was trained on").parse_args(argv)
    folder = args.output_dir
    path = args.data or run_folder.data_of_run(folder)
    model, stamp = run_folder.load_network(folder, compiled=True)
    run_folder.check_same_run(folder, stamp)
    content = read_bytes(path)
    _, test_set, class_names = load_data(path, content)
    metrics = {**evaluate(model, *test_set, class_names), "epoch": stamp["epoch"], **data_entry(path, content)}
    own_data = metrics["data_sha256"] == stamp["data_sha256"]
    if own_data and metrics["data_sha256"] == MNIST_SHA256:
        metrics["article_accuracy"] = ARTICLE_ACCURACY
    try:  # if one of the two fails, to print and to write, the other is still done
        print("\n".join(report(metrics)))
        if not own_data:
            print("Not its own data: this network was trained on others")
    finally:
        with run_folder.writing(folder, stamp):
            write_json(folder / run_folder.METRICS, metrics)
    print(f"Wrote {folder / run_folder.METRICS}. Next: {cli.next_command('visualize.py', folder, args.data)}")


if __name__ == "__main__":
    cli.start(main)
