"""Top-1 of a Keras file or a SavedModel by TensorFlow itself, in a process that needs nothing else.

python benchmarks/zoo/by_tensorflow.py FILE cifar10/test.npz
"""

import sys

import numpy as np
import tensorflow as tf


def main(path: str, images: str) -> None:
    """Print the share of images that the network classifies right; it takes pixels of 0 to 255."""
    with np.load(images) as arrays:
        pixels, labels = arrays["images"].astype(np.float32), arrays["labels"]
    if path.endswith((".h5", ".keras")):
        model = tf.keras.models.load_model(path, compile=False)
        answers = model.predict(pixels, batch_size=250, verbose=0)
    else:
        run = tf.saved_model.load(path).signatures["serving_default"]
        (name,) = run.structured_input_signature[1]
        batches = (pixels[at : at + 250] for at in range(0, len(pixels), 250))
        answers = np.concatenate(
            [next(iter(run(**{name: tf.constant(x)}).values())).numpy() for x in batches]
        )
    print(float((answers.argmax(1) == labels).mean()))


if __name__ == "__main__":
    main(*sys.argv[1:])
