"""The checks of ``verify`` that kill runs: each must end like an uninterrupted run."""

from __future__ import annotations

import dataclasses
import functools
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
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from research.config import Config
from research.printable import counted
from research.recording.checkpoints import checkpoint_paths, step_of
from research.recording.metrics import without_times
from research.signals import SIGNALS
from research.tools.check import Check

import numpy as np
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class FailedError(Exception):
    """A run has ended wrongly. The message is a predicate, such as "ends with 1: ..."."""


class DeadEndError(FailedError):
    """A killed run can be neither resumed nor started again."""


def killed_and_resumed(
    experiment: Path,
    arguments: Sequence[str],
    config: Config,
    *,
    kills: int,
    stops: int,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    seconds: float = 600,
) -> Iterator[Check]:
    """Runs an experiment and forks of it, kills and resumes them, until all signals have landed.

    After each kill it does what a user would do: resume the run if its directory exists, and if the
    resumption is refused, repeat the first command. The results of each run must equal those of an
    uninterrupted run.

    Args:
        experiment: the experiment's file.
        arguments: the experiment's command line, without a directory.
        config: the configuration of these arguments.
        kills: number of SIGKILLs; a tenth of them, and at least one of two, are for forks.
        stops: number of signals that let the experiment save a checkpoint.
        seed: decides the random moments.
        folder: an empty directory to work in.
        say: is called with a line about each run.
        seconds: how long an uninterrupted run may take; one that hangs is ended.

    Yields:
        A check about runs, and one about forks.
    """
    program, rng = Program(experiment, folder, seconds), random.Random(seed)
    of_forks = max(kills // 10, min(1, kills - 1), 0)
    heeded = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]  # nohup ignores SIGHUP
    signals = [signal.SIGKILL] * (kills - of_forks) + rng.choices(heeded, k=stops)
    source = folder / "uninterrupted"
    name = "killed and resumed, ends as uninterrupted"
    try:
        whole = program.uninterrupted(arguments, source)
        say(f"uninterrupted: {whole.end:.1f} seconds, {whole.checkpoint:.1f} to its checkpoint")
        sent, most = len(signals) + of_forks, most_seconds(len(signals), whole)
        most += most_seconds(of_forks, whole) if of_forks else 0
        say(f"{counted(sent, 'signal')}: about {sent * whole.end:.0f} to {most:.0f} seconds")
        runs = (Training(arguments, whole, folder / f"run-{n}") for n in itertools.count(1))
        check = Killer(program, signals, rng, say).check(name, runs)
        yield check
        if of_forks and check.holds:
            name = f"fork {name}"
            forks = _forks(program, source, config, folder)
            yield Killer(program, [signal.SIGKILL] * of_forks, rng, say).check(name, forks)
    except FailedError as error:
        yield Check(name, False, f"a run that is not interrupted {error}")


@dataclasses.dataclass(frozen=True)
class Uninterrupted:
    """A run that was never interrupted.

    Attributes:
        left: its results, see ``left_by``.
        directory, checkpoint, end: seconds from its start until its directory existed, until its
            first checkpoint existed, and until its end.
    """

    left: dict[str, Any]
    directory: float
    checkpoint: float
    end: float


def most_seconds(signals: int, whole: Uninterrupted) -> float:
    """How long signals may take to land: a minute, and the time of 5 (n + 5) whole runs."""
    return 60 + 5 * (signals + 5) * whole.end


@dataclasses.dataclass(frozen=True)
class Training:
    """A run to be killed.

    Attributes:
        arguments: its command line, without a directory.
        whole: the uninterrupted run to compare it with.
        run: its directory.
        after_first_kill: is called once, after the first kill that leaves the directory: before
            that, nothing says yet which checkpoint a fork goes on from.
    """

    arguments: Sequence[str]
    whole: Uninterrupted
    run: Path
    after_first_kill: Callable[[], None] = lambda: None


