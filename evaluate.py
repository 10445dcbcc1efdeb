"""Measure a trained network on the test images.

    python evaluate.py

Prints accuracy, errors, both losses and the accuracy of each class, and writes the same to metrics.json
in the output directory. The data are those that the run was trained on, unless --data names others.
"""

import sys

sys.path.insert(0, __file__.removesuffix("evaluate.py"))  # which python -P and python -I leave out
import cli  # first, for it loads Keras without TensorFlow's greeting

import numpy as np

import run_folder
from data import CLASS_NUM, MNIST_SHA256, load_mnist, preprocess
from files import write_json
from model import predict

ARTICLE_ACCURACY = 0.9933  # [A] after 20 epochs


def compute_metrics(images, labels, probabilities, reconstructions):
    """Hold what predict() returned for uint8 images (n, 28, 28) against them and their labels (n,).

    Returns a dict: counts of images and errors, accuracies from 0 to 1 (None for a class that does
    not occur), the two losses as means over the images.
    """
    correct = probabilities.argmax(axis=1) == labels  # [R]
    # Keras on TensorFlow takes the cross-entropy of the logits, where nothing is cut off; the probabilities can be too
    # small for a float32. Clipped at the smallest one, such an image counts as 87, where Keras may count more.
    of_truth = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny)
    hits = {str(label): correct[labels == label] for label in range(CLASS_NUM)}
    return {
        "accuracy": round(float(correct.mean()), 6),
        "errors": int((~correct).sum()),
        "images": len(labels),
        "classification_loss": round(float(-np.log(of_truth, dtype=np.float64).mean()), 6),
        "autoencoder_loss": round(float(np.square(reconstructions - preprocess(images)).mean(dtype=np.float64)), 6),
        "accuracy_of_class": {label: round(float(hit.mean()), 6) if len(hit) else None for label, hit in hits.items()},
    }


def evaluate(model, images, labels):
    """Run the network on uint8 images (n, 28, 28) with labels (n,); returns what compute_metrics() does."""
    return compute_metrics(images, labels, *predict(model, images))


def report(metrics):
    """Return what metrics.json holds as lines of text."""
    lines = {
        "Measured": "after epoch {epoch}, on {images} test images of {data}".format(**metrics),
        "Test accuracy": "{accuracy:.2%}, {errors} errors in {images} images".format(**metrics),
        "The article's": f"{metrics['article_accuracy']:.2%}" if "article_accuracy" in metrics else None,
        "Classification loss": f"{metrics['classification_loss']:.4f} (cross-entropy)",
        "Autoencoder loss": f"{metrics['autoencoder_loss']:.4f} (mean squared error)",
    }
    for label, accuracy in metrics["accuracy_of_class"].items():
        lines[f"Accuracy of {label}"] = "no such image" if accuracy is None else f"{accuracy:.2%}"
    return [f"{name:20} {text}" for name, text in lines.items() if text]


def main(argv=None):
    args = cli.ArgumentParser(__doc__, data_help="the one that the run was trained on").parse_args(argv)
    folder = args.output_dir
    path = args.data or run_folder.data_of_run(folder)
    model, stamp = run_folder.load_network(folder)
    _, (images, labels) = load_mnist(path)
    metrics = {**evaluate(model, images, labels), "epoch": stamp["epoch"], **run_folder.data_entry(path)}
    own_data = metrics["data_sha256"] == stamp["data_sha256"]
    if own_data and metrics["data_sha256"] == MNIST_SHA256:
        metrics["article_accuracy"] = ARTICLE_ACCURACY
    with run_folder.writing(folder, stamp):
        write_json(folder / run_folder.METRICS, metrics)
    print("\n".join(report(metrics)))
    if not own_data:
        print("Not its own data: this network was trained on others")
    print(f"Wrote {folder / run_folder.METRICS}. Next: {cli.next_command('visualize.py', folder, args.data)}")


if __name__ == "__main__":
    cli.start(main)
