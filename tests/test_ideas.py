"""Ideas from the literature, in experiments/: each computes what its paper says, and can be off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config import parse
from research.data.batches import Plan, indices_of_step, take_batch
from research.data.dataset import Dataset
from research.experiment import Experiment
from research.results.corrupted import corrupted_accuracy
from research.results.export import export_h5
from research.tools.load_experiment import load_experiment
from research.training.state import State
from research.training.train import train

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from conftest import EXPERIMENTS, RunHere

EXAMPLES, BATCH = 300, 32
WITHOUT_DROPOUT = ("--dropout", "0", "0")

# Each experiment, the file that its diff is against, and the options that switch its idea off.
BASE_AND_OFF: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "sam": ("mnist_cnn", ("--radius", "0")),
    "averaged_weights": ("mnist_cnn", ("--average-decay", "0")),
    "distillation": ("mnist_cnn", ("--weight", "0")),
    "forgetting": ("mnist_cnn", ()),
    "hard_examples": ("forgetting", ("--drop", "0", "--usual-epochs", "0")),
    "pgd": ("robustness", ("--attack-steps", "0", "--robust-steps", "1")),
    "residual": ("mnist_cnn", None),
    "harder_half": ("mnist_cnn", None),
    "restarts": ("mnist_cnn", None),
}


def built(name: str, *options: str) -> tuple[Experiment, State]:
    """An experiment, and its state as it is built for ``EXAMPLES`` examples."""
    experiment = load_experiment(EXPERIMENTS / f"{name}.py")
    small = ("--batch-size", str(BATCH), "--epochs", "2", "--log-every", "1", *options)
    if hasattr(experiment.config, "dense_width"):
        small += ("--dense-width", "8")
    config = parse(experiment.config, small)
    return experiment, experiment.build(config, Plan(EXAMPLES, BATCH, config.epochs))


def trained(name: str, dataset: Dataset, *options: str, steps: int = 12) -> list[npt.NDArray[Any]]:
    """The weights of the model that is judged after so many steps."""
    experiment, state = built(name, *options)
    arguments: dict[str, Any] = {
        "epochs": 2,
        "batch_size": BATCH,
        "indices": experiment.indices,
        "until": steps,
    }
    list(train(state, experiment.step, dataset.train, **arguments))
    weights: list[npt.NDArray[Any]] = experiment.judged(state).get_weights()
    return weights


@pytest.fixture(scope="module")
def of_the_baseline(dataset: Dataset) -> list[npt.NDArray[Any]]:
    return trained("mnist_cnn", dataset, "--clip-norm", "1")


@pytest.mark.parametrize(
    "name", [name for name, (_, off) in BASE_AND_OFF.items() if off is not None]
)
def test_switched_off_it_gives_the_bits_of_the_baseline(
    name: str, dataset: Dataset, of_the_baseline: list[npt.NDArray[Any]]
) -> None:
    found = trained(name, dataset, "--clip-norm", "1", *(BASE_AND_OFF[name][1] or ()))
    for weight, expected in zip(found, of_the_baseline, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("name", BASE_AND_OFF)
def test_it_differs_from_its_base_in_at_most_40_lines(name: str) -> None:
    files = [EXPERIMENTS / f"{file}.py" for file in (BASE_AND_OFF[name][0], name)]
    found = subprocess.run(["diff", *files], capture_output=True, text=True, check=False).stdout
    assert len([line for line in found.splitlines() if line[0] in "<>"]) <= 40


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sam", ("--radius", "-1"), "--radius -1.0: give 0 to"),
        ("sam", ("--radius", "nan"), "--radius nan: give 0 to"),
        ("averaged_weights", ("--average-decay", "1"), "--average-decay 1.0: give 0 to below 1"),
        ("distillation", (), "teacher.h5: no such file; give an mnist.h5"),
        ("distillation", ("--weight", "1.5"), "--weight 1.5: give 0 to 1"),
        ("distillation", ("--temperature", "0"), "--temperature 0.0: give 1 to"),
        ("pgd", ("--epsilon", "2"), "--epsilon 2.0: give 0 to 1"),
        ("pgd", ("--attack-steps", "-1"), "--attack-steps -1: give 0 or more"),
        ("pgd", ("--robust-steps", "0"), "--robust-steps 0: give a whole number"),
        ("hard_examples", ("--drop", "1"), "--drop 1.0: give 0 to below 1"),
        ("mnist_cnn", ("--accumulate", "0"), "--accumulate 0: give a whole number"),
        ("residual", ("--accumulate", "2"), "--accumulate 2: the step changes more variables"),
        ("averaged_weights", ("--accumulate", "2"), "and would do so 2 times"),
        ("sam", ("--accumulate", "3"), "state.update or state.reduce 2 times"),
    ],
)
def test_an_impossible_option_is_refused_in_one_line(
    name: str, options: tuple[str, ...], words: str, data_file: Path, run_here: RunHere
) -> None:
    width = () if name == "residual" else ("--dense-width", "8")
    result = run_here(EXPERIMENTS / f"{name}.py", "--data", data_file, *width, *options)
    assert result.status == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def batch_of(dataset: Dataset, count: int = BATCH) -> tuple[tf.Tensor, tf.Tensor]:
    return take_batch(dataset.train.images, dataset.train.labels, tf.range(count))


def loss_at(state: State, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, list[Any]]:
    """The loss without dropout, and its gradients."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(state.loss(labels, state.model.logits(images)))
    return loss, state.gradients(tape, loss)