def _forks(program: Program, source: Path, config: Config, folder: Path) -> Iterator[Training]:
    """Forks of a finished run; the source run goes on after the first kill of its fork.

    Forks begin in turn at the newest checkpoint, which is then no longer the newest, and at a named
    one.

    Raises:
        FailedError: if an uninterrupted fork fails.
    """
    steps = sorted(step_of(path) for path in checkpoint_paths(source / "checkpoints"))
    longer = ["--epochs", f"{config.epochs + 1:g}"]
    rate = ["--learning-rate", f"{config.learning_rate / 2:g}"]
    kinds = ([*longer, *rate], ["--at-step", f"{steps[(len(steps) - 1) // 2]}", *rate])
    wholes: list[Uninterrupted] = []
    for number in itertools.count():
        options = kinds[number % 2]
        if number < 2:
            whole = folder / f"uninterrupted-fork-{number}"
            wholes.append(program.uninterrupted(["--fork", str(source), *options], whole))
        copy = Path(shutil.copytree(source, folder / f"source-{number}"))
        go_on = ["--resume", str(copy), *longer, "--keep-checkpoints", "99"]
        yield Training(
            arguments=["--fork", str(copy), *options],
            whole=wholes[number % 2],
            run=folder / f"fork-{number}",
            after_first_kill=functools.partial(_go_on_if_possible, program, go_on),
        )


def _go_on_if_possible(program: Program, arguments: Sequence[str]) -> None:
    process = program.start(arguments)
    program.wait(process)
    # Status 2: a run whose schedule depends on the number of epochs refuses more epochs.
    if process.exitcode not in (0, 2):
        raise FailedError(f"fails when it goes on: {program.output()[-300:]}")


