"""The verb ``sweep``: the best settings of an experiment's options, and whether they are better."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.comparing import question
from research.comparing.cluster import engine, room_for
from research.comparing.comparison import lock_comparison
from research.comparing.page import sentence, with_sd
from research.comparing.planning import Plan, plan, read_data
from research.comparing.question import ERROR, Arm, Metric, option_names, with_held_out
from research.comparing.report import read_verdict
from research.config import parse
from research.data.dataset import Dataset, hold_out
from research.errors import InputError
from research.experiment import Experiment
from research.files import replaced_atomically, storage_errors, write_json
from research.printable import counted, duration, path_as_typed
from research.results.evaluation import evaluate
from research.results.export import load_h5
from research.screen import Screen
from research.signals import StopRequest
from research.study import progress_bar
from research.sweeping.space import grid, parse_space
from research.sweeping.sweep import (
    RESERVE_SEED,
    RESULTS,
    VERDICT,
    Declared,
    Sweep,
    command,
    create,
    find,
)
from research.tools import compare
from research.tools.load_experiment import load_experiment
from research.verbs import Compare
from research.verbs import Sweep as Asked

DEFAULT_TRIALS = 20


def run(asked: Asked, screen: Screen) -> None:
    """Tries settings, shows the best ones, and compares the winner with the experiment as it is.

    Raises:
        InputError: if Optuna is missing, or an option can't be tried.
        StorageError: if a file can't be written, or a training fails.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError('sweep: Optuna is not installed; pip install -e ".[sweep]"')
    if "reserve" in option_names(asked.options):
        raise InputError("-- --reserve can't be given; sweep has --reserve, in front of --")
    question.refuse_own_options(asked.options)
    metric = Metric.parse(asked.metric or ERROR)
    experiment = load_experiment(asked.experiment)
    space = parse_space(asked.over, experiment.config, asked.options, asked.experiment.stem)
    trials = asked.trials or DEFAULT_TRIALS
    if asked.sampler == "grid":
        trials = len(grid(space))
    options = (*with_held_out(asked.options), "--reserve", str(asked.reserve), str(RESERVE_SEED))
    tried = question.Declared(
        arms=(Arm.parse(shlex.quote(str(asked.experiment))),),
        options=options,
        metric=metric,
        margin=None,
        alpha=0.05,
        first_seed=0,
        threads=asked.threads,
    )
    data = read_data(tried, screen.say)
    # What remains is refused here, and not by the first training.
    rest, _ = hold_out(data.train, asked.reserve, RESERVE_SEED, option="reserve")
    held_out = question.option_number(options, "holdout") or 0
    hold_out(rest, held_out, 0)
    declared = Declared(
        experiment=asked.experiment,
        over=asked.over,
        options=options,
        sampler=asked.sampler,
        sampler_seed=asked.sampler_seed,
        seeds=asked.seeds,
        metric=metric,
        reserve=asked.reserve,
        prune=asked.prune,
        threads=asked.threads,
        data=data.sha256(),
    )
    workers = room_for(asked.scheduler, asked.workers, asked.threads)
    there = find(declared, space, asked.directory)
    if there is None:
        with plan(tried, [None], len(rest), declared.data, workers, screen.say) as planned:
            screen.say(cost_text(planned, trials, asked.seeds, workers))
            there = create(declared, space, planned, asked.directory)
    lock = lock_comparison(there.path, screen.say)
    try:
        found = _train(asked, there, trials, lock, screen)
        _leave(asked, experiment, there, found, data, screen)
    finally:
        os.close(lock)


def cost_text(planned: Plan, trials: int, seeds: int, workers: int) -> str:
    """What a sweep costs at most, in a line."""
    seconds = planned.trials[0].seconds(planned.examples)
    total = duration(trials * seeds * seconds / workers)
    return (
        f"{counted(trials, 'setting')}, {counted(seeds, 'training')} each of {duration(seconds)}, "
        f"{workers} at a time: {total} for the settings, by the trial. Ctrl-C stops at any time; "
        "the same command goes on."
    )


def _train(asked: Asked, there: Sweep, trials: int, lock: int, screen: Screen) -> dict[str, Any]:
    """Trains what is missing; returns the results.

    Raises:
        SystemExit: if a signal stopped it.
    """
    from research.sweeping.journal import Journal
    from research.sweeping.report import results
    from research.sweeping.trials import train

    fields = there.fields
    journal = Journal(
        there.path, there.space, there.metric, fields["sampler"], fields["sampler_seed"]
    )
    screen.say(f"{len(journal.trials())} of {counted(trials, 'trial')} begun in {there.path}")
    with (
        StopRequest() as stop,
        progress_bar(screen) as progress,
        engine(
            *(asked.scheduler, asked.workers, fields["threads"], there.path, lock, screen.say)
        ) as trainers,
    ):
        found = results(there, journal, trials)
        bar = progress.add_task("trials", total=trials, completed=found["ended"])
        for ended in train(there, journal, trainers, trials):
            if ended:
                found = results(there, journal, trials)
                write_json(there.path / RESULTS, found)
                progress.update(bar, completed=found["ended"])
            for number in ended:
                screen.say(_line(found, number, there))
            if stop.is_set():
                break
    if stop.is_set():
        write_json(there.path / RESULTS, found | {"status": "stopped"})
        screen.say(f"Stopped by {stop}; the same command goes on.")
        raise SystemExit(stop.exit_status)
    return found


