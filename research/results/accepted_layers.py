"""The layers, options and sizes that a network in an mnist.h5 may have. All others are refused.

``LAYERS`` has a check for each accepted option of each accepted layer. ``stock_network.py`` applies
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


def _only(*values: Any) -> Check:
    texts = [json.dumps(value) for value in values]  # 1 == 1.0 == True, but their JSON differs
    return lambda found: json.dumps(found) in texts


def _whole(low: int, high: int) -> Check:
    return lambda found: type(found) is int and low <= found <= high


def _number(low: float, high: float) -> Check:
    return lambda found: type(found) in (int, float) and low <= found <= high  # NaN fails


def _both(check: Check) -> Check:
    return lambda found: type(found) is list and len(found) == 2 and all(map(check, found))


def _or_none(check: Check) -> Check:
    return lambda found: found is None or check(found)


MOST_LAYERS = 256
MOST_INPUTS = 16  # inputs of one merging layer
# Numbers per example. In batches of 500 all float32 outputs together stay below 2 GiB.
LARGEST_OUTPUT = 2**17
LARGEST_OUTPUTS = 2**20
MOST_MULTIPLICATIONS = 2**30  # per example; the reference network needs 13 million

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FLAG = _only(True, False)
_SIZES = _both(_whole(1, 28))
_CHANNELS_LAST = _only("channels_last")
_ACTIVATION = _only(
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("tanh", "sigmoid", "hard_sigmoid", "hard_silu", "softplus", "softsign", "softmax"),
)
_WINDOW: dict[str, Check] = {
    "strides": _SIZES,
    "padding": _only("valid", "same"),
    "data_format": _CHANNELS_LAST,
}
_KERNEL = {"kernel_size": _SIZES, "dilation_rate": _SIZES, **_WINDOW}
_BIASED: dict[str, Check] = {"activation": _ACTIVATION, "use_bias": _FLAG}
_SCALED: dict[str, Check] = {"epsilon": _number(1e-9, 1), "center": _FLAG, "scale": _FLAG}
_POOLING = {"pool_size": _SIZES, **_WINDOW}
_GLOBAL_POOLING: dict[str, Check] = {"data_format": _CHANNELS_LAST, "keepdims": _FLAG}
_RATE = _number(0, 0.999999)
_SLOPE = _number(-1e6, 1e6)

LAYERS: dict[str, dict[str, Check]] = {
    "InputLayer": {
        "batch_shape": _only([None, 28, 28, 1]),
        **dict.fromkeys(("sparse", "ragged", "optional"), _only(False)),
    },
    "Conv2D": {"filters": _whole(1, 4096), "groups": _whole(1, 4096), **_KERNEL, **_BIASED},
    "DepthwiseConv2D": {"depth_multiplier": _whole(1, 64), **_KERNEL, **_BIASED},
    "SeparableConv2D": {
        "filters": _whole(1, 4096),
        "depth_multiplier": _only(1),  # a larger one would hide a large output inside the layer
        **_KERNEL,
        **_BIASED,
    },
    "Dense": {"units": _whole(1, 2**17), "quantization_config": _only(None), **_BIASED},
    "BatchNormalization": {
        "axis": _only(-1, 3),
        "momentum": _number(0, 1),
        "renorm": _only(False),
        "renorm_clipping": _only(None),
        **_SCALED,
    },
    "LayerNormalization": {"axis": _only(-1, [-1], 3, [3]), "rms_scaling": _only(False), **_SCALED},
    "GroupNormalization": {"axis": _only(-1, 3), "groups": _whole(1, 4096), **_SCALED},
    "MaxPooling2D": _POOLING,
    "AveragePooling2D": _POOLING,
    "GlobalMaxPooling2D": _GLOBAL_POOLING,
    "GlobalAveragePooling2D": _GLOBAL_POOLING,
    "ZeroPadding2D": {"padding": _both(_both(_whole(0, 28))), "data_format": _CHANNELS_LAST},
    "Flatten": {"data_format": _CHANNELS_LAST},
    "Dropout": {"rate": _RATE, "noise_shape": _only(None)},
    "SpatialDropout2D": {"rate": _RATE, "data_format": _CHANNELS_LAST, "noise_shape": _only(None)},
    "GaussianNoise": {"stddev": _number(0, 1e6)},
    "Activation": {"activation": _ACTIVATION},
    "ReLU": {
        "max_value": _or_none(_number(0, 1e6)),
        "negative_slope": _number(0, 1e6),
        "threshold": _number(0, 1e6),
    },
    "LeakyReLU": {"negative_slope": _SLOPE},
    "ELU": {"alpha": _SLOPE},
    "Softmax": {"axis": _only(-1)},
    "Add": {},
    "Multiply": {},
    "Average": {},
    "Maximum": {},
    "Concatenate": {"axis": _only(-1)},
}
MERGING = ("Add", "Multiply", "Average", "Maximum", "Concatenate")
# Options that don't change predictions. They are ignored.
FOR_TRAINING = re.compile(
    r"trainable|seed|synchronized|renorm_momentum|\w+_(initializer|regularizer|constraint)"
)
