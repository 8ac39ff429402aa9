"""The verb ``verify``: proves that an experiment's step is sound, after it has been changed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from research.config import Config, require
from research.data.dataset import Split
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.errors import one_line
from research.recording.checkpoints import checkpoint_paths, step_of
from research.recording.screen import Screen
from research.tools.load_experiment import EXPERIMENTS, load_experiment
from research.training.train import INPUT_SECONDS, Unreported, train

import numpy as np
import numpy.typing as npt
import tyro
from rich.table import Table
from rich.text import Text
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Arrays = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Verify:
    """Prove that an experiment's step is sound: compiled, reproducible, learning, resumable.

    Run it after changing a step. The experiment itself is run, small, on a few examples; at the
    end in processes of its own, which are killed at random moments and resumed.
    """

    experiment: Annotated[Path, tyro.conf.Positional] = EXPERIMENTS / "mnist_cnn.py"
    """The file of the experiment."""
    kills: int = 3
    """Kill the experiment at so many random moments with SIGKILL."""
    stops: int = 2
    """Stop it at so many by SIGTERM, SIGINT or SIGUSR1, which let it save a checkpoint."""
    full: bool = False
    """Kill the experiment at its own size, on 5,000 examples, instead of a small one."""
    only_kills: bool = False
    """Leave out the checks that take place within one process."""
    seed: int = 0
    """Decides the random moments."""
    data: Path | None = None
    """A Keras-style .npz or a folder of IDX files. Default: MNIST."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("kills", "stops"):
            value = getattr(self, name)
            require(name, value, value >= 0, "give 0 for none, or more")

    def run(self, screen: Screen) -> bool:
        """Prints each check and whether it holds; says whether all do."""
        load_experiment(self.experiment)  # first of all, to complain about a file that is none
        say = (lambda line: None) if self.json else screen.say
        data = load_mnist(say) if self.data is None else read_dataset(self.data)
        checks = [] if self.only_kills else list(in_process(self.experiment, data.train, say))
        if self.kills + self.stops and all(check.holds for check in checks):
            with tempfile.TemporaryDirectory(prefix="research-verify-") as folder:
                checks.append(killed_and_resumed(self, Path(folder), say))
        if self.json:
            print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
        else:
            table = Table("check", "holds", "", title=str(self.experiment), title_justify="left")
            for check in checks:
                style = "green" if check.holds else "bold red"
                holds = Text("yes" if check.holds else "no", style=style)
                table.add_row(Text(check.name), holds, Text(check.found))
            screen.console.print(table)
        return all(check.holds for check in checks)


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that must hold; ``found`` says what was seen, and why it may have failed."""

    name: str
    holds: bool
    found: str = ""


# --- Within one process ---------------------------------------------------------------------------

STEPS = 16  # of 13 steps per epoch, the last of which is smaller
FIXED_BATCH_STEPS = 40


class Trial:
    """An experiment loaded afresh and built small, so that nothing is left of an earlier one."""

    def __init__(self, experiment: Path, split: Split) -> None:
        config_type, build, step = load_experiment(experiment)
        changes: dict[str, Any] = {"batch_size": 16, "dense_width": 16, "epochs": 2}
        self.config: Config = dataclasses.replace(config_type(), **changes)
        self.split = split.first(200)
        self.state = build(self.config, 2 * 13)
        self.traces = 0
        self.history: Arrays = {}

        def counted(*arguments: Any) -> dict[str, Any]:
            self.traces += 1
            return step(*arguments)

        self._step = counted

    def train(self, until: int, **options: Any) -> Arrays:
        """Trains; returns all variables. The history of the last reports is kept."""
        chosen = {"epochs": FIXED_BATCH_STEPS, "batch_size": 16, "report_every": 1000} | options
        self.history = {}
        for report in train(self.state, self._step, self.split, until=until, **chosen):
            for name, row in report.history.items():
                self.history[name] = np.concatenate([self.history.get(name, row[:0]), row])
        return self.state.values()


def in_process(experiment: Path, split: Split, say: Any) -> Iterator[Check]:
    """The checks that take place within this process; they end with the first that can't."""
    checks = _in_process(experiment, split)
    while True:
        try:
            check = next(checks)
        except StopIteration:
            return
        except Exception as error:
            cause = "" if "tf.Variable" not in str(error) else f"it makes a variable; {_KEEP}: "
            check = Check("it runs", False, cause + one_line(error)[-300:])
        say(f"{'holds' if check.holds else 'FAILS'}  {check.name}")
        yield check


_KEEP = "make it in build, and hand it over in State.extra"


