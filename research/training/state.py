"""Everything that training changes or depends on, in one object."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from research.seeds import derive_seed

import numpy as np
import numpy.typing as npt
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """What a step works on. Construct it within the strategy's scope.

    Attributes:
        model: built, with trainable variables. The steps of this project call its
            ``logits(images, training, seed)``.
        loss: a function (labels [B, 10], logits [B, 10]) -> [B], each example's loss; the step
            takes the mean. Of a Keras ``Loss`` with ``reduction="none"``: with any other, Keras
            would divide by the number of replicas behind the step's back.
        optimizer: any Keras optimizer; None where the step changes the weights itself. For a
            float16 model it is wrapped here in ``tf.keras.optimizers.LossScaleOptimizer``, which
            leaves out the update of a step whose gradients overflow, and adjusts the scale.
        seed: the run's seed, 0 to 2**31 - 1; with the step it decides all randomness.
        clip_norm: gradients whose global norm is larger are scaled down to it; None for never.
        options: whatever a step wants to look up, such as the experiment's configuration.
        extra: what else the step changes, by name: variables, or models such as an average of
            the weights. What is kept anywhere else is lost when a run is resumed.
        strategy: where and on how many replicas steps run.
        step: int64 variable, the number of steps done.
        indices: int64 [B], which training examples this replica's batch is made of: positions in
            the training split. Set by ``train``; None outside of a step.
        share: this replica's part of the batch, 0 to 1; None where there is one replica. Set by
            ``train``; a step has no need of it.

    Raises:
        ValueError: if the model can't be trained, or the loss, the optimizer or what stands in
            ``extra`` is of another kind.
    """

    model: tf.keras.Model
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    optimizer: tf.keras.optimizers.Optimizer | None = None
    seed: int = 0
    clip_norm: float | None = None
    options: Any = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)
    step: tf.Variable = dataclasses.field(
        default_factory=lambda: tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
    )
    indices: tf.Tensor | None = None
    share: tf.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.model.trainable_variables:
            raise ValueError(
                f"the model {self.model.name!r} has no trainable variables, so nothing would be "
                "trained; call it once on a batch before you construct the State"
            )
        if (reduction := getattr(self.loss, "reduction", None)) not in (None, "none"):
            raise ValueError(
                f"the loss has reduction={reduction!r}; give it reduction='none' and "
                "take tf.reduce_mean of it in the step"
            )
        for name, kept in self.extra.items():
            if not hasattr(kept, "variables") and not hasattr(kept, "assign"):
                raise ValueError(
                    f"extra[{name!r}] is {kept!r}, a {type(kept).__name__}, which no step can "
                    "change: make it a tf.Variable, or a Keras model"
                )
        if self.optimizer is None:
            if self.model.compute_dtype == "float16":
                raise ValueError("a float16 model needs an optimizer: its loss must be scaled")
            return
        if not hasattr(self.optimizer, "apply"):
            raise ValueError(
                f"the optimizer is {self.optimizer!r}; give a Keras optimizer, or None where the "
                "step changes the weights itself"
            )
        if self.model.compute_dtype == "float16" and not self._scales_loss():
            scaled = tf.keras.optimizers.LossScaleOptimizer(self.optimizer)
            object.__setattr__(self, "optimizer", scaled)
        if not self.optimizer.built:
            self.optimizer.build(self.model.trainable_variables)

    def variables(self) -> dict[str, Any]:
        """Every variable that training changes, by name: all that a checkpoint has to hold.

        There is no random-number state among them: random numbers are a function of the seed
        and the step. The order is that of construction and the same in every process.
        """
        found = {"step": self.step}
        groups = {"model": self.model, "optimizer": self.optimizer}
        for group, owner in (groups | {f"extra/{k}": v for k, v in self.extra.items()}).items():
            if hasattr(owner, "variables"):
                found |= {f"{group}/{n:03d}/{v.path}": v for n, v in enumerate(owner.variables)}
            elif owner is not None:
                found[group] = owner
        return found

    def weights(self, *, all_layers: bool = False) -> dict[str, Any]:
        """The trainable variables by name, such as ``conv1/kernel``: layer, slash, variable.

        Where layers have been given the same name, a number is added to it.

        Args:
            all_layers: those that are not trained, too.
        """
        found: dict[str, Any] = {}
        for variable in self.model.weights:
            layer, _, own = variable.path.removeprefix(f"{self.model.name}/").rpartition("/")
            places = (f"{layer}_{n}" if n > 1 else layer for n in itertools.count(1))
            names = (f"{place}/{own}" if layer else own for place in places)
            found[next(name for name in names if name not in found)] = variable
        return {name: v for name, v in found.items() if all_layers or v.trainable}

    def values(self) -> dict[str, npt.NDArray[Any]]:
        """The values of ``variables()``, copied to the host, in the same order."""
        return {name: np.array(v.numpy()) for name, v in self.variables().items()}

    def assign(self, values: Iterable[Any]) -> None:
        """Gives the variables new values, one for each of ``variables()`` and in that order."""
        for variable, value in zip(self.variables().values(), values, strict=True):
            variable.assign(value)

    def random_seed(self, name: str) -> Any:
        """A seed for this step's random numbers, int64 [2], different on every replica.

        Give it to TensorFlow's stateless functions, such as ``tf.random.stateless_uniform``.
        Python's or NumPy's random numbers would be drawn once, while the step is traced, and
        stay the same in all steps.

        Args:
            name: what the numbers are for; other names give other numbers.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return derive_seed(self.seed, name, self.step, replica)

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """The gradients of this replica's loss, one for each trainable variable.

        Args:
            tape: has recorded the computation of ``loss``.
            loss: scalar.

        Returns:
            Tensors shaped as the variables. Where a loss scale is in use, it multiplies the loss
            on the way back, so that small float16 gradients survive, and is divided out here.

        Raises:
            ValueError: if the loss is no scalar, or does not depend on some variable.
        """
        if loss.shape.rank != 0:
            raise ValueError(
                f"the loss has shape {loss.shape}, a number for each example: take "
                "tf.reduce_mean of it, or their sum would be trained on"
            )
        variables = self.model.trainable_variables
        scale = self._loss_scale()
        seed = None if scale is None else tf.cast(scale, loss.dtype)
        gradients = tape.gradient(loss, [v.value for v in variables], output_gradients=seed)
        unconnected = [v.path for v, g in zip(variables, gradients, strict=True) if g is None]
        if unconnected:
            raise ValueError(
                f"the loss does not depend on {', '.join(unconnected)}: compute it from the "
                "model's output within the tape, without leaving TensorFlow"
            )
        return gradients if scale is None else [g / scale for g in gradients]

    def update(self, gradients: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Averages the gradients over the replicas, clips them, and changes the weights.

        Args:
            gradients: as ``self.gradients`` returns them.

        Returns:
            What is worth recording: ``optimizer/learning_rate``, that of this update;
            ``optimizer/loss_scale`` where there is one; and what ``self.reduce`` measures. With a
            loss scale the norm and the gradients of a step that is left out are given as 0.

        Raises:
            ValueError: if there is no optimizer.
        """
        if self.optimizer is None:
            raise ValueError(
                "the state has no optimizer to update the weights with: give State one, or call "
                "state.reduce(gradients) and change the weights in the step"
            )
        with tf.name_scope("update"):
            measured = {"optimizer/learning_rate": self.optimizer.learning_rate}
            gradients, found = self.reduce(gradients)
            scale = self._loss_scale()
            if scale is not None:
                finite = tf.math.is_finite(found["optimizer/gradient_norm"])
                found = {name: tf.where(finite, value, 0.0) for name, value in found.items()}
                found["optimizer/loss_scale"] = tf.identity(scale)
                gradients = [g * scale for g in gradients]  # the optimizer will divide by it
            replicas = self.strategy.num_replicas_in_sync
            if replicas > 1:
                gradients = [g / replicas for g in gradients]  # the optimizer will sum over them
            self.optimizer.apply(gradients, self.model.trainable_variables)
            return measured | found

    def reduce(self, gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Averages the gradients over the replicas, measures and clips them.

        That is what ``update`` does before it changes the weights. A step with an optimizer of
        its own calls it instead, and every replica gets the same gradients.

        Args:
            gradients: as ``self.gradients`` returns them.

        Returns:
            The gradients of the whole batch, and what is worth recording of them before clipping:
            ``optimizer/gradient_norm``, the global norm, and for each variable
            ``gradients/<layer>/<variable>``, the gradient as a vector.
        """
        if self.share is not None:
            weighted = [g * self.share for g in gradients]
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, weighted)
        norm = tf.linalg.global_norm(gradients)
        measured = {"optimizer/gradient_norm": norm}
        names = [f"gradients/{name}" for name in self.weights()]
        vectors = [tf.reshape(g, [-1]) for g in gradients]
        measured |= dict(zip(names, vectors, strict=True))
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        return gradients, measured

    def _scales_loss(self) -> bool:
        return isinstance(self.optimizer, tf.keras.optimizers.LossScaleOptimizer)

    def _loss_scale(self) -> tf.Tensor | None:
        if self.optimizer is None or not self._scales_loss():
            return None
        return self.optimizer.scale_loss(tf.constant(1.0))
