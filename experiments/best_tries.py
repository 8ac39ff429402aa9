"""What was tried to make best.py better; by default it is best.py, bit for bit.

- Command: python experiments/best_tries.py --elastic 1
- Duration: about a quarter of an hour on 2 CPU cores
- Expect: the table "Tries for the records" in experiments/README.md
"""

from __future__ import annotations

import dataclasses

from research.data.augmentation import random_affine
from research.data.batches import Plan, batch_indices, epoch_order
from research.experiment import Experiment, main
from research.network.initialization import set_decorrelating_filters
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.seeds import derive_seed
from research.training.optimizer import adadelta
from research.training.schedules import Decay
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The options of best.py, and those of the tries."""

    epochs: float = 18
    learning_rate: float = 3.0
    decay: Decay = "linear"
    warmup_epochs: float = 1.0
    dropout: tuple[float, float] = (0.0, 0.0)

    elastic: float = 0.0
    """Standard deviation of an elastic distortion's displacements, in pixels."""
    average_decay: float = 0.0
    """Judge a moving average of the weights, with this decay."""
    hardest: bool = False
    """After each pass, visit once more the half of the examples that had the highest loss."""


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    network = (config.dense_width, config.dropout, config.seed, config.precision)
    model = MnistCNN(*network)
    set_decorrelating_filters(model.conv1, config.seed)
    model.conv1.trainable = False
    # The step makes the same values on every replica.
    same = {"aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
    return State(
        model=model,
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1, reduction="none"
        ),
        seed=config.seed,
        clip_norm=config.clip_norm,
        options=config,
        extra={
            "losses": tf.Variable(tf.zeros([plan.examples]), **same),
            "order": tf.Variable(tf.zeros([plan.examples], tf.int64), **same),
            **({"average": MnistCNN(*network)} if config.average_decay else {}),
        },
    )


def indices(state: State, plan: Plan) -> tf.Tensor:
    """The positions of the examples of the next batch, int64 [B]."""
    order, whole = state.extra["order"], plan.steps_per_epoch
    cycle = whole + whole // 2 if state.options.hardest else whole
    start = state.step % cycle
    if start == 0:
        order.assign(epoch_order(state.seed, state.step // cycle, plan.examples))
    elif start == whole:
        hardest = tf.argsort(state.extra["losses"], direction="DESCENDING", stable=True)
        half = tf.cast(hardest[: whole // 2 * plan.batch_size], tf.int64)
        seed = derive_seed(state.seed, "hardest", state.step)
        visited = tf.random.experimental.stateless_shuffle(half, seed)
        order.assign(tf.concat([visited, order[tf.size(half) :]], 0))
    return batch_indices(order, start % whole, plan.batch_size)


def distort(images: tf.Tensor, seed: tf.Tensor, pixels: float) -> tf.Tensor:
    """Moves each pixel of [B, 28, 28, 1] by a smooth random displacement (Simard et al., 2003).

    The displacements are normal numbers on a grid of 7 by 7, interpolated bicubically.
    """
    coarse = tf.random.stateless_normal([tf.shape(images)[0], 7, 7, 2], seed)
    moved = pixels * tf.image.resize(coarse, [28, 28], "bicubic")
    places = moved + tf.cast(
        tf.stack(tf.meshgrid(range(28), range(28), indexing="ij"), -1), "float32"
    )
    places = tf.clip_by_value(places, 0.0, 26.999)  # the border of an image is blank
    corner = tf.floor(places)
    down, right = tf.unstack((places - corner)[..., tf.newaxis], axis=3)
    row, column = tf.unstack(tf.cast(corner, tf.int32), axis=3)
    flat = tf.reshape(images, [-1, 784, 1])

    def pixel(i: int, j: int) -> tf.Tensor:
        return tf.gather(flat, (row + i) * 28 + column + j, batch_dims=1)

    above = pixel(0, 0) * (1 - right) + pixel(0, 1) * right
    below = pixel(1, 0) * (1 - right) + pixel(1, 1) * right
    return above * (1 - down) + below * down


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    seed, config = state.random_seed("augmentation"), state.options
    images = random_affine(images, seed, shift=2, rotation=12, scale=0.12, shear=0.15)
    if config.elastic:
        images = distort(images, state.random_seed("elastic"), config.elastic)
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        losses = state.loss(labels, logits)
        objective = tf.reduce_mean(losses)
    gradients = state.gradients(tape, objective)
    measured = state.update(gradients)
    if config.hardest:
        gather = tf.distribute.get_replica_context().all_gather
        visited, losses = gather(state.indices, axis=0), gather(losses, axis=0)
        state.extra["losses"].scatter_update(tf.IndexedSlices(losses, visited))
    if config.average_decay:
        done = tf.cast(state.step, tf.float32)
        decay = tf.minimum(config.average_decay, (1 + done) / (10 + done))
        pairs = zip(state.extra["average"].weights, state.model.weights, strict=True)
        for average, weight in pairs:
            average.assign(weight + decay * (average - weight))
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "objective": objective, "accuracy": accuracy, **measured}


experiment = Experiment(
    config=Config,
    build=build,
    step=step,
    indices=indices,
    judged=lambda state: state.extra.get("average", state.model),
)

if __name__ == "__main__":
    main(experiment)
