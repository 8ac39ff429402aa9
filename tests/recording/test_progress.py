"""What a training shows, on terminals of several widths and elsewhere: nothing is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from research.data.batches import Plan
from research.recording import progress as module
from research.recording.progress import TrainingProgress
from research.screen import Screen
from research.training.train import LastStep, Report

import numpy as np
import pytest
from conftest import EXPERIMENTS, RunHere
from printed import ESCAPE, lines_of, terminal

PLAN = Plan(examples=40, batch_size=10, epochs=12)  # four steps an epoch


def report(step: int, loss: float, **others: float) -> Report:
    """A report on two steps of ten examples each, which took 4.05 seconds."""
    return Report(
        step=step,
        epoch=-(-step // 4),
        epoch_ended=step % 4 == 0,
        metrics={"loss": loss, **others},
        history={},
        last_step=LastStep(np.array([0]), {}, {}),
        examples=20,
        seconds=4.05,
    )


def three_epochs(progress: TrainingProgress) -> None:
    """The first and the third epoch are validated, on held-out examples; the third is best."""
    progress.show(report(2, 2.0, accuracy=0.5))
    progress.show(report(4, 1.0, accuracy=0.6))
    progress.show_validation(4, {"loss": 1.2, "accuracy": 0.55, "quality/gap": 0.1}, "holdout")
    progress.show(report(6, 0.5))
    progress.show(report(8, 0.3))
    progress.show(report(10, 0.0713, accuracy=0.9791))
    progress.show(report(12, 0.0713, accuracy=0.9791))
    progress.show_validation(12, {"loss": 0.0402, "accuracy": 0.9871}, "holdout", best=True)


def shown(show: Callable[[TrainingProgress], None]) -> None:
    with Screen() as screen, TrainingProgress(screen, PLAN) as progress:
        show(progress)


WHOLE = """\
epoch  1/12  loss 1.5000  accuracy 0.5500  validation loss 1.2000  accuracy 0.5500  8.1 s
epoch  2/12  loss 0.4000  8.1 s
epoch  3/12  loss 0.0713  accuracy 0.9791  validation loss 0.0402  accuracy 0.9871  8.1 s  best
"""
AT_80 = """\
epoch  1/12  loss 1.5000  validation loss 1.2000  accuracy 0.5500  8.1 s
epoch  2/12  loss 0.4000  8.1 s
epoch  3/12  loss 0.0713  validation loss 0.0402  accuracy 0.9871  8.1 s  best
"""
AT_60 = """\
epoch  1/12  loss 1.5000  accuracy 0.5500  8.1 s
             validation loss 1.2000  accuracy 0.5500
epoch  2/12  loss 0.4000  8.1 s
epoch  3/12  loss 0.0713  accuracy 0.9791  8.1 s
             validation loss 0.0402  accuracy 0.9871  best