class Killer:
    """Kills runs, and remembers what each was doing and what was wrong afterwards.

    Args:
        program: the experiment to run.
        signals: the signals to send; each that lands is removed.
        rng: decides the moments.
        say: is called with a line about each run.
    """

    def __init__(
        self,
        program: Program,
        signals: list[signal.Signals],
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self._program, self._signals, self._rng, self._say = program, signals, rng, say
        self._during: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._seconds_to_stop: list[float] = []
        self._wrong: list[str] = []
        self._twice = itertools.cycle([False, True])
        self._faster = 1.0  # the shortest run so far, as a share of the uninterrupted one

    def check(self, name: str, trainings: Iterator[Training]) -> Check:
        """Runs one training after another until all signals have landed, or gives up.

        It gives up after 2 n + 5 runs for n signals, or with the run in which ``most_seconds``
        have passed.
        """
        asked, begun, runs = len(self._signals), time.monotonic(), 0
        seconds, limit = 0.0, np.inf
        while self._signals and runs < 2 * asked + 5 and seconds < limit:
            training = next(trainings)
            runs += 1
            limit = most_seconds(asked, training.whole)
            try:
                self._until_it_ends(training)
                how = "as uninterrupted"
            except DeadEndError as error:
                self._wrong.append(f"{training.run.name} {error}")
                how = "a dead end"
            except FailedError as error:
                self._wrong.append(f"{training.run.name} {error}")
                break
            seconds = time.monotonic() - begun
            to_go = counted(len(self._signals), "signal")
            self._say(f"{training.run.name}: {how}; {to_go} to go after {seconds:.0f} seconds")
        found = [self._summary()]
        if (landed := asked - len(self._signals)) < asked and not self._wrong:
            in_time = f"in time ({counted(runs, 'run')}, {seconds:.0f} seconds)"
            found.insert(0, f"only {landed} of {counted(asked, 'signal')} landed {in_time}")
        if self._wrong:
            found.insert(0, f"{len(self._wrong)} wrong: {'; '.join(self._wrong[:3])}")
        return Check(name, not self._wrong and landed == asked, ". ".join(found))

    def _until_it_ends(self, training: Training) -> None:
        """Starts a run, kills it, and does what a user would do, until it ends by itself.

        Raises:
            DeadEndError: if the run can be neither resumed nor started again.
            FailedError: if the run fails, or its results differ from the uninterrupted run's.
        """
        run, refused, kills, called = training.run, "", 0, False
        most = self._rng.randint(1, 4)  # few, since new runs must be killed, too
        while True:
            resume = os.path.lexists(run) and not refused
            again = [*training.arguments, "--run-dir", str(run)]
            which = self._signals[0] if self._signals and kills < most else None
            status = self._run(["--resume", str(run)] if resume else again, training, which)
            if status is None:
                refused, kills = "", kills + 1
                if not called and os.path.lexists(run):
                    training.after_first_kill()
                    called = True
            elif status == 0:
                break
            elif status == 2 and resume:
                refused = self._program.output()[-300:]
            elif status == 2 and refused:
                holds = ", ".join(sorted(os.listdir(run))) or "nothing"  # noqa: PTH208
                raise DeadEndError(
                    f"is a dead end; it holds {holds}. Resumed: {refused} "
                    f"Started again: {self._program.output()[-300:]}"
                )
            else:
                raise FailedError(f"ends with {status}: ...{self._program.output()[-300:]}")
        found = left_by(run)
        for name, expected in training.whole.left.items():
            if found[name] != expected:
                raise FailedError(f"ends otherwise: {_difference(name, expected, found[name])}")

    def _run(
        self, arguments: Sequence[str], training: Training, which: signal.Signals | None
    ) -> int | None:
        """Starts a process and sends it a signal; returns its exit status, None if it landed."""
        run, begun = training.run, time.monotonic()
        process = self._program.start(arguments)
        log, sent = len(_read(run / "log.txt")), begun
        try:
            if which is not None:
                self._wait(process, which, training)
                sent = time.monotonic()
                for _ in range(1 + next(self._twice)):  # impatient users send it twice
                    if process.is_alive():
                        os.kill(process.pid, which)
                        process.join(0.1)
            process.join(60 + 20 * training.whole.end)
            if process.is_alive():
                raise FailedError("hangs")
        finally:
            process.kill()
            process.join()
        seconds = time.monotonic() - begun
        if which is None or process.exitcode not in (-which, 128 + which):
            if process.exitcode == 0 and "--resume" not in arguments:
                self._faster = min(self._faster, seconds / training.whole.end)
            return int(process.exitcode)
        del self._signals[0]
        said = _read(run / "log.txt")[log:]
        self._during[_activity(training, said)] += 1
        self._sent["killed" if which == signal.SIGKILL else "stopped"] += 1
        if which != signal.SIGKILL:
            self._seconds_to_stop.append(time.monotonic() - sent)
            self._wrong += self._lost(run, said, which, process.exitcode)
        return None

    def _wait(self, process: Any, which: signal.Signals, training: Training) -> None:
        """Waits for the moment of the signal, or until the process has ended.

        The moments are spread evenly from the first instruction to the end. But half of the
        processes without a checkpoint are killed before they save one, most of them within
        milliseconds after their directory appears.
        """
        run, whole, rng = training.run, training.whole, self._rng
        end = whole.end * self._faster
        if which != signal.SIGKILL:  # an earlier one just ends the process
            process.join(rng.uniform(whole.directory, end))
        elif checkpoint_paths(run / "checkpoints") or rng.random() < 0.5:
            process.join(rng.uniform(0, end))
        elif rng.random() < 0.3:
            process.join(rng.uniform(0, whole.checkpoint))
        else:
            until = time.monotonic() + 60 + 20 * end
            while process.is_alive() and not os.path.lexists(run) and time.monotonic() < until:
                time.sleep(0.0005)
            process.join((whole.checkpoint - whole.directory) * rng.random() ** 3)

    def _lost(self, run: Path, said: str, which: signal.Signals, status: int) -> Iterator[str]:
        """Yields a message for each loss of a stopped run."""
        stopped = re.findall(r"Stopped by \w+ after step (\d+) of", said)
        if stopped:
            saved = [step_of(path) for path in checkpoint_paths(run / "checkpoints")[:1]]
            if status != 128 + which:
                yield f"{run.name} ends with {status} after {which.name}"
            if saved != [int(stopped[-1])]:
                yield f"{run.name} stopped after step {stopped[-1]}, and saved step {saved}"
        elif status > 0 and "nothing is lost" not in self._program.output():
            yield f"{run.name} ends with {status} after {which.name} without a word"
        elif status < 0 and "Training for" in said and not (run / "evaluation.json").exists():
            yield f"{run.name} saved nothing after {which.name}"

    def _summary(self) -> str:
        """The number of signals, what the runs were doing, and how long they took to stop."""
        sent = ", ".join(f"{n} {what}" for what, n in self._sent.items())
        during = ", ".join(f"{n} {what}" for what, n in sorted(self._during.items()))
        if not (stopped := sorted(self._seconds_to_stop)):
            return f"{sent}: {during}" if sent else "none sent"
        p99 = stopped[-(-99 * len(stopped) // 100) - 1]
        return (
            f"{sent}: {during}. Seconds from signal to exit: median "
            f"{statistics.median(stopped):.2f}, 99th percentile {p99:.2f}, "
            f"longest {stopped[-1]:.2f}"
        )


class Program:
    """Starts an experiment in processes that have imported all modules already."""

    def __init__(self, experiment: Path, folder: Path, seconds: float = 600) -> None:
        self._experiment, self._folder = experiment.resolve(), folder
        self._seconds = seconds
        self._context = multiprocessing.get_context("forkserver")
        drawing = ["matplotlib.figure", "matplotlib.backends.backend_agg"]
        modules = ["research.__main__", "research.experiment", __name__, *drawing]
        self._context.set_forkserver_preload(modules)
        first = self._context.Process(target=int)
        first.start()  # waits for the imports, so that no run has to
        first.join()

    def start(self, arguments: Sequence[str]) -> Any:
        """Starts a process and returns it."""
        words = (
            str(self._experiment),
            list(arguments),
            str(self._folder / "output"),
            str(Path.cwd()),
        )
        process = self._context.Process(target=_run_program, args=words)
        process.start()
        return process

    def wait(self, process: Any, polled: Callable[[], None] = lambda: None) -> None:
        """Waits until a process ends, and calls ``polled`` every few milliseconds.

        Raises:
            FailedError: if the process takes longer than it may; it is killed.
        """
        until = time.monotonic() + self._seconds
        while process.is_alive():
            process.join(0.002)
            polled()
            if time.monotonic() > until:
                process.kill()
                process.join()
                raise FailedError(
                    f"hangs: it was ended after {self._seconds:.0f} seconds; --minutes gives it "
                    f"more. ...{self.output()[-200:]}"
                )

    def uninterrupted(self, arguments: Sequence[str], run: Path) -> Uninterrupted:
        """Runs the experiment to its end.

        Raises:
            FailedError: if the run fails, or hangs.
        """
        begun, directory, checkpoint = time.monotonic(), 0.0, 0.0
        process = self.start([*arguments, "--run-dir", str(run)])

        def look() -> None:
            nonlocal directory, checkpoint
            seconds = time.monotonic() - begun
            if not directory and os.path.lexists(run):
                directory = seconds
            if not checkpoint and checkpoint_paths(run / "checkpoints"):
                checkpoint = seconds

        self.wait(process, look)
        end = time.monotonic() - begun
        if process.exitcode != 0:
            raise FailedError(f"ends with {process.exitcode}: ...{self.output()[-300:]}")
        return Uninterrupted(left_by(run), directory, checkpoint, end)

    def output(self) -> str:
        """The output of the last process, with short names for files in the folder."""
        text = (self._folder / "output").read_text(errors="replace")
        return text.replace(f"{self._folder}/", "").strip()


def _run_program(experiment: str, arguments: list[str], output: str, folder: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(folder)
    sys.path.insert(0, str(Path(experiment).parent))
    sys.argv = [experiment, *arguments]
    runpy.run_path(experiment, run_name="__main__")


def _activity(training: Training, said: str) -> str:
    """What a run was doing when it ended, by its files and its log."""
    run = training.run
    if not os.path.lexists(run):
        return "before the directory"
    if list((run / "checkpoints").glob(".partial-*")):
        return "saving"
    if "Training for" not in said:
        return "starting" if checkpoint_paths(run / "checkpoints") else "creating the directory"
    if "Training steps took" in said:
        return "exporting"
    # A line about training precedes each validation, and a line about the validation follows it.
    validated = {
        line["step"]
        for line in training.whole.left["metrics.jsonl"]
        if line["split"] == "validation"
    }
    last = re.search(r'"split": "train", "step": (\d+)[^\n]*\n?\Z', _read(run / "metrics.jsonl"))
    return "validating" if last and int(last[1]) in validated else "training"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def left_by(run: Path) -> dict[str, Any]:
    """The results of a finished run, without times."""
    newest = checkpoint_paths(run / "checkpoints")[0]
    with safe_open(newest, "numpy") as file:
        about = json.loads(file.metadata()["about"])
        digests = [about["sha256"][name] for name in about["variables"]]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((run / "evaluation.json").read_text())
    return {
        "the last checkpoint": (newest.name, digests),
        "metrics.jsonl": [without_times(line) for line in lines],
        "TensorBoard": {
            name: _points(run / name)
            for name in ("train", "validation", "test")
            if (run / name).is_dir()
        },
        "evaluation.json": evaluation,
    }


def _difference(name: str, expected: Any, found: Any) -> str:
    """Describes how a result differs from the expected one."""
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
