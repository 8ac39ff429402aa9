"""The verb ``bench``: compares this loop's speed with Keras ``fit`` and PyTorch, in one run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from research.config import require
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.data.mnist import load_mnist
from research.errors import InputError
from research.files import storage_errors
from research.processor import variables_set
from research.screen import Screen
from research.tools import bench_others
from research.tools.bench_loops import floating_point_operations, serve
from research.tools.bench_recording import compare_recording
from research.tools.bench_trainings import (
    REFERENCE_BATCH_SIZE,
    compare_trainings,
    serve_trainings,
)
from research.tools.load_experiment import load_experiment
from research.tools.mean_and_spread import mean_and_spread
from research.verbs import Bench, Ours

import numpy as np
from rich.table import Table

SHOWN_OPERATIONS = 12


def run(asked: Bench, screen: Screen) -> None:
    """Measures and prints."""
    screen.console.quiet = asked.json or asked.serve is not None
    # Whatever an experiment prints is neither an answer nor JSON.
    with contextlib.redirect_stdout(sys.stderr if screen.console.quiet else sys.stdout):
        found = _run(asked, screen)
    if asked.json:
        print(json.dumps(found, indent=2))


def _run(asked: Bench, screen: Screen) -> dict[str, Any]:
    """Measures, shows the results, and returns them."""
    experiment = load_experiment(asked.experiment)
    try:
        # Whole trainings validate on the test set, by which nothing may be selected.
        config = dataclasses.replace(experiment.config(), patience=None)
    except TypeError as error:
        raise InputError(f"{asked.experiment}: give each option a default ({error})") from error
    data = load_mnist(screen.say)
    if asked.serve == "trainings":
        serve_trainings(experiment, config, data.first(asked.examples), screen)
    elif asked.serve is not None:
        serve(asked.serve, experiment, config, data, asked.steps)
    elif asked.recording:
        return compare_recording(
            *(experiment, config, data.first(asked.examples), asked.experiment),
            blocks=asked.blocks,
            screen=screen,
        )
    elif asked.trainings is not None:
        with _processes(
            asked, ("trainings", "fit-float32"), data, REFERENCE_BATCH_SIZE
        ) as processes:
            return compare_trainings(
                *(processes["trainings"], processes["fit-float32"]),
                experiment=asked.experiment,
                trainings=asked.trainings,
                steps=asked.steps,
                examples=len(data.first(asked.examples).train),
                screen=screen,
            )
    else:
        plan = Plan(len(data.train), config.examples_per_step, config.epochs)
        model = experiment.build(config, plan).model
        flop = floating_point_operations(model, config.examples_per_step)
        found = {"gigaflop_per_step": flop / 1e9}
        found |= _measure(asked, data, config.examples_per_step, screen)
        _show(asked, found, screen)
        screen.say(
            f"{asked.experiment}, batch {config.examples_per_step}; "
            f"mean ± standard deviation, n = {asked.blocks}"
        )
        return found
    return {}


def _measure(asked: Bench, data: Dataset, batch_size: int, screen: Screen) -> dict[str, Any]:
    milliseconds: dict[str, list[float]] = {loop: [] for loop in asked.loops}
    memory: dict[str, int] = {}
    with _processes(asked, asked.loops, data, batch_size) as processes:
        for loop in asked.loops:
            screen.say(f"warming up: {loop}")
            processes[loop]("turn")
        for block in range(asked.blocks):
            # The order changes: no loop always comes first or always follows the same loop.
            first = block // 2 % len(asked.loops)
            order = [*asked.loops[first:], *asked.loops[:first]][:: -1 if block % 2 else 1]
            for loop in order:
                answer = processes[loop]("turn")
                milliseconds[loop].append(1000 * answer["seconds"] / asked.steps)
                memory[loop] = answer["peak_memory_mib"]
            shown = ", ".join(f"{loop} {times[-1]:.0f}" for loop, times in milliseconds.items())
            screen.say(f"block {block + 1}/{asked.blocks}  milliseconds per step: {shown}")
        ours = [loop for loop in asked.loops if loop.startswith("ours")]
        return {
            "batch_size": batch_size,
            "milliseconds_per_step": milliseconds,
            "peak_memory_mib": {k: v for k, v in memory.items() if "products" not in k},
            "operations_milliseconds": {loop: processes[loop]("operations") for loop in ours},
        }


@contextlib.contextmanager
def _processes(
    asked: Bench, loops: Iterable[str], data: Dataset, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Starts the processes; yields for each a function from a line to the process's reply."""
    most = len(data.train) // batch_size
    fewer = f"an epoch has {most} steps of {batch_size} examples; give at most so many"
    require("steps", asked.steps, asked.steps <= most, fewer)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="research-")))
        file = folder / "data.npz"
        with storage_errors(file):
            np.savez(file, images=data.train.images, labels=data.train.labels)
        processes = {}
        for loop in loops:
            command, environment = [sys.executable], dict(os.environ)
            if loop == "trainings" or loop in get_args(Ours):
                command += ["-m", "research", "bench", str(asked.experiment)]
                command += ["--serve", loop, "--steps", str(asked.steps)]
                if asked.trainings is not None and asked.examples is not None:
                    command += ["--examples", str(asked.examples)]
            else:
                command += [bench_others.__file__, loop, str(file)]
                command += [str(batch_size), str(asked.steps)]
                environment = {k: v for k, v in environment.items() if k not in variables_set}
            processes[loop] = stack.enter_context(_process(loop, command, environment))
        yield processes


def _show(asked: Bench, found: dict[str, Any], screen: Screen) -> None:
    times, memory = found["milliseconds_per_step"], found["peak_memory_mib"]

    def ratio(above: str, below: str) -> str:
        if above == below or not times.get(above) or not times.get(below):
            return ""
        return mean_and_spread([a / b for a, b in zip(times[above], times[below], strict=True)])

    table = Table("", "steps per second", "ms per step", "peak MiB")
    for loop in asked.loops:
        per_second = mean_and_spread([1000 / time for time in times[loop]])
        table.add_row(loop, per_second, mean_and_spread(times[loop]), str(memory.get(loop, "")))
    screen.console.print(table)
    table = Table("", "time over floor", "speed over fit-float32", "over fit-bfloat16")
    for loop in (loop for loop in asked.loops if "products" not in loop):
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
