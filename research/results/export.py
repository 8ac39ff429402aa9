"""mnist.h5: the trained network in a file that any Keras opens, with none of this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from research.errors import InputError, NonFiniteError, one_line
from research.files import replaced_atomically, sha256, storage_errors
from research.network.limits import refuse_too_many_parameters
from research.results.evaluation import predict_probabilities
from research.results.read_h5 import (
    DIGEST,
    description_of,
    digest,
    digest_path,
    load_h5,
    read_weights,
)
from research.results.stock_network import read_network
from research.training.optimizer import learning_rate_at

import h5py
import numpy as np
import numpy.typing as npt
import tensorflow as tf

__all__ = ["check_exportable", "digest_path", "export_h5", "load_h5", "stock_optimizer"]

# The largest difference between a probability of the model and of its twin. The same operations
# give the same bits; another order of sums gives differences of 1e-6 to 1e-4 in a trained float32
# network.
TOLERANCE = 1e-3
# Tolerances for pseudo-random weights, with which no probability is near 0 or 1: the largest
# relative difference in float32, and the largest absolute one in bfloat16 or float16.
_RELATIVE_TOLERANCE = 1e-4
_HALF_TOLERANCE = 0.03


def check_exportable(model: tf.keras.Model) -> None:
    """Refuses a model that ``export_h5`` could not write or ``load_h5`` could not read.

    Call this before the first step. It compares the model and its stock twin with pseudo-random
    weights: with initial weights, whose biases and moving means are 0, wrong twins can agree by
    chance. Afterwards the model has its own weights again, bit for bit.

    Args:
        model: a built Keras model with ``logits(images)``, and ``stock_twin()``, which returns a
            ``tf.keras.Sequential`` or a functional model of new stock layers, in float32, with a
            copy of the weights.

    Raises:
        InputError: if the model has no such twin, or the twin has layers or options that
            ``accepted_layers.py`` does not list, is too large, or predicts other probabilities.
    """
    what = f"the network {model.name}"
    if not callable(getattr(model, "stock_twin", None)):
        raise InputError(
            f"{what} has no stock_twin(), so that it can't be saved as mnist.h5; give it one that "
            "returns the same network of Keras's own layers, as MnistCNN does"
        )
    try:
        refuse_too_many_parameters(what, model.count_params())
        ours, twins = _with_other_weights(model)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{what}: its stock twin can't be saved ({one_line(error)[:200]}); stock_twin() must "
            "make new layers of the kinds in research/results/accepted_layers.py"
        ) from error
    if model.compute_dtype == "float32":
        different = not np.allclose(ours, twins, rtol=_RELATIVE_TOLERANCE, atol=1e-30)
    else:
        different = not np.allclose(ours, twins, rtol=0, atol=_HALF_TOLERANCE)
    if different:
        raise InputError(
            f"{what}: its stock twin predicts other probabilities (a difference of "
            f"{np.abs(ours - twins).max():.2g}); give both the same layers, options and weights"
        )


def _with_other_weights(
    model: tf.keras.Model,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Probabilities of a model and of its twin with pseudo-random weights.

    Returns:
        The model's by ``call`` and by ``logits``, and the twin's, twice: float32 [2, 8, 10] each.
    """
    random = np.random.default_rng(0)
    images = random.uniform(0, 1, [8, 28, 28, 1]).astype(np.float32)
    variables = [v for v in model.variables if np.issubdtype(v.numpy().dtype, np.floating)]
    before = [np.array(v.numpy()) for v in variables]
    try:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(_other_value(value, random))
        twin = model.stock_twin()
        _require_readable(twin)
        ours = np.stack([model(images, training=False), tf.nn.softmax(model.logits(images))])
        twins = np.stack([twin(images, training=False)] * 2)
        if ours.shape != twins.shape:
            raise ValueError(f"the model answers {ours.shape[1:]} numbers, and not {(8, 10)}")
        return ours, twins
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def _other_value(value: npt.NDArray[Any], random: np.random.Generator) -> npt.NDArray[Any]:
    """A weight that differs from ``value`` and keeps the network's values at their scale.

    A vector may be a variance, so its new elements are positive: 0.05 to 0.5. A kernel changes its
    sign and gets noise, in case it was constant.
    """
    if value.ndim < 2:
        return random.uniform(0.05, 0.5, value.shape).astype(value.dtype)
    noise = random.uniform(-1, 1, value.shape) / np.sqrt(np.prod(value.shape[:-1]))
    return (noise - value).astype(value.dtype)


def _require_readable(twin: tf.keras.Model) -> None:
    """Raises ValueError if ``load_h5`` would refuse a file of the twin."""
    if not type(twin).__module__.startswith("keras."):
        raise ValueError(f"a {type(twin).__name__} is neither a Sequential nor a functional model")
    network = read_network(json.loads(twin.to_json()))
    places = {
        f"model_weights/{layer.name}/{v.path}" for layer in twin.layers for v in layer.weights
    }
    if other := places ^ network.places().keys():
        raise ValueError(f"{min(other).removeprefix('model_weights/')} is a weight out of place")


