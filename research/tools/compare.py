"""The verb ``compare``: judges whether a change was worth it, over pairs of trainings."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator
from typing import Any

from research.comparing.bands import write_bands
from research.comparing.checkout import commit_named
from research.comparing.cluster import Engine, engine, room_for
from research.comparing.comparison import Comparison, find, lock_comparison
from research.comparing.page import (
    mixture,
    page,
    sentence,
    shown,
    shown_difference,
    shown_interval,
    with_sd,
)
from research.comparing.pairs import train
from research.comparing.picture import draw
from research.comparing.planning import Plan, plan, read_data
from research.comparing.question import (
    ERROR,
    Declared,
    Metric,
    parse_arms,
    parse_margin,
    with_held_out,
)
from research.comparing.report import again, judged, pairs_of, read_verdict, verdict
from research.comparing.rule import rule_of, smallest_difference
from research.errors import InputError
from research.files import replaced_atomically, storage_errors, write_json
from research.printable import counted, duration
from research.screen import Screen
from research.signals import StopRequest
from research.verbs import Compare

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_SECONDS_BETWEEN_DRAWINGS = 1.0


def run(asked: Compare, screen: Screen) -> None:
    """Trains and judges until there is a verdict; prints it and leaves it in a directory.

    Raises:
        InputError: if an arm, an option or the figure can't be compared.
        StorageError: if a file can't be written, or a training fails.
    """
    say = (lambda line: None) if asked.json else screen.say
    if asked.again is not None:
        _judge_again(asked, screen)
        return
    arms = parse_arms(asked.arms, asked.options)
    commits = [commit_named(arm) for arm in arms]
    metric = Metric.parse(asked.metric or ERROR)
    declared = Declared(
        arms=tuple(arms),
        options=with_held_out(asked.options),
        metric=metric,
        margin=parse_margin(asked.margin, metric),
        alpha=asked.alpha,
        first_seed=asked.first_seed,
        threads=asked.threads,
    )
    workers = room_for(asked.scheduler, asked.workers, asked.threads)
    data = read_data(declared, say)
    digest = data.sha256()
    there = find(declared, commits, asked.directory, digest)
    if there is None or asked.cost:
        with plan(declared, commits, len(data.train), digest, workers, say) as planned:
            (screen.say if asked.cost else say)(cost_text(planned, workers, asked.most_pairs))
            if asked.cost:
                return
            there = planned.create(asked.directory)
    lock = lock_comparison(there.path, say)
    try:
        _train(asked, there, workers, lock, screen)
    finally:
        os.close(lock)


def _train(asked: Compare, there: Comparison, workers: int, lock: int, screen: Screen) -> None:
    say = (lambda line: None) if asked.json else screen.say
    most = asked.most_pairs
    say(f"{'Going on with' if there.begun else 'Comparing in'} {there.path}")
    first = there.fields["first_seed"]
    if reused := list(filter(None, map(there.reused, range(first, first + most)))):
        places = ", ".join(sorted({str(run.parents[1]) for run in reused}))
        trainings = counted(len(reused), "training")
        say(f"Reusing {trainings} of the same baseline from {places}")
    found, told = verdict(there, workers, most), -1
    begun = time.monotonic()

    def wanted(arm: int, seed: int) -> bool:
        undecided = [f["verdict"] == "undecided" for f in found["findings"]]
        return any(undecided) if arm == 0 else undecided[arm - 1]

    with StopRequest() as stop, contextlib.ExitStack() as stack:
        if wanted(0, 0):
            live = stack.enter_context(_live(screen, asked.json))
            where = (asked.scheduler, asked.workers, there.fields["threads"], there.path)
            trainers = engine(*where, lock, say)
            stack.enter_context(trainers)
            for ended in train(there, trainers, most, wanted):
                if ended is not None:
                    found = verdict(there, workers, most)
                    write_json(there.path / "verdict.json", found)
                left = time_left(there, found, trainers, most)
                if live is not None:
                    live.update(live_table(there, found, trainers, left))
                elif len(found["pairs"]) > told and found["pairs"]:
                    say(_line(there, found, left))
                told = len(found["pairs"])
                if stop.is_set() or not wanted(0, 0):
                    break
    found["cost"]["wall_seconds"] = round(time.monotonic() - begun, 1)
    _leave(asked, there, found, screen)
    if stop.is_set():
        say(f"Stopped by {stop}; the same command goes on.")
        raise SystemExit(stop.exit_status)


def _leave(asked: Compare, there: Comparison, found: dict[str, Any], screen: Screen) -> None:
    """Writes and shows the verdict so far."""
    write_json(there.path / "verdict.json", found)
    if found["pairs"]:
        repeat = again(there, asked.most_pairs)
        picture = draw(found)
        for name, content in (
            ("differences.png", picture),
            ("verdict.md", page(found, repeat).encode()),
        ):
            path = there.path / name
            with storage_errors(path), replaced_atomically(path) as partial:
                partial.write_bytes(content)
    bands = write_bands(there, found)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    _show(found, screen)
    if mixed := mixture(found["processors"]):
        screen.say(mixed)
    if found["pairs"]:
        screen.say(f"The page for people: {there.path / 'verdict.md'}")
    if bands is not None:
        command = shlex.join(["python", "-m", "research", "board", str(bands)])
        screen.say(f"Mean ± sd by step, in Custom Scalars: {command}")


def _judge_again(asked: Compare, screen: Screen) -> None:
    """Judges the pairs of a verdict afresh."""
    assert asked.again is not None
    if asked.arms or asked.options:
        raise InputError("--again: give it without arms and options; the verdict has them")
    try:
        found, declared = _considered_again(asked, read_verdict(asked.again))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--again {asked.again}: no verdict, or one of another version "
            f"({type(error).__name__}: {error})"
        ) from error
    exploration = found["exploration"]
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    if exploration:
        screen.say(
            f"Exploration: declared was {declared}. A figure chosen after the pairs were seen "
            "proves nothing; declare it for a comparison with other seeds."
        )
    _show(found, screen)


def _considered_again(asked: Compare, before: dict[str, Any]) -> tuple[dict[str, Any], str]:
    question = before["question"]
    declared = Metric.parse(question["metric"])
    metric = declared if asked.metric is None else Metric.parse(asked.metric)
    margin = parse_margin(asked.margin, metric)
    if asked.margin is None and metric == declared:
        margin = question["margin"]
    names = [arm["name"] for arm in question["arms"]]
    changed = {"metric": str(metric), "margin": margin}
    considered = question | changed
    pairs, most = pairs_of(before), question["most_pairs"]
    found = before | {"question": considered}
    found |= judged(pairs, metric, rule_of(considered), names, most)
    found["exploration"] = any(question[k] != v for k, v in changed.items())
    return found, question["metric"]


def _show(found: dict[str, Any], screen: Screen) -> None:
    """Prints the results, and a sentence for each challenger."""
    screen.console.print(result_table(found))
    for number, finding in enumerate(found["findings"]):
        screen.say_folded(sentence(found, number))
        if finding["pairs"]:
            screen.say_folded(more(found, number))


def cost_text(plan: Plan, workers: int, most_pairs: int) -> str:
    """What a comparison costs at most, and what it can show, in lines for the screen."""
    rule = rule_of(plan.question)
    counts = list(dict.fromkeys([rule.fewest_pairs, max(most_pairs, rule.fewest_pairs)]))

    def row(what: str, epochs: float | None) -> str:
        seconds = [trial.seconds(plan.examples, epochs) for trial in plan.trials]
        times = [sum(seconds) / min(workers, len(seconds))]
        times += [n * sum(seconds) / workers for n in counts]
        return f"  {what:<22}" + "".join(f"{duration(each):>12}" for each in times)

    own = plan.trials[0].config["epochs"]
    headings = "".join(f"{heading:>12}" for heading in ("a pair", *(f"{n} pairs" for n in counts)))
    lines = [f"  {'':<22}{headings}", row(f"{own:g} epochs", None)]
    shorter = [e for e in (1.5, 0.5) if e < own]
    if shorter and not any("epochs" in word for word in plan.declared.options):
        lines.append(row(f"-- --epochs {shorter[0]:g}", shorter[0]))
    can_show = ", ".join(f"{n} pairs: {smallest_difference(n, rule):.1f}" for n in counts)
    return "\n".join(
        [
            "What it costs at most, by the trial:",
            *lines,
            "The smallest difference that so many pairs can show, in standard deviations of",
            f"the paired differences: {can_show}.",
            "Ctrl-C stops at any time; the same command goes on.",
        ]
    )


def time_left(
    there: Comparison, found: dict[str, Any], trainers: Engine, most_pairs: int
) -> tuple[float, float]:
    """An 80% range of the seconds until the verdict; the upper one goes to --most-pairs at most."""
    arms = found["cost"]["arms"]
    seconds = [
        row["seconds"][0] or about["seconds"] for row, about in zip(arms, there.arms, strict=True)
    ]
    per_pair = sum(seconds) / trainers.workers
    done = len(found["pairs"])
    under_way = sum(trainers.running.values()) / trainers.workers
    ends = []
    for finding in found["findings"]:
        if still := finding["still"]:
            totals = [most_pairs if t is None else t for t in (still["low"], still["high"])]
            ends.append([max(0.0, (t - done) * per_pair - under_way) for t in totals])
    if not ends:
        return 0.0, 0.0
    return max(low for low, _ in ends), max(high for _, high in ends)


def result_table(found: dict[str, Any]) -> Table:
    """The arms, their results and the verdicts, within 80 columns."""
    metric = Metric.parse(found["question"]["metric"])
    unit = " in %" if metric.is_share else ""
    table = Table(title=f"{metric.name}{unit} on held-out examples", title_justify="left")
    table.add_column("arm", overflow="fold")
    for heading in ("pairs", "mean ± sd", "difference,\ninterval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for number, result in enumerate(found["results"]):
        pairs = str(result["n"] + result["failed"])
        row: list[Text | str] = [Text(result["name"]), pairs, _mean(result, metric)]
        if number == 0:
            table.add_row(*row, "", "baseline")
            continue
        finding = found["findings"][number - 1]
        difference, word = finding["difference"], finding["verdict"]
        if difference is not None:
            interval = shown_interval(finding, metric, unit=False)
            row += [f"{shown_difference(difference, metric, unit=False)}\n{interval}"]
        else:
            row += [""]
        table.add_row(*row, Text(word, _STYLES.get(word, "")))
    return table


def more(found: dict[str, Any], number: int) -> str:
    """Pairs won, the correlation within pairs and the cost of a challenger, in a line."""
    finding, costs = found["findings"][number], found["cost"]["arms"][number + 1]
    said = [f"won {finding['won']} of {counted(finding['pairs'], 'pair')}"]
    if finding["correlation"] is not None:
        said.append(f"correlation within pairs {finding['correlation']:.2f}")
    mean, sd, count = costs["ratio_of_seconds"]
    if mean is not None:
        spread = "" if sd is None else f" ± {sd:.2f}"
        together = "side by side" if found["cost"]["workers"] > 1 else "one after the other"
        how = together if costs["side_by_side"] else "the baseline's in another comparison"
        said.append(f"time {mean:.2f}{spread} of the baseline's (n = {count}, {how})")
    return f"{finding['challenger']}: {'; '.join(said)}"


_STYLES = {"better": "bold green", "worse": "bold red", "undecided": "magenta"}


def _mean(result: dict[str, Any], metric: Metric) -> str:
    if result["mean"] is None:
        return f"{result['failed']} failed" if result["failed"] else ""
    failed = f"\n{result['failed']} failed" if result["failed"] else ""
    return with_sd(result["mean"], result["sd"], metric) + failed


@contextlib.contextmanager
def _live(screen: Screen, silent: bool) -> Iterator[Live | None]:
    """A live table, if there is a terminal to show it."""
    if silent or not screen.console.is_terminal:
        yield None
        return
    with Live(console=screen.console, refresh_per_second=2, transient=True) as live:
        yield live


def live_table(
    there: Comparison,
    found: dict[str, Any],
    trainers: Engine,
    left: tuple[float, float],
) -> Group:
    """The verdict so far, what is being trained, and the time that it may still take."""
    running = [
        f"{there.names[arm]} seed {seed} ({seconds:.0f} s)"
        for (arm, seed), seconds in trainers.running.items()
    ]
    lines = [f"training {', '.join(running)}" if running else "starting", _left(found, left)]
    return Group(result_table(found), *(Text(line) for line in lines))


def _left(found: dict[str, Any], left: tuple[float, float]) -> str:
    if not any(left):
        return ""
    most = found["question"]["most_pairs"]
    low, high = duration(left[0]), duration(left[1])
    time_text = low if low == high else f"{low} to {high}"
    return f"{time_text} left (80% range); at most {most} pairs"


def _line(there: Comparison, found: dict[str, Any], left: tuple[float, float]) -> str:
    """The newest pair and the verdict so far in a line, where there is no terminal."""
    metric, pair = there.metric, found["pairs"][-1]
    values = [
        "" if outcome is None else "failed" if outcome["figures"] is None
        else shown(metric.of(outcome["figures"]) or 0.0, metric)
        for outcome in pair["outcomes"]
    ]  # fmt: skip
    so_far = [
        f"{f['challenger']} {shown_difference(f['difference'], metric)}, "
        f"interval {shown_interval(f, metric)}, {f['verdict']}"
        for f in found["findings"]
        if f["difference"] is not None
    ]
    said = f"seed {pair['seed']}: {metric.name} {' | '.join(values)}; {'; '.join(so_far)}"
    return f"{said}; {_left(found, left)}" if any(left) else said
