"""The verb ``bench``: compares this loop's speed with Keras ``fit`` and PyTorch, in one run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from research.config import require
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.data.mnist import load_mnist
from research.errors import InputError
from research.files import storage_errors
from research.processor import variables_set
from research.recording.screen import Screen
from research.tools import bench_others
from research.tools.bench_loops import floating_point_operations, serve
from research.tools.bench_recording import compare_recording
from research.tools.bench_trainings import (
    REFERENCE_BATCH_SIZE,
    compare_trainings,
    serve_trainings,
)
from research.tools.load_experiment import EXPERIMENTS, load_experiment
from research.tools.mean_and_spread import mean_and_spread

import numpy as np
import tyro
from rich.table import Table

Ours = Literal["ours-float32", "ours-bfloat16", "products-float32", "products-bfloat16"]
Others = Literal["fit-float32", "fit-bfloat16", "torch-float32"]
Loop = Literal[Ours, Others]

SHOWN_OPERATIONS = 12


def _installed() -> tuple[Loop, ...]:
    torch = importlib.util.find_spec("torch") is not None
    return tuple(loop for loop in get_args(Loop) if torch or not loop.startswith("torch"))


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure steps per second, or minutes, beside Keras fit. Let nothing else run.

    Each loop runs in its own process, and the loops take turns, so that slow moments of the machine
    affect all of them. Keras and PyTorch (if it is installed) run with their defaults. The floor is
    the time of a step's arithmetic as large matrix products.
    """

    experiment: Annotated[Path, tyro.conf.Positional] = EXPERIMENTS / "mnist_cnn.py"
    """The file of the experiment whose step is measured."""
    blocks: int = 5
    """Number of turns of each loop; not with --trainings."""
    steps: int = 60
    """Steps in a turn (with --trainings, in a turn of Keras fit); not with --recording."""
    loops: tuple[Loop, ...] = dataclasses.field(default_factory=_installed)
    """Which loops to measure; not with --recording or --trainings."""
    json: bool = False
    """Print JSON instead of tables."""
    recording: bool = False
    """Measure instead the cost of recording: whole epochs of the experiment with and without."""
    trainings: int | None = None
    """Measure instead this many whole trainings, with seeds from 0, and the time of Keras fit."""
    examples: int | None = None
    """With --recording or --trainings: use only this many examples, the first ones."""
    serve: Ours | Literal["trainings"] | None = None
    """Be one of the measured processes: take a turn for each line of standard input."""

    def __post_init__(self) -> None:
        require("blocks", self.blocks, self.blocks >= 2, "give at least 2")
        whole = self.recording or self.trainings is not None or self.serve == "trainings"
        valid = self.examples is None or (whole and self.examples >= 1)
        need = "give at least 1, and --recording or --trainings"
        require("examples", self.examples, valid, need)
        valid = self.trainings is None or (self.trainings >= 2 and not self.recording)
        require("trainings", self.trainings, valid, "give at least 2, without --recording")
        require("steps", self.steps, self.steps >= 1, "give at least 1")
        once = 0 < len(set(self.loops)) == len(self.loops)
        require("loops", " ".join(self.loops), once, "give at least one, and each once")
        for loop in self.loops:
            missing = "it is not installed; pip install torch"
            require("loops", loop, loop in _installed(), missing)

    def run(self, screen: Screen) -> None:
        """Measures and prints."""
        screen.console.quiet = self.json or self.serve is not None
        # Whatever an experiment prints is neither an answer nor JSON.
        with contextlib.redirect_stdout(sys.stderr if screen.console.quiet else sys.stdout):
            found = self._run(screen)
        if self.json:
            print(json.dumps(found, indent=2))

    def _run(self, screen: Screen) -> dict[str, Any]:
        """Measures, shows the results, and returns them."""
        experiment = load_experiment(self.experiment)
        try:
            # Whole trainings validate on the test set, by which nothing may be selected.
            config = dataclasses.replace(experiment.config(), patience=None)
        except TypeError as error:
            raise InputError(f"{self.experiment}: give each option a default ({error})") from error
        data = load_mnist(screen.say)
        if self.serve == "trainings":
            serve_trainings(experiment, config, data.first(self.examples), screen)
        elif self.serve is not None:
            serve(self.serve, experiment, config, data, self.steps)
        elif self.recording:
            return compare_recording(
                *(experiment, config, data.first(self.examples), self.experiment),
                blocks=self.blocks,
                screen=screen,
            )
        elif self.trainings is not None:
            with self._processes(
                ("trainings", "fit-float32"), data, REFERENCE_BATCH_SIZE
            ) as processes:
                return compare_trainings(
                    *(processes["trainings"], processes["fit-float32"]),
                    experiment=self.experiment,
                    trainings=self.trainings,
                    steps=self.steps,
                    examples=len(data.first(self.examples).train),
                    screen=screen,
                )
        else:
            plan = Plan(len(data.train), config.batch_size, config.epochs)
            model = experiment.build(config, plan).model
            flop = floating_point_operations(model, config.batch_size)
            found = {"gigaflop_per_step": flop / 1e9}
            found |= self._measure(data, config.batch_size, screen)
            self._show(found, screen)
            screen.say(
                f"{self.experiment}, batch {config.batch_size}; "
                f"mean ± standard deviation, n = {self.blocks}"
            )
            return found
        return {}

    def _measure(self, data: Dataset, batch_size: int, screen: Screen) -> dict[str, Any]:
        milliseconds: dict[str, list[float]] = {loop: [] for loop in self.loops}
        memory: dict[str, int] = {}
        with self._processes(self.loops, data, batch_size) as processes:
            for loop in self.loops:
                screen.say(f"warming up: {loop}")
                processes[loop]("turn")
            for block in range(self.blocks):
                # The order changes: no loop always comes first or always follows the same loop.
                first = block // 2 % len(self.loops)
                order = [*self.loops[first:], *self.loops[:first]][:: -1 if block % 2 else 1]
                for loop in order:
                    answer = processes[loop]("turn")
                    milliseconds[loop].append(1000 * answer["seconds"] / self.steps)
                    memory[loop] = answer["peak_memory_mib"]
                shown = ", ".join(f"{loop} {times[-1]:.0f}" for loop, times in milliseconds.items())
                screen.say(f"block {block + 1}/{self.blocks}  milliseconds per step: {shown}")
            ours = [loop for loop in self.loops if loop.startswith("ours")]
            return {
                "batch_size": batch_size,
                "milliseconds_per_step": milliseconds,
                "peak_memory_mib": {k: v for k, v in memory.items() if "products" not in k},
                "operations_milliseconds": {loop: processes[loop]("operations") for loop in ours},
            }

    @contextlib.contextmanager
    def _processes(
        self, loops: Iterable[str], data: Dataset, batch_size: int
    ) -> Iterator[dict[str, Any]]:
        """Starts the processes; yields for each a function from a line to the process's reply."""
        most = len(data.train) // batch_size
        fewer = f"an epoch has {most} steps of {batch_size} examples; give at most so many"
        require("steps", self.steps, self.steps <= most, fewer)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="research-")))
            file = folder / "data.npz"
            with storage_errors(file):
                np.savez(file, images=data.train.images, labels=data.train.labels)
            processes = {}
            for loop in loops:
                command, environment = [sys.executable], dict(os.environ)
                if loop == "trainings" or loop in get_args(Ours):
                    command += ["-m", "research", "bench", str(self.experiment)]
                    command += ["--serve", loop, "--steps", str(self.steps)]
                    if self.trainings is not None and self.examples is not None:
                        command += ["--examples", str(self.examples)]
                else:
                    command += [bench_others.__file__, loop, str(file)]
                    command += [str(batch_size), str(self.steps)]
                    environment = {k: v for k, v in environment.items() if k not in variables_set}
                processes[loop] = stack.enter_context(_process(loop, command, environment))
            yield processes

    def _show(self, found: dict[str, Any], screen: Screen) -> None:
        times, memory = found["milliseconds_per_step"], found["peak_memory_mib"]

        def ratio(above: str, below: str) -> str:
            if above == below or not times.get(above) or not times.get(below):
                return ""
            return mean_and_spread([a / b for a, b in zip(times[above], times[below], strict=True)])

        table = Table("", "steps per second", "ms per step", "peak MiB")
        for loop in self.loops:
            per_second = mean_and_spread([1000 / time for time in times[loop]])
            table.add_row(loop, per_second, mean_and_spread(times[loop]), str(memory.get(loop, "")))
        screen.console.print(table)
        table = Table("", "time over floor", "speed over fit-float32", "over fit-bfloat16")
        for loop in (loop for loop in self.loops if "products" not in loop):
            over_floor = ratio(loop, f"products-{loop.partition('-')[2]}")
            over_fit = (ratio("fit-float32", loop), ratio("fit-bfloat16", loop))
            table.add_row(loop, over_floor, *over_fit)
        screen.console.print(table)
        screen.say(
            f"Floor: the {found['gigaflop_per_step']:.1f} GFLOP of a step as large matrix products."
        )
        for loop, operations in found["operations_milliseconds"].items():
            table = Table(f"{loop}: operation", "ms per step")
            listed = list(operations.items())
            rest = sum(time for _, time in listed[SHOWN_OPERATIONS:])
            for name, time in [*listed[:SHOWN_OPERATIONS], ("all others", rest)]:
                table.add_row(name, f"{time:.1f}")
            screen.console.print(table)


@contextlib.contextmanager
def _process(loop: str, command: list[str], environment: dict[str, str]) -> Iterator[Any]:
    """Starts a process; yields a function that sends it a line and returns its answer."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        ) as process,
    ):

        def ask(line: str) -> Any:
            assert process.stdin is not None and process.stdout is not None
            try:
                print(line, file=process.stdin, flush=True)
                return json.loads(process.stdout.readline())
            except (OSError, ValueError) as error:
                said.seek(0)
                reason = " ".join(said.read().split())[-300:]
                raise InputError(f"{loop}: its process gave no answer: ...{reason}") from error

        try:
            yield ask
        finally:
            process.kill()
            with contextlib.suppress(OSError):  # it has not read all its input
                assert process.stdin is not None
                process.stdin.close()
