"""The values that ``replay`` finds in a bundle, and its output, read as a person reads it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config import config_as_json, parse
from research.data.batches import Plan
from research.recording.checkpoints import Checkpoint, write_checkpoint
from research.tools.load_experiment import load_experiment

import numpy as np
import pytest
from conftest import EXPERIMENTS, RunHere, make_split
from printed import printed_tables

REASON = "loss became nan at step 1"
# This step replaces the reference experiment's.
STEPS = {
    "sound": "",
    "spoils conv2": "images = images / tf.reduce_min(images)",
    "spoils the weights": "state.model.dense2.bias.assign(tf.fill([10], float('inf')))",
    "has a lowest loss": "state.extra['lowest'].assign(float('inf'))",
    "raises": "raise RuntimeError('out of\\nideas')",
    "exits from TensorFlow": "tf.ensure_shape(images, [3])",
    "returns nothing": "return None",
    "returns text": "return {'loss': 'low'}",
    "returns a matrix": "return {'loss': tf.zeros([2, 3])}",
}

MakeBundle = Callable[..., Path]


@pytest.fixture
def bundle(tmp_path: Path) -> MakeBundle:
    """Makes a bundle whose experiment's step begins with ``first_line``; returns its path."""

    def make(first_line: str = "", examples: int = 4, name: str = "mnist_cnn") -> Path:
        folder = tmp_path / "replay-step-00000001"
        (folder / "code").mkdir(parents=True)
        text = (EXPERIMENTS / f"{name}.py").read_text()
        tape = "    with tf.GradientTape() as tape:\n"
        assert tape in text
        text = text.replace(tape, f"    {first_line}\n{tape}")
        if "extra" in first_line:
            text = text.replace("    return State(", "    return State(extra={'lowest': LOWEST},")
            text += "\n\nLOWEST = tf.Variable(float('inf'))\n"
        (folder / "code" / "experiment.py").write_text(text)
        experiment = load_experiment(folder / "code" / "experiment.py")
        config = parse(experiment.config, ["--dense-width", "8"])
        plan = Plan(examples or 1, 4, 10)
        state = experiment.build(config, plan)
        write_checkpoint(Checkpoint("run", state.values()), folder / "state.safetensors")
        split = make_split(examples)
        images = split.images.astype(np.float32) / 255
        labels = np.eye(10, dtype=np.float32)[split.labels]
        indices = np.arange(examples)
        np.savez(folder / "batch.npz", images=images, labels=labels, indices=indices)
        about = {"experiment": "experiment.py", "reason": REASON, "plan": dataclasses.asdict(plan)}
        about |= {"config": config_as_json(config)}
        (folder / "bundle.json").write_text(json.dumps(about))
        return folder

    return make


@pytest.mark.parametrize(
    "columns", [80, *(pytest.param(n, marks=pytest.mark.slow) for n in (60, 120))]
)
def test_the_table_shows_the_values_around_the_first_that_is_not_finite(
    columns: int, bundle: MakeBundle, run_here: RunHere
) -> None:
    path = bundle(STEPS["spoils conv2"])
    result = run_here("research", "replay", path, columns=columns)
    assert (result.status, result.stderr) == (0, "")
    everything = run_here("research", "replay", path, "--all", columns=columns).stdout
    found = json.loads(run_here("research", "replay", path, "--json").stdout)
    assert (found["step"], found["reason"]) == (1, REASON)
    assert found["first_non_finite"] == "output of conv1"
    assert f"The run stopped: {REASON}\nStep 1, run again" in result.stdout
    assert "The first that is not finite: output of conv1\n" in result.stdout
    names = [value["name"] for value in found["values"]]
    first = names.index("output of conv1")
    for shown, places in (
        (result.stdout, range(first - 3, first + 4)),
        (everything, range(len(names))),
    ):
        ((head, *rows),) = printed_tables(shown, columns, key=3)
        assert [" ".join(cell.split()) for cell in head] == [
            *("in the order of computation", "smallest", "largest", "not finite")
        ]
        for place, cells in zip(places, rows, strict=True):
            value = found["values"][place]
            # Keras numbers the optimizers of a process.
            name, shown_name = (
                re.sub(r"adadelta_\d+", "adadelta", "".join(text.split()))
                for text in (f"{value['name']} {value['shape']}", cells[0])
            )
            assert shown_name == name
            ends = [value["smallest"], value["largest"]]
            assert cells[1:3] == ["" if x is None else f"{x:.3g}" for x in ends]
            count = value["not_finite"]
            size = np.prod(value["shape"], dtype=int)
            assert cells[3] == ("all" if count == size else f"{count:,}")
    assert "Shown are 7 of " in result.stdout
    assert "--all" not in everything


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("sound", None),
        ("has a lowest loss", None),
        ("spoils the weights", "output of dense2"),
        ("spoils conv2", "output of conv1"),
    ],
)
def test_it_says_what_it_found(
    kind: str, first: str | None, bundle: MakeBundle, run_here: RunHere
) -> None:
    path = bundle(STEPS[kind])
    found = json.loads(run_here("research", "replay", path, "--json").stdout)
    assert found["first_non_finite"] == first
    assert (found["line"] is None) == (first is None)
    if first is None:
        result = run_here("research", "replay", path)
        assert printed_tables(result.stdout, 200) == []
        assert f"All {len(found['values'])} values are finite." in result.stdout