def test_sam_takes_the_gradient_uphill_and_comes_back(dataset: Dataset) -> None:
    # So low a learning rate changes nothing but biases, which are 0 at first.
    experiment, state = built(
        "sam", *WITHOUT_DROPOUT, "--radius", "0.5", "--learning-rate", "1e-20"
    )
    batch = batch_of(dataset)
    before = state.model.get_weights()
    found = experiment.step(state, *batch)
    for weight, expected in zip(state.model.get_weights(), before, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-19)
    loss, gradients = loss_at(state, *batch)
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients))
    uphill = [w + 0.5 * g / norm for w, g in zip(before, gradients, strict=True)]
    state.model.set_weights(uphill)
    loss_nearby, gradients = loss_at(state, *batch)
    assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(found["loss_nearby"]) == pytest.approx(float(loss_nearby), rel=1e-5)
    assert loss_nearby > loss
    for name, gradient in zip(state.weights(), gradients, strict=True):
        error = np.linalg.norm(found[f"weight_gradients/{name}"] - np.ravel(gradient))
        assert error < 1e-4 * np.linalg.norm(gradient), name


def test_the_average_forgets_the_first_weights_and_then_moves_slowly(dataset: Dataset) -> None:
    experiment, state = built("averaged_weights", "--average-decay", "0.2")
    average = experiment.judged(state)
    for decay in (1 / 10, 2 / 11, 0.2, 0.2):
        before = average.get_weights()
        experiment.step(state, *batch_of(dataset))
        state.step.assign_add(1)
        weights = zip(average.get_weights(), before, state.model.get_weights(), strict=True)
        for found, old, new in weights:
            np.testing.assert_allclose(found, decay * old + (1 - decay) * new, atol=1e-6)


@pytest.mark.parametrize("temperature", ["1", "5"])
def test_there_is_nothing_to_learn_from_a_teacher_with_the_same_weights(
    temperature: str, dataset: Dataset, tmp_path: Path
) -> None:
    h5 = tmp_path / "mnist.h5"
    export_h5(built("mnist_cnn", "--seed", "3")[1].model, h5, dataset.test.images)
    options = ("--teacher", str(h5), "--weight", "1", "--temperature", temperature)
    norms = {}
    for seed in ("3", "4"):
        experiment, state = built("distillation", *WITHOUT_DROPOUT, *options, "--seed", seed)
        # A batch of the size of the initial weights: logits far from 0.
        norms[seed] = float(experiment.step(state, *batch_of(dataset))["optimizer/gradient_norm"])
    assert norms["3"] < 1e-4 * norms["4"]


def test_a_run_is_not_resumed_with_another_teacher(
    data_file: Path, dataset: Dataset, tmp_path: Path, run_here: RunHere
) -> None:
    def teach(seed: str) -> None:
        (tmp_path / "teacher.h5.sha256").unlink(missing_ok=True)
        model = built("mnist_cnn", "--seed", seed)[1].model
        export_h5(model, tmp_path / "teacher.h5", dataset.test.images)

    file = EXPERIMENTS / "distillation.py"
    teach("3")
    options = ("--data", data_file, "--dense-width", "8", "--epochs", "1", "--run-dir", "run")
    assert run_here(file, *options).status == 0
    teach("4")
    changed = run_here(file, "--resume", "run", "--epochs", "2")
    assert changed.status == 2
    assert "or files" in changed.stderr
    assert changed.stderr.count("\n") == 1


def attack_of(experiment: Experiment) -> Callable[..., tf.Tensor]:
    attack: Callable[..., tf.Tensor] = vars(sys.modules[experiment.step.__module__])["attack"]
    return attack


@pytest.mark.parametrize("name", ["pgd", "robustness"])
def test_the_attack_stays_close_to_the_images_and_raises_the_loss(
    name: str, dataset: Dataset
) -> None:
    experiment, state = built(name, "--robust-steps", "2")
    images, labels = batch_of(dataset)
    before, _ = loss_at(state, images, labels)
    losses = [before]
    for steps in (1, 10):
        attacked = attack_of(experiment)(state, images, labels, 0.1, steps).numpy()
        assert np.abs(attacked - images).max() == pytest.approx(0.1, abs=1e-6)
        assert attacked.min() >= 0 and attacked.max() <= 1
        losses.append(loss_at(state, attacked, labels)[0])
    assert losses[0] < losses[1] < losses[2]
    # In a step the images of the attack are trained on; the figure is about those of a split.
    assert experiment.figures is not None
    found = experiment.figures(state, dataset.test, np.zeros([100, 10], np.float32))
    assert 0 <= found["robust_accuracy"] <= 1
    assert found["corrupted_accuracy"] == corrupted_accuracy(state.model, dataset.test)


