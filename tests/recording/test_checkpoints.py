from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.errors import InputError, NonFiniteError
from research.network.mnist_cnn import MnistCNN
from research.recording.checkpoints import (
    Checkpoint,
    DamagedError,
    checkpoint_path,
    read_checkpoint,
    write_checkpoint,
)
from research.recording.logs import Logged
from research.training.state import State
from research.training.train import Unreported, train

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import make_split, make_state


@pytest.fixture(scope="module")
def state() -> State:
    """A small state after some steps."""
    from research.tools.load_experiment import load_experiment

    from conftest import EXPERIMENTS

    trained = make_state(precision="mixed_float16", extra={"average": tf.Variable([1.5, 2.5])})
    step = load_experiment(EXPERIMENTS / "mnist_cnn.py").step
    list(train(trained, step, make_split(64), epochs=1, batch_size=16))
    return trained


@pytest.fixture
def saved(state: State, tmp_path: Path) -> Path:
    """The checkpoint of ``state``."""
    unreported = Unreported({"loss": np.array([1.5, 0.1], np.float32)}, 0.25)
    logged = Logged(7, "0f", {"train": 2}, {"train": 3})
    path = checkpoint_path(tmp_path, 4)
    write_checkpoint(Checkpoint("me", state.values(), 3.5, unreported, logged), path)
    return path


def fresh() -> State:
    return make_state(
        seed=1, precision="mixed_float16", extra={"average": tf.Variable(tf.zeros([2]))}
    )


def test_a_checkpoint_gives_back_everything_that_was_saved(saved: Path, state: State) -> None:
    other = fresh()
    found = read_checkpoint(saved, other, "me")
    other.assign(found.variables.values())
    for (name, a), b in zip(state.values().items(), other.values().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert int(other.step.numpy()) == found.step == 4
    assert (found.recorded, found.seconds, found.run) == (2, 3.5, "me")
    assert found.logged == Logged(7, "0f", {"train": 2}, {"train": 3})
    np.testing.assert_array_equal(
        found.unreported.history["loss"], np.array([1.5, 0.1], np.float32)
    )
    assert found.unreported.seconds == 0.25
    names = " ".join(found.variables)
    for part in ("conv1/kernel", "accumulated_delta_var", "dynamic_scale", "extra/average"):
        assert part in names


def changed(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_any_damage_is_noticed(saved: Path, state: State) -> None:
    original = saved.read_bytes()
    rng = random.Random(0)

    def flip(content: bytearray) -> None:
        # Half of the flips hit the header, which is a small part of the file.
        where = rng.randrange(rng.choice([8 + int.from_bytes(content[:8], "little"), len(content)]))
        content[where] ^= 1 << rng.randrange(8)

    def truncate(content: bytearray) -> None:
        del content[rng.randrange(len(content)) :]

    def zero(content: bytearray) -> None:
        where = rng.randrange(len(content) - 4096)
        content[where : where + 4096] = bytes(4096)

    def lengthen(content: bytearray) -> None:
        content += b"\0"

    for change in [flip] * 60 + [truncate, zero] * 10 + [lengthen]:
        saved.write_bytes(original)
        changed(saved, change)
        with pytest.raises(DamagedError, match="not a good checkpoint") as caught:
            read_checkpoint(saved, state, "me")
        assert "\n" not in str(caught.value)


def test_a_checkpoint_under_another_name_or_of_another_run_is_refused(
    saved: Path, state: State
) -> None:
    with pytest.raises(DamagedError, match="another run"):
        read_checkpoint(saved, state, "you")
    other = checkpoint_path(saved.parent, 5)
    saved.rename(other)
    with pytest.raises(DamagedError, match="it holds step 4"):
        read_checkpoint(other, state, "me")
    (saved.parent / "step-00000006.safetensors").mkdir()
    with pytest.raises(DamagedError):
        read_checkpoint(checkpoint_path(saved.parent, 6), state, "me")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: make_state(precision="mixed_float16"), "holds 32 variables .* builds 31"),
        (
            lambda: State(
                MnistCNN(9, precision="mixed_float16"),
                optimizer=tf.keras.optimizers.Adadelta(1.0),
                loss=tf.square,
                extra={"average": tf.Variable([1.0, 2.0])},
            ),
            r"dense1/kernel with shape \(9216, 8\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_what_differs(
    other: Callable[[], State], words: str, saved: Path
) -> None:
    built = other()
    before = built.values()
    with pytest.raises(InputError, match=words) as caught:
        read_checkpoint(saved, built, "me")
    assert not isinstance(caught.value, DamagedError)
    assert all(map(np.array_equal, before.values(), built.values().values()))


def test_values_that_are_not_finite_are_never_saved(state: State, tmp_path: Path) -> None:
    bad = {name: np.array(value) for name, value in state.values().items()}
    next(value for name, value in bad.items() if "conv2/bias" in name)[3] = np.nan
    with pytest.raises(NonFiniteError, match="conv2/bias holds NaN or infinity after step 4"):
        write_checkpoint(Checkpoint("me", bad), checkpoint_path(tmp_path / "new", 4))
    assert list(tmp_path.iterdir()) == []


def hostile(about: Any, arrays: dict[str, Any]) -> bytes:
    import hashlib

    text = json.dumps(about)
    header = {"about": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return safetensors.numpy.save(arrays, header)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8 + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        safetensors.numpy.save({"step": np.array(4)}),
        hostile([], {}),
        hostile({"run": "me", "variables": ["step"] * 10, "history": []}, {}),
        hostile({"run": "me", "variables": 7, "history": []}, {}),
        hostile({"run": "me", "variables": [], "history": ["x"] * 3}, {}),
    ],
)
def test_hostile_files_are_refused(content: bytes, saved: Path, state: State) -> None:
    saved.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_checkpoint(saved, state, "me")
    assert "\n" not in str(caught.value)