"""


@pytest.mark.parametrize(("columns", "expected"), [(60, AT_60), (80, AT_80), (120, WHOLE)])
def test_an_epoch_is_one_line_or_folded_between_figures(
    columns: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(columns, monkeypatch) as sent:
        shown(three_epochs)
    lasting, live = lines_of(sent[0])
    assert lasting == expected.splitlines()
    assert all(len(line) <= columns and "…" not in line for line in live)
    assert any("epoch 3.00/12  loss 0.0713" in line for line in live)
    assert ("examples/s" in sent[0]) == (columns >= 80)


def test_without_a_terminal_each_epoch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown(three_epochs)
    assert capfd.readouterr().out == WHOLE
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", -1)
    shown(three_epochs)
    first, *others = capfd.readouterr().out.splitlines()
    assert first == "epoch 0.50/12  loss 2.0000  accuracy 0.5000  5 examples/s  step 2"
    assert len(others) == 5


@pytest.mark.parametrize("columns", [30, 40, 60])
def test_a_sentence_is_folded_between_words_and_not_before_a_number(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Ready to train after 29.4 s (importing 14.1, data 2.0, network 2.0, recording 0.9)"
    with terminal(columns, monkeypatch) as sent, Screen() as screen:
        screen.say_folded(text, style="green")
    lines, _ = lines_of(sent[0])
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= columns
    assert not any(re.match(r"\d|s ", line) for line in lines)


@pytest.mark.parametrize(
    ("kind", "no_color", "codes"),
    [("xterm-256color", "", {"1;32"}), ("xterm-256color", "1", {"1"}), ("dumb", "", set[str]())],
)
def test_colour_is_only_an_ornament(
    kind: str, no_color: str, codes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(120, monkeypatch, kind, **({"NO_COLOR": no_color} if no_color else {})) as sent:
        shown(three_epochs)
    assert lines_of(sent[0])[0] == WHOLE.splitlines()
    (best,) = re.findall(r"(?:\x1b\[([0-9;]+)m)?best", sent[0])
    assert {best} - {""} == codes
    assert bool(ESCAPE.search(sent[0])) == (kind != "dumb")


def test_a_loop_may_validate_at_any_step_and_further_figures_are_folded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = {"loss": 0.0402, "accuracy": 0.9871, "macro_f1": 0.98, "robust_accuracy": 0.03}

    def show(progress: TrainingProgress) -> None:
        progress.show(report(6, 0.0713, accuracy=0.9791))
        progress.show_validation(6, figures, "test")
        progress.show_validation(8, figures, "test")  # repeated after a stop: no step was done

    with terminal(80, monkeypatch) as sent:
        shown(show)
    assert lines_of(sent[0])[0] == [
        "epoch 1.5/12  loss 0.0713  accuracy 0.9791  4.0 s",
        "              test loss 0.0402  accuracy 0.9871  macro_f1 0.9800",
        "              robust_accuracy 0.0300",
        "epoch  2/12  test loss 0.0402  accuracy 0.9871  macro_f1 0.9800",
        "             robust_accuracy 0.0300",
    ]


OPTIONS = ("--epochs", "2", "--batch-size", "20", "--dense-width", "8", "--log-every", "4")


def test_a_whole_training_in_a_narrow_terminal(
    data_file: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = ("--holdout", "50", "--select-by", "lowest loss")
    options = (*OPTIONS, *held_out, "--run-dir", "run", "--data", data_file)
    with terminal(60, monkeypatch) as sent:
        assert run_here(EXPERIMENTS / "mnist_cnn.py", *options, columns=60).status == 0
    lasting, live = lines_of(sent[0])
    text = "\n".join(line for line in lasting if str(data_file) not in line)
    assert max(map(len, [*text.splitlines(), *live])) <= 60
    words = " ".join(text.split())
    for expected in (
        "network MnistCNN, 92,642 parameters",
        ", float32 seed 0 options --epochs 2 --batch-size 20",
        "--dense-width 8 Training for 26 steps; see run",
        "training ended after epoch 2/2 Best: epoch",
        "Training finished successfully. Held-out loss:",
    ):
        assert expected in words
    rows = [json.loads(row) for row in Path("run", "metrics.jsonl").read_text().splitlines()]
    figures = [row for row in rows if row["split"] == "validation"]
    log = Path("run", "log.txt").read_text()
    for row in figures:
        expected = f"validation loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}"
        assert expected in text
        assert re.search(rf"^epoch \d/2  loss .*  {expected}  \d+\.\d s", log, re.MULTILINE)
    best = min(row["loss"] for row in figures)
    assert f", lowest loss {best:.4f}; " in words
    assert log.count("  best\n") == text.count("  best")


def test_a_training_at_chance_level_is_no_success(data_file: Path, run_here: RunHere) -> None:
    options = (*OPTIONS, "--learning-rate", "1e-20", "--run-dir", "run", "--data", data_file)
    result = run_here(EXPERIMENTS / "mnist_cnn.py", *options)
    assert (result.status, result.stderr) == (0, "")
    assert "successfully" not in result.stdout
    assert (
        "Training ended, but on 100 examples the network is no better than always answering 0 "
        "(accuracy 0.1000): try a lower --learning-rate, or more --epochs\nTest loss: "
    ) in result.stdout
    assert "test loss" in result.stdout and "validation" not in result.stdout
    assert "best" not in result.stdout.lower()  # nothing is selected by the test set
    assert Path("run", "mnist.h5").exists()
    (events,) = Path("run").glob("events.out.tfevents.*")  # TensorBoard's Text dashboard says so
    assert b"**Training ended, but on 100 examples the network is no better" in events.read_bytes()