@pytest.mark.parametrize(("done", "epsilon"), [(0, 0.03), (4, 0.15), (9, 0.3), (30, 0.3)])
def test_the_attack_of_a_training_step_grows_to_its_full_size(
    done: int, epsilon: float, dataset: Dataset
) -> None:
    options = (*WITHOUT_DROPOUT, "--attack-steps", "2", "--ramp-steps", "10")
    experiment, state = built("pgd", *options)
    state.step.assign(done)
    images, labels = batch_of(dataset)
    attacked = attack_of(experiment)(state, images, labels, epsilon, 2)
    expected, _ = loss_at(state, attacked, labels)
    found = experiment.step(state, images, labels)["loss"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert found > loss_at(state, images, labels)[0]


def test_forgetting_events_are_counted_for_each_example(dataset: Dataset) -> None:
    experiment, state = built("forgetting", "--learning-rate", "3")
    plan = Plan(EXAMPLES, BATCH, 2)
    correct, learned, forgotten = (np.zeros(EXAMPLES, int) for _ in range(3))
    reports = train(
        state, experiment.step, dataset.train, epochs=2, batch_size=BATCH, report_every=1
    )
    for report in reports:
        drawn = indices_of_step(0, report.step - 1, plan).numpy()
        now = state.extra["correct"].numpy()
        assert now[drawn].mean() == pytest.approx(report.metrics["accuracy"])
        assert np.array_equal(np.delete(now, drawn), np.delete(correct, drawn))
        forgotten += (correct == 1) & (now == 0)
        learned |= now
        correct = now
        assert np.array_equal(state.extra["forgotten"], forgotten)
        never = (learned == 1) & (forgotten == 0)
        assert report.metrics["never_forgotten"] == pytest.approx(never.mean())
    assert forgotten.sum() > 0
    assert 0 < never.mean() < 1


def test_examples_that_were_never_forgotten_are_left_out_after_the_usual_epochs() -> None:
    experiment, state = built("hard_examples", "--drop", "0.7", "--usual-epochs", "1")
    plan, hard = Plan(EXAMPLES, BATCH, 2), np.arange(EXAMPLES) % 10 == 0
    state.extra["correct"].assign(1 - hard.astype(int))
    assert experiment.indices is not None
    drawn = {}
    for step in range(plan.steps):
        state.step.assign(step)
        usual = indices_of_step(0, step, plan).numpy()
        drawn[step] = experiment.indices(state, plan).numpy()
        assert len(drawn[step]) == len(usual)
        same = usual == drawn[step]
        assert same.all() or step >= plan.steps_per_epoch
        assert same[hard[usual]].all()  # a hard example keeps its place
    of_epoch = np.concatenate([drawn[step] for step in range(10, 20)])
    used = len(np.unique(of_epoch[~hard[of_epoch]])) / (EXAMPLES - hard.sum())
    assert used == pytest.approx(0.3, abs=0.1)
    # Those left out stay the same.
    state.step.assign(35)
    assert set(experiment.indices(state, plan).numpy()) <= set(of_epoch) | set(np.flatnonzero(hard))


def test_the_file_of_a_residual_network_predicts_the_same_in_stock_keras(
    dataset: Dataset, tmp_path: Path
) -> None:
    experiment, state = built("residual", "--learning-rate", "0.3")
    list(train(state, experiment.step, dataset.train, epochs=2, batch_size=BATCH))
    model = experiment.judged(state)
    moved = [np.abs(w).max() for w in model.get_weights() if w.ndim == 1]
    assert min(moved) > 0  # moving means, which are 0 at first, too
    export_h5(model, tmp_path / "mnist.h5", dataset.test.images, state.optimizer)
    images, labels = take_batch(dataset.test.images, dataset.test.labels, tf.range(100))
    stock = tf.keras.models.load_model(tmp_path / "mnist.h5")
    np.testing.assert_allclose(stock.predict(images, verbose=0), model(images), atol=1e-5)
    loss, _ = stock.evaluate(images, labels, verbose=0)
    assert loss == pytest.approx(float(loss_at(state, images, labels)[0]), rel=1e-4)


def test_only_the_harder_half_of_a_batch_is_learned_from(dataset: Dataset) -> None:
    experiment, state = built("harder_half", *WITHOUT_DROPOUT)
    images, labels = batch_of(dataset, 9)
    losses = np.sort(state.loss(labels, state.model.logits(images)))
    found = experiment.step(state, images, labels)
    assert float(found["loss"]) == pytest.approx(losses.mean(), rel=1e-5)
    assert float(found["loss_harder"]) == pytest.approx(losses[-5:].mean(), rel=1e-5)