@pytest.mark.parametrize("name", ["speedrun", "best", "label_smoothing"])
def test_a_bundle_of_any_experiment_can_be_read(
    name: str, bundle: MakeBundle, run_here: RunHere
) -> None:
    result = run_here("research", "replay", bundle(name=name), "--json")
    assert (result.status, result.stderr) == (0, "")


@pytest.mark.parametrize("kind", [kind for kind in STEPS if "return" in kind or "raise" in kind])
def test_a_step_that_fails_is_refused_in_one_line(
    kind: str, bundle: MakeBundle, run_here: RunHere
) -> None:
    result = run_here("research", "replay", bundle(STEPS[kind]))
    assert (result.status, result.stdout) == (2, "")
    assert "its step fails when it is run again" in result.stderr
    assert result.stderr.count("\n") == 1


def replaced_by(make: Callable[[Path], object], *names: str) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        for name in names:
            (bundle / name).unlink()
            make(bundle / name)

    return spoil


def about(**changes: Any) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        known = json.loads((bundle / "bundle.json").read_text())
        (bundle / "bundle.json").write_text(json.dumps(known | changes))

    return spoil


def batch(images: Any, labels: Any) -> Callable[[Path], None]:
    return lambda bundle: np.savez(bundle / "batch.npz", images=images, labels=labels)


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def in_place_of_the_bundle(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        shutil.rmtree(bundle)
        make(bundle)

    return spoil


FILES = ("bundle.json", "state.safetensors", "batch.npz", "code/experiment.py")
SPOILED: dict[str, Callable[[Path], None]] = {
    **{f"FIFO for {name}": replaced_by(os.mkfifo, name) for name in FILES},
    **{f"folder for {name}": replaced_by(Path.mkdir, name) for name in FILES},
    **{f"nothing for {name}": replaced_by(lambda path: None, name) for name in FILES},
    **{f"empty {name}": replaced_by(Path.touch, name) for name in FILES},
    "FIFO for the bundle": in_place_of_the_bundle(os.mkfifo),
    "file for the bundle": in_place_of_the_bundle(Path.touch),
    "no bundle": in_place_of_the_bundle(lambda path: None),
    "bundle.json is not UTF-8": replaced_by(written(b'{"reason": "\xff"}'), "bundle.json"),
    "bundle.json is a list": replaced_by(written(b"[]"), "bundle.json"),
    "bundle.json is null": replaced_by(written(b"null"), "bundle.json"),
    "bundle.json is nested": replaced_by(written(b"[" * 100_000), "bundle.json"),
    "NUL in a name": about(experiment="a\0b"),
    "surrogate in a name": about(experiment="\ud800.py"),
    "another folder in a name": about(experiment=".."),
    "no name": about(experiment=""),
    "name is a list": about(experiment=[]),
    "plan is text": about(plan="many"),
    "epochs are infinite": about(plan={"examples": 4, "batch_size": 4, "epochs": float("inf")}),
    "options are a list": about(config=[]),
    "unknown option": about(config={"unknown": 1}),
    "surrogate in an option": about(config={"decay": "\ud800"}),
    "empty batch": batch(np.zeros((0, 28, 28, 1), "f4"), np.zeros((0, 10), "f4")),
    "batch of other shape": batch(np.zeros((2, 28, 28), "f4"), np.zeros((2, 10), "f4")),
    "batch of other dtype": batch(np.zeros((2, 28, 28, 1)), np.zeros((2, 10), "f4")),
    "batch of objects": batch(np.array([None]), np.zeros((1, 10), "f4")),
    "labels without shape": batch(np.zeros((1, 28, 28, 1), "f4"), np.float32(1)),
    "build returns nothing": replaced_by(
        written(
            b"from research.experiment import Experiment\n"
            b"from research.network.mnist_cnn import Config\n"
            b"nothing = lambda *arguments: None\n"
            b"experiment = Experiment(config=Config, build=nothing, step=nothing)"
        ),
        "code/experiment.py",
    ),
    "other network": about(config={"dense_width": 9}),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_damaged_bundle_is_refused_in_one_line(
    kind: str, bundle: MakeBundle, run_here: RunHere
) -> None:
    path = bundle()
    SPOILED[kind](path)
    result = run_here("research", "replay", path)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr[:-1].isprintable()


def test_a_reason_that_can_not_be_printed_is_escaped(bundle: MakeBundle, run_here: RunHere) -> None:
    path = bundle()
    about(reason="bad\n\ud800[bold]\x1b")(path)
    result = run_here("research", "replay", path)
    assert (result.status, result.stderr) == (0, "")
    assert "The run stopped: bad\\n\\ud800[bold]\\x1b\n" in result.stdout


def test_a_bundle_of_an_experiment_that_was_started_by_a_link_can_be_read(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(EXPERIMENTS / "mnist_cnn.py")
    options = ("--dense-width", "8", "--learning-rate", "1e30", "--run-dir", "run")
    assert run_here(link, "--data", data_file, *options).status == 1
    (path,) = Path("run").glob("replay-*")
    assert run_here("research", "replay", path, "--json").status == 0
