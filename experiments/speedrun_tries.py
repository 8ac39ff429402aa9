"""What was tried to make speedrun.py better: it is the recipe of before, with one option a try.

With --hardest it is today's speedrun.py, bit for bit.

- Command: python experiments/speedrun_tries.py --hardest
- Duration: about a minute and a half on 2 CPU cores
- Expect: the table "Tries for the records" in experiments/README.md
"""

from __future__ import annotations

import dataclasses

from research.config import require
from research.data.augmentation import random_shift
from research.data.batches import Plan, batch_indices, epoch_order
from research.experiment import Experiment, main
from research.network.initialization import set_decorrelating_filters
from research.network.layers import bias_relu
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.seeds import derive_seed
from research.training.optimizer import adadelta
from research.training.schedules import Decay
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The speedrun's options, and those of the tries."""

    epochs: float = 1.5
    learning_rate: float = 4.0
    decay: Decay = "linear"
    warmup_epochs: float = 0.45
    dropout: tuple[float, float] = (0.0, 0.0)

    crop: int = 28
    """The convolutions see only the middle of the image, so many pixels wide: 28, 24, 20 or 16."""
    full_from: float = 1.0
    """They see the whole image from this fraction of the training on."""
    hardest: bool = False
    """A pass visits as many examples as are due, those that had the highest loss before."""
    alternate: bool = False
    """In every second pass, each image gets the shift opposite to that of the pass before."""
    average_decay: float = 0.0
    """Judge a moving average of the weights, with this decay."""
    small_batch: int = 0
    """Begin with batches of this size; 0 for never."""
    small_until: float = 0.3
    """Batches are small up to this fraction of the training."""


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    require("crop", config.crop, config.crop in (16, 20, 24, 28), "give 28, 24, 20 or 16")
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    network = (config.dense_width, config.dropout, config.seed, config.precision)
    model = MnistCNN(*network)
    set_decorrelating_filters(model.conv1, config.seed)
    model.conv1.trainable = False
    shifts = tf.random.stateless_uniform([plan.examples, 2], [config.seed, 1], -1, 2, tf.int32)
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
        options=(config, plan),
        extra={
            "losses": tf.Variable(tf.zeros([plan.examples]), **same),
            "order": tf.Variable(tf.zeros([plan.examples], tf.int64), **same),
            "shifts": tf.Variable(shifts, **same),
            **({"average": MnistCNN(*network)} if config.average_decay else {}),
        },
    )


def indices(state: State, plan: Plan) -> tf.Tensor:
    """The positions of the examples of the next batch, int64 [B]; see speedrun.py."""
    config, order = state.options[0], state.extra["order"]
    if config.small_batch:
        few = int(config.small_until * plan.steps)
        first = tf.minimum(state.step, few) * config.small_batch
        first += tf.maximum(state.step - few, 0) * plan.batch_size
        size = tf.where(state.step < few, config.small_batch, plan.batch_size)
        two = tf.concat([epoch_order(state.seed, n, plan.examples) for n in (0, 1)], 0)
        return two[first : first + tf.cast(size, tf.int64)]
    start, epoch = state.step % plan.steps_per_epoch, state.step // plan.steps_per_epoch
    if start == 0 and config.hardest:
        due = tf.minimum((plan.steps - state.step) * plan.batch_size, plan.examples)
        hardest = tf.argsort(state.extra["losses"], direction="DESCENDING", stable=True)[:due]
        seed = derive_seed(state.seed, "order", epoch)
        visited = tf.random.experimental.stateless_shuffle(tf.cast(hardest, tf.int64), seed)
        order.assign(tf.concat([visited, order[due:]], 0))
    elif start == 0:
        order.assign(epoch_order(state.seed, epoch, plan.examples))
    return batch_indices(order, start, plan.batch_size)


def logits_of_the_middle(model: MnistCNN, images: tf.Tensor, crop: int) -> tf.Tensor:
    """The logits as if all features that see pixels outside of the middle saw blank ones."""
    margin = (28 - crop) // 2

    def features(images: tf.Tensor) -> tf.Tensor:
        return bias_relu(model.pool(model.conv2(model.conv1(images))), model.conv2.bias)

    middle = features(images[:, margin : 28 - margin, margin : 28 - margin])
    # All features of blank pixels are alike: those of six by six pixels are one.
    blank = features(tf.zeros_like(images[:1, :6, :6]))
    sides = [[0, 0], [margin // 2, margin // 2], [margin // 2, margin // 2], [0, 0]]
    inside = tf.pad(tf.ones_like(middle[:1, :, :, :1]), sides)
    x = tf.pad(middle, sides) + blank * (1 - inside)
    return tf.cast(model.dense2(model.dense1(model.flatten(x))), tf.float32)


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    config, plan = state.options
    if config.alternate:
        sign = 1 - 2 * tf.cast(state.step // plan.steps_per_epoch % 2, tf.int32)
        images = shifted(images, sign * tf.gather(state.extra["shifts"], state.indices))
    else:
        images = random_shift(images, state.random_seed("augmentation"), pixels=1)
    with tf.GradientTape() as tape:
        if config.crop == 28:
            logits = state.model.logits(images, training=True)
        elif config.full_from == 1 or state.step < int(config.full_from * plan.steps):
            logits = logits_of_the_middle(state.model, images, config.crop)
        else:
            logits = state.model.logits(images, training=True)
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


def shifted(images: tf.Tensor, shifts: tf.Tensor) -> tf.Tensor:
    """Shifts each image by -1, 0 or 1 pixel along both axes: shifts int32 [B, 2]."""
    height, width = images.shape[1:3]
    rows = tf.range(1, height + 1) + shifts[:, :1]
    columns = tf.range(1, width + 1) + shifts[:, 1:]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


experiment = Experiment(
    config=Config,
    build=build,
    step=step,
    indices=indices,
    judged=lambda state: state.extra.get("average", state.model),
)

if __name__ == "__main__":
    main(experiment)
