"""A convolution, bias with ReLU, and dropout: as Keras computes them, but faster on a CPU.

Each "Saves ..." is a share of a training step of the reference experiment (2 cores with AVX2,
float32, batch 128). On a GPU, where nothing was measured, the convolutions are Keras's own.
"""

from __future__ import annotations

from collections.abc import Callable

from research.processor import has_bfloat16, has_only_avx2
from research.seeds import Seed, random_bytes, random_words

import tensorflow as tf

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Conv2D(tf.keras.layers.Conv2D):
    """``keras.layers.Conv2D`` with ReLU, without padding and with strides of 1.

    Its weights, outputs and gradients equal those of Keras's layer up to rounding. It is for
    training: mnist.h5 holds the stock twin of the model, not this layer.

    Args:
        filters: channels of the output.
        kernel_size: height and width of the kernel.
        add_bias: False omits bias and ReLU from the output; call ``bias_relu`` later.
        kernel_initializer, name, dtype: as for Keras's layer.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        add_bias: bool = True,
        kernel_initializer: str | tf.keras.initializers.Initializer = "glorot_uniform",
        name: str | None = None,
        dtype: str | tf.keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(
            *(filters, kernel_size),
            activation="relu",
            kernel_initializer=kernel_initializer,
            name=name,
            dtype=dtype,
        )
        self.add_bias = add_bias

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Float [B, H, W, C] to [B, h, w, filters] in the layer's compute dtype."""
        outputs = _convolution(inputs, tf.convert_to_tensor(self.kernel))
        return bias_relu(outputs, self.bias) if self.add_bias else outputs


def _convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A convolution without padding."""
    if tf.config.get_visible_devices("GPU"):
        return tf.nn.conv2d(inputs, kernel, 1, "VALID")
    if kernel.dtype == tf.float16 or (kernel.dtype == tf.bfloat16 and not has_bfloat16()):
        # Products of 16-bit numbers are exact in float32. Only the order of the sums differs from
        # TensorFlow's emulation of bfloat16, which takes ten times as long. For the gradient of a
        # float16 kernel oneDNN has only a reference implementation, a hundred times slower.
        wide = _convolution(tf.cast(inputs, tf.float32), tf.cast(kernel, tf.float32))
        return tf.cast(wide, kernel.dtype)
    many_channels = inputs.shape[-1] >= 8
    if kernel.dtype == tf.float32 and many_channels and has_only_avx2():
        return convolution_with_products(inputs, kernel)
    return tf.nn.conv2d(inputs, kernel, 1, "VALID")


def convolution_with_products(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A convolution that computes the gradient of its kernel by matrix products.

    Without AVX-512, oneDNN computes this gradient slowly. Saves 12%.
    """
    scope = f"gradient_tape/{tf.get_current_name_scope()}/"  # the graph's scope for gradients

    @tf.custom_gradient
    def convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.name_scope(scope):
                to_inputs = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(inputs),
                    filter=kernel,
                    out_backprop=upstream,
                    strides=[1, 1, 1, 1],
                    padding="VALID",
                )
                return to_inputs, _kernel_gradient(inputs, upstream, kernel.shape)

        return tf.nn.conv2d(inputs, kernel, 1, "VALID"), gradient

    return convolution(inputs, kernel)


def _kernel_gradient(inputs: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """The gradient of a kernel [height, width, C, F]: one matrix product for each kernel row.

    ``upstream`` is padded with zeros to the size of ``inputs``, and both are flattened to lists of
    pixels, row after row and image after image. Kernel element (i, j) then multiplies the input
    pixel i * line + j places after the output pixel, for all rows and images.
    """
    height, width, channels, filters = shape
    fill = [[0, 0], [0, height - 1], [0, width - 1], [0, 0]]
    rows = tf.reshape(tf.pad(upstream, fill), [-1, filters])
    pixels = tf.reshape(inputs, [-1, channels])
    count, line = tf.shape(pixels)[0], tf.shape(inputs)[2]
    neighbours = tf.concat([pixels[j : count - (width - 1) + j] for j in range(width)], axis=1)
    last = count - (height - 1) * line - (width - 1)  # the rest is padding
    products = [
        tf.matmul(neighbours[i * line : i * line + last], rows[:last], transpose_a=True)
        for i in range(height)
    ]
    return tf.reshape(tf.stack(products), shape)


def bias_relu(inputs: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Adds a bias to each pixel's channels and applies ReLU.

    Call it after max pooling: the result is the same as before pooling, since neither changes which
    element is the largest, and there are a quarter of the elements. Saves 5%.

    Args:
        inputs: float [B, H, W, F].
        bias: float [F], a variable or a tensor.
    """
    with tf.name_scope("bias_relu") as scope:
        bias = tf.cast(bias, inputs.dtype)
        if tf.config.get_visible_devices("GPU"):
            return tf.nn.relu(tf.nn.bias_add(inputs, bias))

        # TensorFlow fuses the gradients of a bias and of a convolution's kernel into an operation
        # that is slower than both. It does not fuse a sum. Saves 3%.
        @tf.custom_gradient
        def add(inputs: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
            outputs = tf.nn.relu(tf.nn.bias_add(inputs, bias))

            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                with tf.name_scope(f"gradient_tape/{scope}"):  # the graph's scope for gradients
                    # ReluGrad is the op that tf.nn.relu's own gradient uses.
                    below = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
                    wide = below if below.dtype == tf.float64 else tf.cast(below, tf.float32)
                    total = tf.reduce_sum(wide, axis=[0, 1, 2])
                    return below, tf.cast(total, bias.dtype)

            return outputs, gradient

        return add(inputs, bias)


def dropout(inputs: tf.Tensor, rate: float, seed: Seed, name: str = "dropout") -> tf.Tensor:
    """Sets a random fraction of the elements to zero and scales up the others.

    Unlike ``keras.layers.Dropout`` this function has no random state: the mask is a function of the
    seed and, with ``state.random_seed``, of the position in the whole batch: several replicas drop
    what one replica would drop. A resumed run passes the same seeds again.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting" (2014), in the inverted form, which leaves inference unchanged.

    Args:
        inputs: float tensor of any shape; with a ``PartSeed`` its first axis has the examples.
        rate: probability that an element becomes zero, 0 to below 1.
        seed: integer [2] or a ``PartSeed``, see ``research.seeds``.
        name: the name scope in the graph.

    Returns:
        A tensor like ``inputs``; the elements that are kept are multiplied by 1 / (1 - rate).
    """
    with tf.name_scope(name):
        size = tf.size(inputs)
        exact_in_a_byte = rate * 256 == int(rate * 256)
        # A rate of k/256 needs 8 random bits an element, not 32. Saves 3%.
        values, numbers = (
            (2**8, random_bytes(seed, size))
            if exact_in_a_byte
            else (2**32, random_words(seed, size))
        )
        kept = tf.reshape(numbers >= int(rate * values), tf.shape(inputs))
        return inputs * (tf.cast(kept, inputs.dtype) * (1 / (1 - rate)))
