"""The state of training: all that a step changes or depends on, in one object."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from research.seeds import PartSeed, derive_seed, random_uniform

import numpy as np
import numpy.typing as npt
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The part of a batch that a step works on, where one step does not have the whole of it.

    Each replica has one part, or several with gradient accumulation.

    Attributes:
        number: int32 scalar, which part, counted from 0 over all replicas.
        first: int32 scalar, the position of the part's first example in the batch.
        batch: int32 scalar, the number of examples in the batch.
        weight: float64 scalar, the number of the part's examples divided by the mean of all parts.
        of_replica: the number of parts on each replica, which are worked on in turn.
        sums: the sums of the gradients of the replica's parts so far: of one, of two and so on.
    """

    number: tf.Tensor
    first: tf.Tensor
    batch: tf.Tensor
    weight: tf.Tensor
    of_replica: int
    sums: list[list[tf.Tensor]]

    def add(self, gradients: list[tf.Tensor]) -> None:
        """Adds the gradients to those of the replica's earlier parts."""
        if self.sums:
            gradients = [a + b for a, b in zip(self.sums[-1], gradients, strict=True)]
        self.sums.append(gradients)

    @property
    def is_last(self) -> bool:
        """Whether the gradients of all parts of the replica have been added."""
        return self.of_replica in (1, len(self.sums))


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """The state of training. Construct it within the strategy's scope.

    Attributes:
        model: a built model with trainable variables. The steps of this project call its
            ``logits(images, training, seed)``.
        loss: a function (labels [B, 10], logits [B, 10]) -> [B], each example's loss; the step
            takes the mean. A Keras ``Loss`` must have ``reduction="none"``: with any other, Keras
            would also divide by the number of replicas.
        optimizer: any Keras optimizer; None if the step changes the weights itself. On several
            replicas its ``apply`` takes averaged gradients. For a float16 model it is wrapped here
            in ``tf.keras.optimizers.LossScaleOptimizer``, which skips the update of a step whose
            gradients overflow, and adjusts the loss scale.
        seed: the run's seed, 0 to 2**31 - 1. Seed and step decide all random numbers.
        clip_norm: gradients with a larger global norm are scaled down to this norm; None for never.
        options: any values that the step reads, such as the experiment's configuration.
        extra: whatever else the step changes, by name: variables, or models such as an average of
            the weights. Checkpoints hold them. A resumed run loses values kept anywhere else.
        strategy: decides the devices and the number of replicas.
        step: int64 variable, the number of steps done.
        indices: int64 [B], the positions of the step's examples in the training split. Set by
            ``train``; None outside of a step.
        part: the part of the batch that these examples are; None if they are the whole. Set by
            ``train``.

    Raises:
        ValueError: if the model has no trainable variables, or ``loss``, ``optimizer`` or a value
            in ``extra`` is of the wrong kind.
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
    part: Part | None = None

    def __post_init__(self) -> None:
        if not self.model.trainable_variables:
            raise ValueError(
                f"the model {self.model.name!r} has no trainable variables, so nothing would be "
                "trained; call it once on a batch before you construct the State"
            )
        if not self.model.built:
            raise ValueError(
                f"the model {self.model.name!r} is not built: call it once on a batch before you "
                "construct the State"
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
            several = self.strategy.num_replicas_in_sync > 1
            if several and getattr(kept, "aggregation", None) == tf.VariableAggregation.NONE:
                raise ValueError(
                    f"extra[{name!r}] has no aggregation, and its copies on several replicas could "
                    "drift apart: give tf.Variable an aggregation, such as "
                    "tf.VariableAggregation.MEAN, or ONLY_FIRST_REPLICA for values that the step "
                    "makes the same on all"
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
        if self.strategy.num_replicas_in_sync > 1:
            # ``reduce`` averages: Keras would add over the replicas again, and send as much again.
            inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            inner._all_reduce_sum_gradients = lambda gradients_and_variables: (
                gradients_and_variables
            )

    def variables(self) -> dict[str, Any]:
        """All variables that training changes, by name: the content of a checkpoint.

        There is no random-number state among them, since random numbers are a function of seed and
        step. The order is the order of construction, the same in every process.
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
        """The trainable variables by name, ``<layer>/<variable>``, such as ``conv1/kernel``.

        A number is added to the name of a second layer of the same name.

        Args:
            all_layers: include the variables that are not trained.
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
        """Assigns new values: one for each of ``variables()``, in that order."""
        for variable, value in zip(self.variables().values(), values, strict=True):
            variable.assign(value)

    def random_seed(self, name: str) -> Any:
        """A seed for this step's random numbers, int64 [2], different on every replica.

        Pass it to TensorFlow's stateless functions, such as ``tf.random.stateless_uniform``.
        Python's or NumPy's random numbers would be drawn once, while the step is traced, and be
        the same in all steps.

        This project's dropout and augmentation, and what else draws by ``research.seeds``, draw
        with it for each example what one replica would draw for the same example.

        Args:
            name: the use of the numbers, such as ``"dropout"``; each name gives other numbers.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        if self.part is None:
            return derive_seed(self.seed, name, self.step, replica)
        first, examples, batch = (
            tf.cast(n, tf.int64) for n in (self.part.first, tf.size(self.indices), self.part.batch)
        )
        own = derive_seed(self.seed, name, self.step, self.part.number)
        return PartSeed(own, self.batch_seed(name), first, examples, batch)

    def batch_seed(self, name: str) -> tf.Tensor:
        """A seed that is the same on every replica, int64 [2], for what the whole batch shares.

        On one replica it is ``random_seed(name)``.
        """
        return derive_seed(self.seed, name, self.step, 0)

    def random_uniform(
        self, name: str, shape: Sequence[int] | tf.Tensor, low: float = 0.0, high: float = 1.0
    ) -> tf.Tensor:
        """Random numbers for each example, the same on one replica and on several.

        Args:
            name: the use of the numbers, as for ``random_seed``.
            shape: the shape, such as ``tf.shape(images)``; the first axis has the step's examples.
            low, high: the limits; all numbers from ``low`` to below ``high`` are equally likely.

        Returns:
            A float32 tensor of that shape.
        """
        return random_uniform(self.random_seed(name), shape, low, high)

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """Computes the gradients of this replica's loss, one for each trainable variable.

        With a loss scale, the scaled loss is differentiated, so that small float16 gradients do not
        underflow; the gradients are then divided by the scale. On several replicas the gradients
        are weighted by the number of this replica's examples.

        Args:
            tape: the tape that recorded the computation of ``loss``.
            loss: a scalar, the mean over this replica's examples.

        Returns:
            Tensors with the shapes of the variables.

        Raises:
            ValueError: if the loss is not a scalar, or does not depend on every variable.
        """
        if loss.shape.rank != 0:
            raise ValueError(
                f"the loss has shape {loss.shape}, a number for each example: take "
                "tf.reduce_mean of it, or their sum would be trained on"
            )
        variables = self.model.trainable_variables
        scale = self._loss_scale()
        seed = None if scale is None else tf.cast(scale, loss.dtype)
        if self.part is not None:
            # Before differentiation: batch normalization mixes the losses of all replicas.
            seed = (1 if seed is None else seed) * tf.cast(self.part.weight, loss.dtype)
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
            Measurements by name: ``optimizer/learning_rate`` of this update,
            ``optimizer/loss_scale`` if there is one, and the measurements of ``self.reduce``. When
            loss scaling skips a step, its norm and gradients are given as 0.

        Raises:
            ValueError: if the state has no optimizer.
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
            if self.part is not None and not self.part.is_last:
                return measured | found
            self.optimizer.apply(gradients, self.model.trainable_variables)
            return measured | found

    def reduce(self, gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Averages the gradients over the replicas, measures and clips them.

        ``update`` calls this before it changes the weights. A step without a Keras optimizer calls
        ``reduce`` instead of ``update``; every replica gets the same gradients.

        Args:
            gradients: as ``self.gradients`` returns them.

        Returns:
            The clipped gradients of the whole batch; and measurements before clipping, by name:
            ``optimizer/gradient_norm``, the global norm, and for each variable
            ``weight_gradients/<layer>/<variable>``, the gradient as a vector.
        """
        if self.part is not None:
            gradients = self._over_all_parts(gradients, self.part)
        norm = tf.linalg.global_norm(gradients)
        measured = {"optimizer/gradient_norm": norm}
        names = [f"weight_gradients/{name}" for name in self.weights()]
        vectors = [tf.reshape(g, [-1]) for g in gradients]
        measured |= dict(zip(names, vectors, strict=True))
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        return gradients, measured

    def _over_all_parts(self, gradients: list[tf.Tensor], part: Part) -> list[tf.Tensor]:
        """The mean over all parts; before this replica's last part, the gradients as given."""
        if part.of_replica > 1:
            part.add(gradients)
            if not part.is_last:
                return gradients
            gradients = [g / part.of_replica for g in part.sums[-1]]
        if self.strategy.num_replicas_in_sync == 1:
            return gradients
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)

    def _scales_loss(self) -> bool:
        return isinstance(self.optimizer, tf.keras.optimizers.LossScaleOptimizer)

    def _loss_scale(self) -> tf.Tensor | None:
        if self.optimizer is None or not self._scales_loss():
            return None
        return self.optimizer.scale_loss(tf.constant(1.0))
