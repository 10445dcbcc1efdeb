"""Measure a trained network on the test images.

    python evaluate.py

Prints accuracy, errors, both losses and the accuracy of each digit, and writes the same to
metrics.json in the output directory.
"""

import json

import numpy as np

import data

ARTICLE_ACCURACY = 0.9933  # [A] after 20 epochs


def measure(images, labels, probabilities, reconstructions):
    """Hold what model.predict() returned for uint8 images (n, 28, 28) against them and their labels (n,).

    Returns a dict: counts of images and errors, accuracies from 0 to 1 (None for a digit that does
    not occur), the two losses as means over the images.
    """
    correct = probabilities.argmax(axis=1) == labels  # [R]
    # Keras trains on the logits, where nothing is cut off; clipping at the smallest float does no more than
    # keep log(0) out, so this is the same number.
    of_truth = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny)
    squared_error = np.square(reconstructions - data.preprocess(images))
    hits = {str(digit): correct[labels == digit] for digit in range(data.CLASS_NUM)}
    return {
        "accuracy": round(float(correct.mean()), 6),
        "article_accuracy": ARTICLE_ACCURACY,
        "errors": int((~correct).sum()),
        "images": len(labels),
        "classification_loss": round(float(-np.log(of_truth, dtype=np.float64).mean()), 6),
        "autoencoder_loss": round(float(squared_error.mean(dtype=np.float64)), 6),
        "accuracy_of_digit": {digit: round(float(hit.mean()), 6) if len(hit) else None for digit, hit in hits.items()},
    }


def evaluate(model, images, labels):
    """Run the network on uint8 images (n, 28, 28) with labels (n,); returns what measure() does."""
    from model import predict

    return measure(images, labels, *predict(model, images))


def main():
    args = data.ArgumentParser(__doc__).parse_args()
    _, (images, labels) = data.load_mnist(args.data)
    from model import load_model  # slow, so after the checks

    metrics = evaluate(load_model(args.output_dir / "model.keras"), images, labels)
    path = args.output_dir / "metrics.json"
    with data.whole_file(path) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")

    print("Test accuracy        {accuracy:.2%}, {errors} errors in {images} images".format(**metrics))
    print("The article's        {article_accuracy:.2%}".format(**metrics))
    print("Classification loss  {classification_loss:.4f} (cross-entropy)".format(**metrics))
    print("Autoencoder loss     {autoencoder_loss:.4f} (mean squared error)".format(**metrics))
    for digit, accuracy in metrics["accuracy_of_digit"].items():
        print(f"Accuracy of {digit}        " + ("no such image" if accuracy is None else f"{accuracy:.2%}"))
    print(f"Wrote {path}. Next: {data.next_command('visualize.py', args)}")


if __name__ == "__main__":
    data.run(main)