def export_h5(
    model: tf.keras.Model,
    path: Path,
    images: npt.NDArray[np.uint8],
    optimizer: tf.keras.optimizers.Optimizer | None = None,
) -> tf.keras.Model:
    """Writes the model's stock twin, and beside it the file's SHA-256.

    The file is read back and compared before it gets its name. It must hold the twin's weights and
    give the twin's predictions, bit for bit; a float32 model must agree within ``TOLERANCE``.

    Args:
        model: the trained model, see ``check_exportable``.
        path: the file, with the ending ``.h5``; an existing file is replaced atomically.
        images: uint8 [N, 28, 28, 1], for comparing predictions.
        optimizer: the file is compiled with this optimizer's stock Keras class and options, so that
            ``fit`` can go on. With None, or an optimizer that Keras does not have, the file is not
            compiled: it predicts, and needs ``compile`` before ``evaluate`` or ``fit``.

    Returns:
        The model that was read back from the file.

    Raises:
        RuntimeError: if the file differs from the twin, or the twin from the model. ``path`` is
            then unchanged.
        NonFiniteError: if a probability is not finite. ``path`` is then unchanged.
    """
    twin = model.stock_twin()
    stock = None if optimizer is None else stock_optimizer(optimizer)
    if stock is not None:
        twin.compile(stock, loss="categorical_crossentropy", metrics=["accuracy"])
    with replaced_atomically(path) as partial:
        # HDF5 reports a full disk by errors of several types.
        with storage_errors(path, RuntimeError):
            twin.save(partial)
            with h5py.File(partial, "r+") as file:
                # Keras 3.15 restores the optimizer onto an empty list of variables, and `fit` then
                # fails. Without the stored variables Keras starts the optimizer afresh.
                file.pop("optimizer_weights", None)
                text = description_of(file)
                weights = read_weights(file, read_network(json.loads(text)))
                file.attrs[DIGEST] = digest(text, weights.values())
        loaded = tf.keras.models.load_model(partial, compile=stock is not None)
        _compare(model, twin, loaded, images)
        file_digest = sha256(partial)
    with storage_errors(digest_path(path)), replaced_atomically(digest_path(path)) as partial:
        partial.write_text(f"{file_digest}  {path.name}\n")
    return loaded


def stock_optimizer(
    optimizer: tf.keras.optimizers.Optimizer,
) -> tf.keras.optimizers.Optimizer | None:
    """A new optimizer of the stock Keras class, with the options of ``optimizer``.

    Args:
        optimizer: a Keras optimizer of a stock class or of a class derived from one. A
            ``LossScaleOptimizer`` around it is left out.

    Returns:
        The optimizer, with a number as its learning rate: with a schedule, the rate of the last
        update. None if Keras has no such class.
    """
    if isinstance(optimizer, tf.keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    kinds = [k for k in type(optimizer).__mro__ if k is getattr(tf.keras.optimizers, k.__name__, 0)]
    if not kinds or kinds[0] is tf.keras.optimizers.Optimizer:
        return None
    try:
        known = kinds[0]().get_config()  # a derived class may have further options
        options = {name: value for name, value in optimizer.get_config().items() if name in known}
        # Keras numbers the optimizers of a process in their names; the file must not depend on it.
        options |= {
            # The next rate would be 0 at the end of a schedule, and `fit` would learn nothing.
            "learning_rate": learning_rate_at(optimizer, max(int(optimizer.iterations) - 1, 0)),
            "name": kinds[0].__name__.lower(),
        }
        return kinds[0](**options)
    except (TypeError, ValueError):  # MultiOptimizer needs other optimizers
        return None


def _compare(
    model: tf.keras.Model,
    twin: tf.keras.Model,
    loaded: tf.keras.Model,
    images: npt.NDArray[np.uint8],
) -> None:
    pairs = zip(twin.get_weights(), loaded.get_weights(), strict=True)
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise RuntimeError("the exported file holds other weights than the model's stock twin")
    some = images[:100].astype(np.float32) / 255
    if not np.isfinite(twin(some, training=False)).all():
        raise NonFiniteError("a probability of the exported network became nan or infinite")
    if not np.array_equal(twin(some, training=False), loaded(some, training=False)):
        raise RuntimeError("the exported file predicts other probabilities than the stock twin")
    if model.compute_dtype != "float32":
        return
    ours, found = (predict_probabilities(each, images) for each in (model, loaded))
    difference = float(np.abs(ours - found).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the exported file predicts other probabilities than the model: {difference:.2g} apart"
        )
