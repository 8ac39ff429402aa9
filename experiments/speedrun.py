"""The shortest training to a mean test accuracy of 99.25%.

The reference experiment with six changes. The first layer is not trained: its random filters are
as good, and a step is a fifth shorter. The learning rate is higher, rises over the first third and
falls to zero. Images are shifted by up to a pixel. Labels are smoothed. There is no dropout: so
short a training does not overfit. The second pass, of half the length, visits the examples that had
the highest loss in the first. All six were selected on held-out training examples.

- Command: python experiments/speedrun.py
- Duration: about a minute and a half on 2 CPU cores
- Expect: test accuracy of 99.37% on average, 0.05 points of standard deviation
"""

from __future__ import annotations

import dataclasses

from research.data.augmentation import random_shift
from research.data.batches import Plan, batch_indices
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
    """The reference experiment's options, with other defaults."""

    epochs: float = 1.5
    learning_rate: float = 4.0
    decay: Decay = "linear"
    warmup_epochs: float = 0.45
    dropout: tuple[float, float] = (0.0, 0.0)


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    model = MnistCNN(config.dense_width, config.dropout, config.seed, config.precision)
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
        extra={
            "losses": tf.Variable(tf.zeros([plan.examples]), **same),
            "order": tf.Variable(tf.zeros([plan.examples], tf.int64), **same),
        },
    )


def indices(state: State, plan: Plan) -> tf.Tensor:
    """The next batch, int64 [B]. A pass visits those of the highest loss, as many as are due.

    In the first pass all are due, and no loss is known yet.
    """
    order, start = state.extra["order"], state.step % plan.steps_per_epoch
    if start == 0:
        due = tf.minimum((plan.steps - state.step) * plan.batch_size, plan.examples)
        hardest = tf.argsort(state.extra["losses"], direction="DESCENDING", stable=True)[:due]
        seed = derive_seed(state.seed, "order", state.step // plan.steps_per_epoch)
        visited = tf.random.experimental.stateless_shuffle(tf.cast(hardest, tf.int64), seed)
        order.assign(tf.concat([visited, order[due:]], 0))
    return batch_indices(order, start, plan.batch_size)


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    images = random_shift(images, state.random_seed("augmentation"), pixels=1)
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        losses = state.loss(labels, logits)
        objective = tf.reduce_mean(losses)
    gradients = state.gradients(tape, objective)
    measured = state.update(gradients)
    gather = tf.distribute.get_replica_context().all_gather
    visited, losses = gather(state.indices, axis=0), gather(losses, axis=0)
    state.extra["losses"].scatter_update(tf.IndexedSlices(losses, visited))
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "objective": objective, "accuracy": accuracy, **measured}


experiment = Experiment(config=Config, build=build, step=step, indices=indices)

if __name__ == "__main__":
    main(experiment)