def _line(found: Mapping[str, Any], trial: int, there: Sweep) -> str:
    """A trial that has ended, in a line."""
    for place, row in enumerate(found["settings"]):
        if row["trial"] == trial:
            mean, sd, metric = row["mean"], row["sd"], there.metric
            unit = "%" if metric.is_share else ""
            figure = "non-finite" if mean is None else with_sd(mean, sd, metric, unit)
            best = "  (the best so far)" if place == 0 and mean is not None else ""
            return f"trial {trial}: {metric.name} {figure}  {shlex.join(row['options'])}{best}"
    return f"trial {trial}: given up, or a setting that an earlier trial had"


def _leave(
    asked: Asked,
    experiment: Experiment,
    there: Sweep,
    found: dict[str, Any],
    data: Dataset,
    screen: Screen,
) -> None:
    """Shows the settings, writes them, and compares the best one."""
    from research.sweeping.picture import draw
    from research.sweeping.report import optimism, page, result_table, summary

    screen.console.print(result_table(found))
    for line in summary(found):
        screen.say(line)
    if not found["settings"] or found["settings"][0]["mean"] is None:
        screen.say("No setting has a finite figure: try lower learning rates, or more --trials.")
        write_json(there.path / RESULTS, found | {"status": "finished"})
        return
    _write(there.path / "sweep.png", draw(found, there.space))
    board = shlex.join(["python", "-m", "research", "board", path_as_typed(there.path)])
    screen.say(f"Every training, and a row for each setting in HParams: {board}")
    said, found["status"] = [], "stopped"
    if (unseen := _unseen(there, found, data)) is not None:
        found["unseen"] = {"examples": asked.reserve, "figures": unseen}
        said.append(optimism(found, unseen, asked.reserve))
        screen.say(said[0])
    try:
        _judge(asked, experiment, there, found["settings"][0]["options"], screen)
        found["status"] = "finished"
    finally:
        if os.path.isfile(there.path / VERDICT / "verdict.json"):
            judged = read_verdict(there.path / VERDICT)
            found["verdict"] = {k: judged[k] for k in ("findings", "results")}
            said += [sentence(judged, number) for number in range(len(judged["findings"]))]
        write_json(there.path / RESULTS, found)
        text = page(found, command(there.fields, asked.trials), "\n\n".join(said))
        _write(there.path / "sweep.md", text.encode())
    screen.say(f"The page for people: {there.path / 'sweep.md'}")


def _judge(
    asked: Asked, experiment: Experiment, there: Sweep, words: list[str], screen: Screen
) -> None:
    """Compares the best setting with the experiment as it is, or says how to."""
    final, name = comparison(asked, there, words), asked.experiment.stem
    as_it_is, best = (
        parse(experiment.config, [*asked.options, *own], experiment=name) for own in ([], words)
    )
    if best == as_it_is:
        screen.say("The best setting is the experiment as it is: there is nothing to compare.")
    elif asked.verdict:
        screen.say("The best setting against the experiment as it is, on examples no trial saw:")
        compare.run(final, screen)
    else:
        screen.say(f"Judge it on examples that no trial saw: {command_of(final)}")


def comparison(asked: Asked, there: Sweep, words: list[str]) -> Compare:
    """The comparison of a setting with the experiment as it is, on the examples no trial saw.

    Its seeds are others than those that selected the setting.
    """
    file = str(asked.experiment)
    return Compare(
        arms=(shlex.quote(file), shlex.join([file, *words])),
        metric=str(there.metric),
        most_pairs=asked.most_pairs,
        first_seed=asked.seeds,
        workers=asked.workers,
        threads=asked.threads,
        scheduler=asked.scheduler,
        directory=there.path / VERDICT,
        options=(
            *(*asked.options, "--holdout", str(asked.reserve)),
            *("--holdout-seed", str(RESERVE_SEED)),
        ),
    )


def command_of(final: Compare) -> str:
    """A comparison as a user would type it."""
    words = ["python", "-m", "research", "compare", *final.arms, "--metric", str(final.metric)]
    words += ["--most-pairs", str(final.most_pairs), "--first-seed", str(final.first_seed)]
    words += ["--threads", str(final.threads)] if final.threads != 1 else []
    words += [] if final.directory is None else ["--directory", path_as_typed(final.directory)]
    return shlex.join([*words, "--", *final.options])


def _unseen(there: Sweep, found: Mapping[str, Any], data: Dataset) -> list[float] | None:
    """The figure of each of the winner's networks on the examples that no trial saw.

    None for a figure that only the experiment itself can evaluate.
    """
    _, split = hold_out(data.train, there.fields["reserve"], RESERVE_SEED)
    values = []
    for seed in there.seeds:
        network = there.run(found["settings"][0]["trial"], seed) / "mnist.h5"
        figures = vars(evaluate(load_h5(network), split))
        value = there.metric.of({k: v for k, v in figures.items() if isinstance(v, float)})
        if value is None:
            return None
        values.append(value)
    return values


def _write(path: Path, content: bytes) -> None:
    with storage_errors(path), replaced_atomically(path) as partial:
        partial.write_bytes(content)
