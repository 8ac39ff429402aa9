"""Eight experiments, each a file of its own with no edit of the library, and the seam they use."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.recording.screen import TrainingProgress
from research.signals import SIGNALS
from research.tools.verify_kills import left_by

import pytest
from conftest import REPOSITORY, RunHere, make_split
from PIL import Image

EIGHT = REPOSITORY / "tests" / "experiments"
SMALL = ("--epochs", "2", "--batch-size", "32", "--log-every", "4", "--holdout", "50")
NARROW = ("--dense-width", "8")
# What each of the eight is given beside SMALL.
OPTIONS: dict[str, tuple[str, ...]] = {
    "residual": (),
    "averaged": NARROW,
    "more_figures": NARROW,
    "early_stopping": (*NARROW, "--patience", "1", "--epochs", "9"),
    "momentum": (*NARROW, "--learning-rate", "0.1"),
    "restarts": (*NARROW, "--cycle-epochs", "0.5"),
    "own_loop": (*NARROW, "--target", "0.12", "--log-every", "5"),
    "forgetting": NARROW,
}


class Killed(BaseException):
    """Ends a run as SIGKILL does: no checkpoint is saved."""


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Does something when so many steps are reported to be done."""
    show = TrainingProgress.show

    def showing(progress: TrainingProgress, report: Any) -> None:
        show(progress, report)
        if report.step == number:
            act()

    monkeypatch.setattr(TrainingProgress, "show", showing)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_killed_and_resumed_it_ends_as_uninterrupted(
    name: str,
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = EIGHT / f"{name}.py"
    options = ("--data", data_file, *SMALL, *OPTIONS[name], "--checkpoint-every", "3")
    whole = run_here(file, *options, "--run-dir", "whole")
    assert (whole.status, whole.stderr) == (0, "")
    with monkeypatch.context() as patch:
        at_step(patch, 6, stop)
        stopped = run_here(file, *options, "--run-dir", "run", "--steps-per-call", "1")
    assert (stopped.status, stopped.stderr) == (128 + signal.SIGTERM, "")
    with monkeypatch.context() as patch:
        at_step(patch, 9, kill)
        with pytest.raises(Killed):
            run_here(file, "--resume", "run")
    resumed = run_here(file, "--resume", "run")
    assert (resumed.status, resumed.stderr) == (0, "")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    again = run_here("research", "evaluate", "whole", "--json")
    assert (again.status, again.stderr) == (0, "")
    Image.fromarray(make_split(1).images[0, ..., 0]).save("digit.png")
    shown = run_here("research", "predict", "whole", "digit.png", "--json")
    assert (shown.status, shown.stderr) == (0, "")
