"""What the network is made of beyond Keras's own layers.

On a processor these compute the same as Keras's, faster; the comments say what each way saves of
a step of the reference experiment (2 cores with AVX2, float32, batch 128). On a GPU, where they
have not been measured, the convolutions are Keras's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from research.processor import has_bfloat16, has_only_avx2

import tensorflow as tf

Gradient = Callable[[Any], tuple[Any, Any]]


class Conv2D(tf.keras.layers.Conv2D):
    """``keras.layers.Conv2D`` with ReLU, without padding and with strides of 1.

    Its weights, values and gradients are those of Keras's layer, but for rounding. It is for
    training: what is saved is the stock twin of the model.

    Args:
        filters: channels of the output.
        kernel_size: height and width of the kernel.
        add_bias: False leaves bias and ReLU to ``bias_relu``, to be called later; the layer's own
            output is then without them.
        kernel_initializer, name, dtype: as for Keras's layer.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        add_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            *(filters, kernel_size),
            activation="relu",
            kernel_initializer=kernel_initializer,
            name=name,
            dtype=dtype,
        )
        self.add_bias = add_bias

    def call(self, inputs: Any) -> Any:
        """Float [B, H, W, C] to [B, h, w, filters] in the layer's compute dtype."""
        outputs = _convolution(inputs, tf.convert_to_tensor(self.kernel))
        return bias_relu(outputs, self.bias) if self.add_bias else outputs


def _convolution(inputs: Any, kernel: Any) -> Any:
    """A convolution without padding."""
    if tf.config.get_visible_devices("GPU"):
        return tf.nn.conv2d(inputs, kernel, 1, "VALID")
    if kernel.dtype == tf.float16 or (kernel.dtype == tf.bfloat16 and not has_bfloat16()):
        # Products of 16-bit numbers are exact in float32: only the order of the sums is another
        # than in TensorFlow's bfloat16 emulation, which takes ten times as long. For the gradient
        # of a float16 kernel, oneDNN has only a reference implementation, a hundred times slower.
        wide = _convolution(tf.cast(inputs, tf.float32), tf.cast(kernel, tf.float32))
        return tf.cast(wide, kernel.dtype)
    many_channels = inputs.shape[-1] >= 8
    if kernel.dtype == tf.float32 and many_channels and has_only_avx2():
        return convolution_with_products(inputs, kernel)
    return tf.nn.conv2d(inputs, kernel, 1, "VALID")


def convolution_with_products(inputs: Any, kernel: Any) -> Any:
    """A convolution whose kernel's gradient is computed by matrix products.

    Without AVX-512 oneDNN has no good kernel for that gradient. Saves 12%.
    """
    scope = f"gradient_tape/{tf.get_current_name_scope()}/"  # where the graph shows gradients

    @tf.custom_gradient
    def convolution(inputs: Any, kernel: Any) -> tuple[Any, Gradient]:
        def gradient(upstream: Any) -> tuple[Any, Any]:
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


def _kernel_gradient(inputs: Any, upstream: Any, shape: Any) -> Any:
    """The gradient of a kernel [height, width, C, F] by one matrix product for each of its rows.

    With ``upstream`` filled up with zeros to the size of ``inputs``, and both seen as a list of
    pixels, row after row and image after image, that which meets an element of the kernel is
    a fixed number of pixels further on in the one list than in the other.
    """
    height, width, channels, filters = shape
    fill = [[0, 0], [0, height - 1], [0, width - 1], [0, 0]]
    rows = tf.reshape(tf.pad(upstream, fill), [-1, filters])
    pixels = tf.reshape(inputs, [-1, channels])
    count, line = tf.shape(pixels)[0], tf.shape(inputs)[2]
    neighbours = tf.concat([pixels[j : count - (width - 1) + j] for j in range(width)], axis=1)
    last = count - (height - 1) * line - (width - 1)  # what follows is filling
    products = [
        tf.matmul(neighbours[i * line : i * line + last], rows[:last], transpose_a=True)
        for i in range(height)
    ]
    return tf.reshape(tf.stack(products), shape)


def bias_relu(inputs: Any, bias: Any) -> Any:
    """Adds a bias to each pixel's channels, and sets what is negative to 0.

    After max pooling it gives the same as before, since neither changes which is the largest, and
    has a quarter of the work: that saves 5%.

    Args:
        inputs: float [B, H, W, F].
        bias: [F], a variable or a tensor.
    """
    with tf.name_scope("bias_relu") as scope:
        bias = tf.cast(bias, inputs.dtype)
        if tf.config.get_visible_devices("GPU"):
            return tf.nn.relu(tf.nn.bias_add(inputs, bias))

        # TensorFlow joins the gradients of a bias and of a convolution's kernel in an operation
        # that is slower than the two; a sum it leaves alone. Saves 3%.
        @tf.custom_gradient
        def add(inputs: Any, bias: Any) -> tuple[Any, Gradient]:
            outputs = tf.nn.relu(tf.nn.bias_add(inputs, bias))

            def gradient(upstream: Any) -> tuple[Any, Any]:
                with tf.name_scope(f"gradient_tape/{scope}"):  # where the graph shows gradients
                    # That of tf.nn.relu, which knows no other name.
                    below = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
                    wide = below if below.dtype == tf.float64 else tf.cast(below, tf.float32)
                    total = tf.reduce_sum(wide, axis=[0, 1, 2])
                    return below, tf.cast(total, bias.dtype)

            return outputs, gradient

        return add(inputs, bias)


def dropout(inputs: Any, rate: float, seed: Any, name: str = "dropout") -> Any:
    """Sets a random fraction of the elements to zero and scales up the others.

    Unlike ``keras.layers.Dropout`` it has no random state of its own: the mask is a function of
    the seed, so that it differs between steps and replicas, and a resumed run draws the same.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting" (2014), in the inverted form, which leaves inference as it is.

    Args:
        inputs: float tensor of any shape.
        rate: probability of an element to become zero, 0 to below 1.
        seed: integer [2], see ``research.seeds.derive_seed``.
        name: of the layer, for the graph.

    Returns:
        A tensor like ``inputs``, what is kept multiplied by 1 / (1 - rate).
    """
    with tf.name_scope(name):
        size = tf.size(inputs)
        exact_in_a_byte = rate * 256 == int(rate * 256)
        words = tf.random.stateless_uniform(
            [(size + 3) // 4 if exact_in_a_byte else size],
            seed,
            minval=None,
            maxval=None,
            dtype=tf.uint32,
            alg="philox",
        )
        # Numbers of 8 bits are made and compared faster, where they will do. Saves 3%.
        values, numbers = 2**32, words
        if exact_in_a_byte:
            values, numbers = 2**8, tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size]
        kept = tf.reshape(numbers >= int(rate * values), tf.shape(inputs))
        return inputs * (tf.cast(kept, inputs.dtype) * (1 / (1 - rate)))
