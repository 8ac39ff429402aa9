"""The ``tf.distribute`` strategy: on how many replicas a step runs."""

from __future__ import annotations

import functools
from typing import Literal

from research.errors import InputError
from research.processor import has_bfloat16
from research.training.workers import cluster, join

import tensorflow as tf

StrategyName = Literal["default", "mirrored", "multi_worker"]


def make_strategy(name: StrategyName, batch_size: int) -> tf.distribute.Strategy:
    """A ``tf.distribute`` strategy: one replica; one on each GPU; or those of several workers.

    Without a GPU, ``"mirrored"`` divides the CPU into two logical devices, so that code for several
    replicas can be tried on any machine, and each worker has one replica. ``"multi_worker"`` waits
    for the other workers. Call this before TensorFlow is used.

    Raises:
        InputError: if a batch has fewer examples than there are replicas, or for ``"multi_worker"``
            see ``workers.cluster`` and ``workers.join``.
    """
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "multi_worker":
        addresses, number = cluster()
        gpus = len(tf.config.list_physical_devices("GPU"))
        _refuse_fewer_examples(name, batch_size, len(addresses) * max(1, gpus))
        return join(addresses, number)
    divide_cpu()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    _refuse_fewer_examples(name, batch_size, len(devices))
    return _mirrored(tuple(devices))


def _refuse_fewer_examples(name: str, batch_size: int, replicas: int) -> None:
    if batch_size < replicas:
        raise InputError(
            f"--batch-size {batch_size}: --strategy {name} has {replicas} replicas here; "
            "give each at least one example"
        )


def divide_cpu() -> None:
    """Divides the CPU into two logical devices if there is no GPU; before TensorFlow is used."""
    if not tf.config.list_physical_devices("GPU"):
        (cpu,) = tf.config.list_physical_devices("CPU")
        if tf.config.get_logical_device_configuration(cpu) is None:
            half = tf.config.LogicalDeviceConfiguration()
            tf.config.set_logical_device_configuration(cpu, [half, half])


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One strategy for the process: TensorFlow mixes up the reductions of several."""
    return tf.distribute.MirroredStrategy(devices)


def calculates_with_bfloat16() -> bool:
    """Whether every visible device has native bfloat16.

    Without it, bfloat16 is emulated and slower than float32. GPUs have it from compute capability
    8.0 on. See https://developer.nvidia.com/cuda-gpus.
    """
    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capable = [detail.get("compute_capability", (8, 0)) >= (8, 0) for detail in details]
    return all(capable) if gpus else has_bfloat16()
