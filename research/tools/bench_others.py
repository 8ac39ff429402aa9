"""The loops that ``bench`` compares with this project's: Keras's ``fit``, and PyTorch.

This program imports nothing of this project, so that Keras and PyTorch run as their users run them.
Its arguments are the loop, an .npz with images and labels, the batch size and the steps in a turn.
It takes a turn for each line of standard input.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def fit_turns(
    images: Any, labels: Any, batch_size: int, steps: int, precision: str
) -> Iterator[float]:
    """Yields the seconds that ``fit`` takes for ``steps`` steps of the well-known Keras script."""
    import keras

    keras.mixed_precision.set_global_policy(precision)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax", dtype="float32"),
        ]
    )
    optimizer = keras.optimizers.Adadelta(1.0, rho=0.95, epsilon=1e-7)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    images = images.astype("float32") / 255
    labels = keras.utils.to_categorical(labels, 10)
    count = steps * batch_size
    while True:
        begun = time.perf_counter()
        model.fit(images[:count], labels[:count], batch_size=batch_size, verbose=0)
        yield time.perf_counter() - begun


def torch_turns(images: Any, labels: Any, batch_size: int, steps: int) -> Iterator[float]:
    """Yields the seconds that PyTorch takes for ``steps`` steps of the same network."""
    import torch
    from torch import nn

    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 256), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0, rho=0.95, eps=1e-7)
    loss_function = nn.CrossEntropyLoss()
    all_images = torch.from_numpy(images).permute(0, 3, 1, 2)
    all_labels = torch.from_numpy(labels).long()
    while True:
        begun = time.perf_counter()
        order = torch.randperm(len(all_images))[: steps * batch_size]
        for batch in order.split(batch_size):
            optimizer.zero_grad()
            logits = model(all_images[batch].float() / 255)
            loss_function(logits, all_labels[batch]).backward()
            optimizer.step()
        yield time.perf_counter() - begun


def peak_memory() -> int:
    """The peak memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with the parent's peak
        kibibytes = status.read_text().partition("VmHWM:")[2].split()[0]
        return int(kibibytes) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024**2 if sys.platform == "darwin" else 1024)


def main(loop: str, data: str, batch_size: str, steps: str) -> None:
    """Answers each line with the seconds of a turn and the peak memory so far, in MiB."""
    with np.load(data) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    arguments = (images, labels, int(batch_size), int(steps))
    if loop == "torch-float32":
        turns = torch_turns(*arguments)
    else:
        turns = fit_turns(*arguments, {"fit-bfloat16": "mixed_bfloat16"}.get(loop, "float32"))
    for _ in sys.stdin:
        seconds = next(turns)
        print(json.dumps({"seconds": seconds, "peak_memory_mib": peak_memory()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
