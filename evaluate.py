"""Measure a trained network on the test images.

    python evaluate.py

Prints accuracy, errors, both losses and the accuracy of each digit, and writes the same to
metrics.json in the output directory, with the run and the epoch that the network is of. The data are
those that the run was trained on, unless --data names others.

[A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98, and [R] its author's
repository, https://github.com/mim92/mnist, folder CNN_Autoencoder.
"""

import numpy as np

import run_folder
from cli import ArgumentParser, next_command, start
from data import CLASS_NUM, is_mnist_test, load_mnist, preprocess

ARTICLE_ACCURACY = 0.9933  # [A] after 20 epochs


def measure(images, labels, probabilities, reconstructions):
    """Hold what model.predict() returned for uint8 images (n, 28, 28) against them and their labels (n,).

    Returns a dict: counts of images and errors, accuracies from 0 to 1 (None for a class that does
    not occur), the two losses as means over the images; for MNIST's test images the article's accuracy too.
    """
    correct = probabilities.argmax(axis=1) == labels  # [R]
    # Keras on TensorFlow takes the cross-entropy of the logits, where nothing is cut off; the probabilities can be too
    # small for a float32. Clipped at the smallest one, such an image counts as 87, where Keras may count more.
    of_truth = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny)
    squared_error = np.square(reconstructions - preprocess(images))
    hits = {str(label): correct[labels == label] for label in range(CLASS_NUM)}
    mnist = is_mnist_test(images, labels)
    return {
        "accuracy": round(float(correct.mean()), 6),
        **({"article_accuracy": ARTICLE_ACCURACY} if mnist else {}),
        "errors": int((~correct).sum()),
        "images": len(labels),
        "classification_loss": round(float(-np.log(of_truth, dtype=np.float64).mean()), 6),
        "autoencoder_loss": round(float(squared_error.mean(dtype=np.float64)), 6),
        f"accuracy_of_{'digit' if mnist else 'class'}": {
            label: round(float(hit.mean()), 6) if len(hit) else None for label, hit in hits.items()
        },
    }


def evaluate(model, images, labels):
    """Run the network on uint8 images (n, 28, 28) with labels (n,); returns what measure() does."""
    from model import predict

    return measure(images, labels, *predict(model, images))


def report(metrics):
    """Return what metrics.json holds as lines of text."""
    epoch = "an unknown epoch" if metrics["epoch"] is None else f"epoch {metrics['epoch']}"
    lines = [
        "Measured             after {0}, on {images} test images of {data}".format(epoch, **metrics),
        "Test accuracy        {accuracy:.2%}, {errors} errors in {images} images".format(**metrics),
        "Classification loss  {classification_loss:.4f} (cross-entropy)".format(**metrics),
        "Autoencoder loss     {autoencoder_loss:.4f} (mean squared error)".format(**metrics),
    ]
    if "article_accuracy" in metrics:
        lines.insert(2, "The article's        {article_accuracy:.2%}".format(**metrics))
    for label, accuracy in (metrics.get("accuracy_of_digit") or metrics["accuracy_of_class"]).items():
        lines.append(f"Accuracy of {label}        " + ("no such image" if accuracy is None else f"{accuracy:.2%}"))
    return lines


def main(argv=None):
    args = ArgumentParser(__doc__, data_help="the one that the run was trained on").parse_args(argv)
    run_folder.check_network(args.output_dir)
    path = args.data or run_folder.data_of_run(args.output_dir)
    _, (images, labels) = load_mnist(path)
    model, (run, epoch) = run_folder.load_network(args.output_dir)
    metrics = {**evaluate(model, images, labels), "epoch": epoch, "run": run, **run_folder.describe_data(path)}
    trained_on = run_folder.other_data(args.output_dir, path)
    if trained_on:  # then the article's figure is no measure of it
        metrics.pop("article_accuracy", None)
    metrics_path = args.output_dir / run_folder.METRICS
    run_folder.write_json(metrics_path, metrics)
    print("\n".join(report(metrics)))
    if trained_on:
        print(f"Not its own data: this run was trained on {trained_on}")
    print(f"Wrote {metrics_path}. Next: {next_command('visualize.py', args.output_dir, args.data)}")


if __name__ == "__main__":
    start(main)
