"""Builds the stock Keras network that an untrusted description in an mnist.h5 describes.

The description is the JSON that Keras stores in an .h5. Keras's own deserialization never sees it:
``read_network`` checks it against the tables of ``accepted_layers.py`` and makes each layer by its
constructor, from checked plain values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from research.network.limits import LARGEST_PARAMETERS
from research.results.accepted_layers import (
    FOR_TRAINING,
    LARGEST_OUTPUT,
    LARGEST_OUTPUTS,
    LAYERS,
    MERGING,
    MOST_INPUTS,
    MOST_LAYERS,
    MOST_MULTIPLICATIONS,
    NAME,
)

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: the layer's name, unique in its network.
        keras: the stock layer; it has no variables until ``build_model`` calls it.
        inputs: the names of the layers whose outputs are its inputs.
        shape: the shape of its output for one example.
        weights: the shape of each of its float32 weights, moving statistics included, by name.
    """

    name: str
    keras: tf.keras.layers.Layer
    inputs: tuple[str, ...]
    shape: Shape
    weights: dict[str, Shape]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of accepted layers: one input, float32 [B, 28, 28, 1], and one softmax [B, 10].

    Attributes:
        name: the model's name.
        sequential: whether Keras keeps it as a ``Sequential``.
        layers: the input comes first, the output last, and each layer after its inputs.
    """

    name: str
    sequential: bool
    layers: tuple[Layer, ...]

    def places(self) -> dict[str, Shape]:
        """The place of each weight in Keras's .h5 files, with the weight's shape."""
        scope = f"{self.name}/" if self.sequential else ""
        return {
            f"model_weights/{layer.name}/{scope}{layer.name}/{weight}": shape
            for layer in self.layers
            for weight, shape in layer.weights.items()
        }


def read_network(description: Any) -> Network:
    """Checks a network's description and makes its layers, without variables.

    Args:
        description: Keras's description of a model, as ``json.loads`` returns it.

    Raises:
        ValueError: if a part is not accepted. A damaged description may raise other errors.
    """
    kind, config = description["class_name"], description["config"]
    if kind not in ("Sequential", "Functional"):
        raise ValueError(f"it is a {_shown(kind)}, and neither a Sequential nor a Functional")
    name, entries = config["name"], config["layers"]
    if not _is_name(name):
        raise ValueError(f"its name is {_shown(name)}")
    if type(entries) is not list or not 2 <= len(entries) <= MOST_LAYERS:
        raise ValueError(f"it has not 2 to {MOST_LAYERS} layers")
    layers: list[Layer] = []
    for entry in entries:
        keras = _make_layer(entry)
        if kind == "Functional":
            inputs = _inputs(entry, keras.name)
        else:
            inputs = tuple(layer.name for layer in layers[-1:])
        layers.append(_connect(keras, inputs, layers))
    _require_bounds(layers)
    _require_ends(layers, config if kind == "Functional" else None)
    return Network(name, kind == "Sequential", tuple(layers))


def _connect(keras: tf.keras.layers.Layer, inputs: tuple[str, ...], before: list[Layer]) -> Layer:
    """A layer with its inputs, which must be earlier layers, so that there are no cycles."""
    known = {layer.name: layer.shape for layer in before}
    if keras.name in known:
        raise ValueError(f"two layers have the name {keras.name}")
    if (type(keras) is tf.keras.layers.InputLayer) != (not before):
        raise ValueError("the first layer is no InputLayer, or another one is")
    for name in inputs:
        if not _is_name(name) or name not in known:
            raise ValueError(f"{keras.name} takes {_shown(name)}, which is no layer before it")
    merges = type(keras).__name__ in MERGING
    if not (1 < len(inputs) <= MOST_INPUTS if merges else len(inputs) == bool(before)):
        raise ValueError(f"{keras.name} has {len(inputs)} inputs")
    if not before:
        return Layer(keras.name, keras, inputs, (28, 28, 1), {})
    given = [(None, *known[name]) for name in inputs]
    _, *shape = keras.compute_output_shape(given if merges else given[0])
    if any(type(size) is not int or size < 1 for size in shape):
        raise ValueError(f"the output of {keras.name} has the shape {_shown(shape)}")
    return Layer(
        keras.name, keras, inputs, tuple(shape), _weight_shapes(keras, known[inputs[0]][-1])
    )


def _require_bounds(layers: list[Layer]) -> None:
    """Refuses a network that would need too much memory or time, before it uses any."""
    outputs = parameters = multiplications = 0
    for layer in layers:
        output, weights = math.prod(layer.shape), sum(map(math.prod, layer.weights.values()))
        outputs += output
        parameters += weights
        multiplications += weights * math.prod(layer.shape[:-1])
        for found, most, what in (
            (output, LARGEST_OUTPUT, "numbers in its output"),
            (outputs, LARGEST_OUTPUTS, "numbers in all outputs up to it"),
            (parameters, LARGEST_PARAMETERS, "parameters"),
            (multiplications, MOST_MULTIPLICATIONS, "multiplications for an example"),
        ):
            if found > most:
                raise ValueError(f"at {layer.name} it is too large: {found:,} {what} (of {most:,})")


def _require_ends(layers: list[Layer], config: Any) -> None:
    """Refuses a network whose layers do not all lead from the first to a softmax, the last.

    Args:
        layers: all layers of the network.
        config: a functional model's configuration, which names its input and output layers; None
            for a sequential model.
    """
    first, last = layers[0], layers[-1]
    for end, layer in (("input_layers", first), ("output_layers", last)):
        if config and config[end] not in ([layer.name, 0, 0], [[layer.name, 0, 0]]):
            raise ValueError(f"its {end} are {_shown(config[end])}, and not {layer.name} alone")
    used = {name for layer in layers for name in layer.inputs}
    for layer in layers[:-1]:
        if layer.name not in used:
            raise ValueError(f"no layer takes the output of {layer.name}")
    activation = getattr(last.keras, "activation", None)
    softmax = type(last.keras) is tf.keras.layers.Softmax or (
        activation is tf.keras.activations.softmax
    )
    if not softmax or last.shape != (10,):
        raise ValueError(f"its last layer, {last.name}, is no softmax of 10 classes")


def build_model(network: Network, arrays: Mapping[str, npt.NDArray[np.float32]]) -> tf.keras.Model:
    """Makes the Keras model and assigns its weights. Call this once for each network.

    Args:
        network: as ``read_network`` returns it.
        arrays: the weights, by place; see ``Network.places``.

    Returns:
        A Keras model, float32 [B, 28, 28, 1] in 0..1 -> probabilities [B, 10].

    Raises:
        ValueError: if a layer gets other weights than described. Keras may raise other errors.
    """
    tensors: dict[str, tf.KerasTensor] = {}
    values = iter(arrays[place] for place in network.places())
    for layer in network.layers:
        if not layer.inputs:
            tensors[layer.name] = layer.keras.output
            continue
        inputs = [tensors[name] for name in layer.inputs]
        merges = type(layer.keras).__name__ in MERGING
        tensors[layer.name] = layer.keras(inputs if merges else inputs[0])
        variables = {variable.name: variable for variable in layer.keras.weights}
        if {name: tuple(v.shape) for name, v in variables.items()} != layer.weights:
            raise ValueError(f"the weights of {layer.name} are not {_shown(layer.weights)}")
        for name in layer.weights:
            variables[name].assign(next(values))
    first, last = network.layers[0].name, network.layers[-1].name
    return tf.keras.Model(tensors[first], tensors[last], name=network.name)


def _make_layer(entry: Any) -> tf.keras.layers.Layer:
    """The stock layer of one entry of a description."""
    kind, config = entry["class_name"], entry["config"]
    name = config["name"]
    if type(kind) is not str or kind not in LAYERS:
        raise ValueError(f"there is no layer {_shown(kind)} among those that are accepted")
    _require_stock(entry)
    if not _is_name(name) or entry.get("name", name) != name:
        raise ValueError(f"a layer has the name {_shown(name)}")
    options = {}
    for option, value in config.items():
        if option in ("name", "dtype") or FOR_TRAINING.fullmatch(option):
            continue
        if option not in LAYERS[kind]:
            raise ValueError(f"{name}, a {kind}, has the unknown option {_shown(option)}")
        if not LAYERS[kind][option](value):
            raise ValueError(f"{option} of {name} is {_shown(value)}, which is not accepted")
        options[option] = value
    if not _is_float32(config.get("dtype", "float32")):
        raise ValueError(f"dtype of {name} is {_shown(config['dtype'])}, and not float32")
    if kind == "SpatialDropout2D":
        options.pop("noise_shape", None)  # Keras writes this option and does not take it
    return getattr(tf.keras.layers, kind)(**options, name=name, dtype="float32")


def _inputs(entry: Any, name: str) -> tuple[str, ...]:
    """The names of the layers that a layer of a functional model takes as inputs."""
    nodes = entry["inbound_nodes"]
    if not nodes:
        return ()
    if len(nodes) > 1:
        raise ValueError(f"{name} is shared: it is called {len(nodes)} times")
    arguments, options = nodes[0]["args"], nodes[0]["kwargs"]
    if len(arguments) != 1:
        raise ValueError(f"{name} is called with {len(arguments)} arguments")
    accepted = {"mask": (None,), "training": (None, False)}
    for option, value in options.items():
        if not any(value is one for one in accepted.get(option, ())):
            raise ValueError(f"{name} is called with {_shown(option)} = {_shown(value)}")
    tensors = arguments[0] if isinstance(arguments[0], list) else arguments
    histories = [tensor["config"]["keras_history"] for tensor in tensors]
    for history in histories:
        if type(history) is not list or len(history) != 3 or history[1:] != [0, 0]:
            raise ValueError(f"an input of {name} is {_shown(history)}")
    return tuple(history[0] for history in histories)


def _weight_shapes(keras: tf.keras.layers.Layer, channels: int) -> dict[str, Shape]:
    """The shapes of a layer's weights by name, computed without making the weights."""
    shapes: dict[str, Shape] = {}
    match type(keras).__name__:
        case "Dense":
            shapes = {"kernel": (channels, keras.units), "bias": (keras.units,)}
        case "Conv2D":
            kernel = (*keras.kernel_size, channels // keras.groups, keras.filters)
            shapes = {"kernel": kernel, "bias": (keras.filters,)}
        case "DepthwiseConv2D":
            kernel = (*keras.kernel_size, channels, keras.depth_multiplier)
            shapes = {"kernel": kernel, "bias": (channels * keras.depth_multiplier,)}
        case "SeparableConv2D":
            shapes = {
                "depthwise_kernel": (*keras.kernel_size, channels, 1),
                "pointwise_kernel": (1, 1, channels, keras.filters),
                "bias": (keras.filters,),
            }
        case "BatchNormalization":
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            shapes = dict.fromkeys(names, (channels,))
        case "LayerNormalization" | "GroupNormalization":
            shapes = dict.fromkeys(("gamma", "beta"), (channels,))
    switches = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
    return {
        name: shape
        for name, shape in shapes.items()
        if name not in switches or getattr(keras, switches[name])
    }


def _require_stock(entry: Any) -> None:
    """Refuses a custom class that has the name of a Keras layer."""
    module, registered = entry.get("module", "keras.layers"), entry.get("registered_name")
    if module != "keras.layers" or registered is not None:
        kind = f"{_shown(entry['class_name'])} of {_shown(module)}, registered {_shown(registered)}"
        raise ValueError(f"{kind}, is not Keras's own layer")


def _is_name(found: Any) -> bool:
    return type(found) is str and NAME.fullmatch(found) is not None


def _is_float32(dtype: Any) -> bool:
    if isinstance(dtype, dict):
        return bool(dtype["class_name"] == "DTypePolicy" and dtype["config"] == {"name": "float32"})
    return bool(dtype == "float32")


def _shown(value: Any) -> str:
    """A value of a description in an error: short, and without control characters."""
    return ascii(value)[:60]