def _in_process(experiment: Path, split: Split) -> Iterator[Check]:
    trial = Trial(experiment, split)
    before = trial.state.values()
    reference = trial.train(STEPS)
    history = trial.history
    found = f"{trial.traces} traces in {STEPS} steps on batches of two sizes"
    yield Check("traced once", trial.traces == 1, found)

    trainable = {v.path for v in trial.state.model.trainable_variables}
    changing = [name for name in before if name.split("/", 2)[-1] in trainable]
    still = [name for name in changing if np.array_equal(reference[name], before[name])]
    found = f"these do not: {', '.join(still)}" if still else f"{len(changing)} of them"
    yield Check("every weight changes", not still, found)

    eager = Trial(experiment, split)
    eager.train(3, compiled=False)
    pairs = [(history[k][:3], row) for k, row in eager.history.items() if k != INPUT_SECONDS]
    same = all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
    found = (
        "Python's or NumPy's random numbers, or other Python values, are frozen when the step is "
        "traced; use state.random_seed, state.step and variables"
    )
    yield Check("compiled equals eager", same, "" if same else found)

    again = Trial(experiment, split)
    same = _equal(reference, again.train(STEPS))
    found = "it draws random numbers that state.random_seed does not decide"
    yield Check("gives the same bits again", same, "" if same else found)
    if not same:
        return  # nothing can be told by comparing bits

    one_by_one = Trial(experiment, split)
    same = _equal(reference, one_by_one.train(STEPS, steps_per_call=1))
    found = "it depends on Python values that change between two calls"
    yield Check("independent of steps per call", same, "" if same else found)

    first, second = Trial(experiment, split), Trial(experiment, split)
    second.state.assign(first.train(STEPS // 2).values())
    same = _equal(reference, second.train(STEPS, unreported=Unreported(first.history, 1.0)))
    found = f"something that changes is kept outside the state, and lost; {_KEEP}"
    yield Check("resumed equals uninterrupted", same, "" if same else found)

    fixed = Trial(experiment, split.first(16))
    fixed.train(FIXED_BATCH_STEPS)
    losses = fixed.history.get("loss")
    if losses is None:
        yield Check("loss falls on a fixed batch", False, "the step returns no 'loss'")
    else:
        start, end = float(losses[:4].mean()), float(losses[-4:].mean())
        found = f"from {start:.3g} to {end:.3g} in {FIXED_BATCH_STEPS} steps"
        yield Check("loss falls on a fixed batch", end < start, found)


def _equal(a: Arrays, b: Arrays) -> bool:
    # By position: Keras numbers its names when several models are built in a process.
    pairs = zip(a.values(), b.values(), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


# --- In processes that are killed -----------------------------------------------------------------

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def killed_and_resumed(options: Verify, folder: Path, say: Any) -> Check:
    """Runs an experiment, killing and resuming it, until it has been killed often enough.

    Each time that it has come to its end, everything that it left is compared with what a run
    left that was never interrupted. See ``Verify`` for the options.
    """
    arguments = ["--data", str(options.data)] if options.data else []
    if options.full:
        arguments += ["--examples", "5000", "--epochs", "1"]
    else:
        arguments += ["--examples", "200", "--epochs", "3", "--batch-size", "32"]
        arguments += ["--dense-width", "16", "--log-every", "4", "--checkpoint-every", "5"]
    program = Program(options.experiment.resolve(), folder)
    whole = folder / "uninterrupted"
    name = "killed and resumed, ends as uninterrupted"
    start_up, duration = program.time([*arguments, "--run-dir", str(whole)], whole)
    if not (whole / "evaluation.json").exists():
        return Check(name, False, f"an uninterrupted run fails: ...{program.output()[-300:]}")
    say(f"uninterrupted: {duration:.1f} s, {start_up:.1f} s of them until training begins")
    expected = left_by(whole)

    rng, moments = random.Random(options.seed), Moments()
    signals = [signal.SIGKILL] * options.kills
    signals += [rng.choice(STOP_SIGNALS) for _ in range(options.stops)]
    for number in itertools.count(1):
        if not signals:
            break
        run = folder / f"run-{number}"
        while True:
            resume = (run / "config.json").exists()
            if not resume:
                shutil.rmtree(run, ignore_errors=True)
            which = ["--resume", str(run)] if resume else [*arguments, "--run-dir", str(run)]
            process = program.start(which)
            try:
                process.join(rng.uniform(0.7 * start_up, duration) if signals else None)
                if not (process.is_alive() and moments.kill(process, signals[0], run)):
                    break
            finally:
                process.kill()  # if this program is interrupted itself
            del signals[0]
        if process.exitcode != 0:
            return Check(name, False, f"a resumed run fails: ...{program.output()[-300:]}")
        found = left_by(run)
        if wrong := [_difference(k, v, found[k]) for k, v in expected.items() if found[k] != v]:
            return Check(name, False, "; ".join([*wrong, *moments.lost, moments.summary()]))
        say(f"run {number}: equal; {len(signals)} signals to go")
    return Check(name, not moments.lost, "; ".join([moments.summary(), *moments.lost]))


class Program:
    """Starts an experiment in a process of its own, into which all is imported already."""

    def __init__(self, experiment: Path, folder: Path) -> None:
        self._experiment = experiment
        self._output = folder / "output"
        self._context = multiprocessing.get_context("forkserver")
        drawing = ["matplotlib.figure", "matplotlib.backends.backend_agg"]
        modules = ["research.experiment", "research.tools.verify", *drawing]
        self._context.set_forkserver_preload(modules)

    def start(self, arguments: list[str]) -> Any:
        """A process that has just been started."""
        process = self._context.Process(
            target=_run_program, args=(str(self._experiment), arguments, str(self._output))
        )
        process.start()
        return process

    def time(self, arguments: list[str], run: Path) -> tuple[float, float]:
        """Runs it; returns the seconds until it has something to lose, and until it ends."""
        process, start_up = self.start(arguments), 0.0
        begun = time.monotonic()
        while process.is_alive():
            process.join(0.02)
            if not start_up and (run / "metrics.jsonl").exists():
                start_up = time.monotonic() - begun
        return start_up, time.monotonic() - begun

    def output(self) -> str:
        """What the last process has printed."""
        return self._output.read_text(errors="replace")


def _run_program(experiment: str, arguments: list[str], output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [experiment, *arguments]
    runpy.run_path(experiment, run_name="__main__")


class Moments:
    """Kills processes, and remembers in the midst of what.

    Attributes:
        lost: what was wrong afterwards.
    """

    def __init__(self) -> None:
        self.lost: list[str] = []
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._during: dict[str, int] = {}
        self._twice = itertools.cycle([False, True])

    def kill(self, process: Any, which: signal.Signals, run: Path) -> bool:
        """Sends the signal, each other time twice, and waits; False if it came too late."""
        stopped = _read(run / "log.txt").count("Stopped by")
        begun = time.monotonic()
        for _ in range(1 + next(self._twice)):  # impatient users send it twice
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, which)
            process.join(0.1)
        process.join()
        if process.exitcode == 0:
            return False
        killed = which == signal.SIGKILL
        self._seconds[killed].append(time.monotonic() - begun)
        during = _activity(run)
        self._during[during] = self._during.get(during, 0) + 1
        steps = re.findall(r"Stopped by \w+ after (\d+) of", _read(run / "log.txt"))
        if len(steps) > stopped:
            saved = [step_of(path) for path in checkpoint_paths(run / "checkpoints")[:1]]
            if process.exitcode != 128 + which:
                self.lost.append(f"exit status {process.exitcode} after {which.name}")
            if saved != [int(steps[-1])]:
                self.lost.append(f"stopped after step {steps[-1]}, saved step {saved}")
        elif not killed and process.exitcode > 0:
            self.lost.append(f"exit status {process.exitcode} without a word after {which.name}")
        return True

    def summary(self) -> str:
        """How many there were, in the midst of what, and how long it took to stop."""
        during = ", ".join(f"{n} in {what}" for what, n in sorted(self._during.items()))
        found = f"{len(self._seconds[True])} killed, {len(self._seconds[False])} stopped: {during}"
        if not (stopped := sorted(self._seconds[False])):
            return found
        p99 = stopped[-(-99 * len(stopped) // 100) - 1]
        return (
            f"{found}. Seconds from signal to exit: median {statistics.median(stopped):.2f}, "
            f"99th percentile {p99:.2f}, longest {stopped[-1]:.2f}"
        )


def _activity(run: Path) -> str:
    """What a run was doing when it ended, from what it has left."""
    if list((run / "checkpoints").glob(".partial-*")):
        return "checkpoint"
    log = _read(run / "log.txt").rpartition("test images")[2]
    if "Training for" not in log:
        return "start-up"
    if "Training finished" in log:
        return "export"
    # After an epoch there is one line before its validation, and another after.
    lines = re.findall(r"^epoch \S+  (step|validation) ", log, re.MULTILINE)
    return "validation" if lines[-1:] == ["step"] else "training"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def left_by(run: Path) -> dict[str, Any]:
    """What a finished run has left, without the times in it."""
    newest = checkpoint_paths(run / "checkpoints")[0]
    with safe_open(newest, "numpy") as file:
        about = json.loads(file.metadata()["about"])
        digests = [about["sha256"][name] for name in about["variables"]]
    timing = re.compile("seconds|speed/.*|time/.*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((run / "evaluation.json").read_text())
    return {
        "the last checkpoint": (newest.name, digests),
        "metrics.jsonl": [
            {k: v for k, v in line.items() if not timing.fullmatch(k)} for line in lines
        ],
        "TensorBoard": {
            path.name: _points(path) for path in (run / "train", run / "validation", run / "test")
        },
        "evaluation.json": evaluation,
    }


def _difference(name: str, expected: Any, found: Any) -> str:
    """Where something that a run has left is another than expected."""
    if isinstance(expected, dict):
        keys = [k for k in expected | found if expected.get(k) != found.get(k)]
        pairs = [f"{key} {expected.get(key)} is {found.get(key)}"[:100] for key in keys]
        return f"{name} is another: {', '.join(pairs)}"
    return f"{name} is another"


def _points(folder: Path) -> dict[str, list[int]]:
    """The steps that TensorBoard shows for each tag."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
