"""Examples that are forgotten are drawn more often (forgetting events: Toneva et al., 2019).

- Command: python tests/experiments/forgetting.py
"""

from __future__ import annotations

from research.data.batches import Plan
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config, MnistCNN
from research.training.optimizer import adadelta
from research.training.state import State

import tensorflow as tf


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(config.dense_width, config.dropout, config.seed, config.precision),
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
        extra={
            "correct": tf.Variable(tf.zeros([plan.examples], tf.int32)),
            "forgotten": tf.Variable(tf.zeros([plan.examples], tf.int32)),
        },
    )


def importance(state: State) -> tf.Tensor:
    """How often an example is to be drawn: once, and once more for each time it was forgotten."""
    return 1 + tf.cast(state.extra["forgotten"], tf.float32)


def indices(state: State, plan: Plan) -> tf.Tensor:
    """Examples drawn without replacement, in proportion to their importance: int64 [B]."""
    uniform = tf.random.stateless_uniform([plan.examples], state.random_seed("indices"), 1e-9, 1)
    drawn = tf.math.top_k(tf.math.log(uniform) / importance(state), plan.batch_size).indices
    return tf.cast(drawn, tf.int64)


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        losses = state.loss(labels, logits)
        weight = 1 / tf.gather(importance(state), state.indices)
        objective = tf.reduce_sum(weight * losses) / tf.reduce_sum(weight)
    gradients = state.gradients(tape, objective)
    measured = state.update(gradients)
    correct = tf.cast(tf.keras.metrics.categorical_accuracy(labels, logits), tf.int32)
    accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
    replica = tf.distribute.get_replica_context()
    correct, drawn = (replica.all_gather(each, axis=0) for each in (correct, state.indices))
    events = tf.maximum(tf.gather(state.extra["correct"], drawn) - correct, 0)
    state.extra["correct"].scatter_update(tf.IndexedSlices(correct, drawn))
    state.extra["forgotten"].scatter_add(tf.IndexedSlices(events, drawn))
    found = {"loss": tf.reduce_mean(losses), "objective": objective, "accuracy": accuracy}
    return {**found, "forgetting_events": state.extra["forgotten"], **measured}


experiment = Experiment(config=Config, build=build, step=step, indices=indices)

if __name__ == "__main__":
    main(experiment)
