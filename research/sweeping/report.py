"""What a sweep has found, for people and as plain data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from research.comparing.evidence import mean_and_sd, processors
from research.comparing.page import mixture, shown, with_sd
from research.comparing.question import Metric
from research.printable import counted
from research.sweeping.journal import Journal
from research.sweeping.space import words_of
from research.sweeping.sweep import RESULTS, Sweep

from optuna.trial import TrialState
from rich.table import Table
from rich.text import Text

_MOST_ROWS = 10


def results(sweep: Sweep, journal: Journal, trials: int) -> dict[str, Any]:
    """Everything that is known about a sweep so far, as JSON values.

    ``settings`` has each setting once, the best first: ``trial`` (the first that had it),
    ``options``, ``values`` by option, ``figures`` by seed (None for a training that became
    non-finite), ``mean`` and ``sd``, None unless all seeds are finite. Settings that were given up
    are counted in ``pruned``. Of the ``trials`` that were asked for, ``ended`` have ended.
    ``status`` is ``running``; who stops or finishes the sweep changes that.
    """
    metric = sweep.metric
    rows: list[dict[str, Any]] = []
    firsts: dict[tuple[object, ...], int] = {}
    pruned = 0
    for trial in journal.trials():
        first = firsts.setdefault(tuple(sorted(trial.params.items())), trial.number)
        pruned += trial.state == TrialState.PRUNED and first == trial.number
        if trial.state != TrialState.COMPLETE or first != trial.number:
            continue
        figures = sweep.figures(trial.number) or []
        there = [figure for figure in figures if figure is not None]
        mean, sd = mean_and_sd(there) if len(there) == len(figures) else (None, None)
        rows.append(
            {
                "trial": trial.number,
                "options": words_of(sweep.space, trial.params),
                "values": trial.params,
                "figures": figures,
                "mean": mean,
                "sd": sd,
            }
        )
    rows.sort(key=lambda row: (row["mean"] is None, metric.worse * (row["mean"] or 0)))
    return {
        "metric": str(metric),
        "seeds": len(sweep.seeds),
        "settings": rows,
        "pruned": pruned,
        "trials": trials,
        "ended": sum(trial.state.is_finished() for trial in journal.trials()),
        "status": "running",
        "processors": processors(
            sweep.run(row["trial"], seed) for row in rows for seed in sweep.seeds
        ),
        "importances": journal.importances(),
    }


def result_table(found: Mapping[str, Any]) -> Table:
    """The best settings, within 80 columns."""
    metric = Metric.parse(found["metric"])
    unit = " in %" if metric.is_share else ""
    title = f"{metric.name}{unit} on held-out examples, by setting"
    table = Table(title=title, title_justify="left")
    for heading in ("", "mean ± sd", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("setting", overflow="fold")
    table.add_column("trial", justify="right", no_wrap=True)
    for number, row in enumerate(found["settings"][:_MOST_ROWS], 1):
        result = "non-finite" if row["mean"] is None else with_sd(row["mean"], row["sd"], metric)
        words = Text(_setting(row["options"]))
        table.add_row(str(number), result, str(len(row["figures"])), words, str(row["trial"]))
    return table


def _setting(words: Sequence[str]) -> str:
    """A setting that a narrow column folds between two options only."""
    return shlex.join(words).replace(" --", "\n--")


def summary(found: Mapping[str, Any]) -> list[str]:
    """Lines below the table: what else there is, and which option matters."""
    lines = []
    more = len(found["settings"]) - _MOST_ROWS
    if more > 0 or found["pruned"]:
        parts = [f"{counted(more, 'more setting')}"] if more > 0 else []
        parts += [f"{found['pruned']} given up early"] if found["pruned"] else []
        lines.append(f"And {', '.join(parts)}; all are in {RESULTS}.")
    if found["importances"]:
        each = ", ".join(f"{name} {share:.2f}" for name, share in found["importances"].items())
        lines.append(f"Importance of each option (PED-ANOVA, sums to 1): {each}")
    else:
        lines.append("Importance of each option: fewer than four settings with different figures.")
    return [*lines, *filter(None, [mixture(found["processors"])])]


def page(found: Mapping[str, Any], command: str, verdict: str) -> str:
    """sweep.md: the table, the importances and the picture, as Markdown."""
    metric = Metric.parse(found["metric"])
    unit = " in %" if metric.is_share else ""
    lines = [
        f"`{command}`\n",
        f"| | {metric.name}{unit}, mean ± sd | n | setting | trial |",
        "| --- | --- | --- | --- | --- |",
    ]
    for number, row in enumerate(found["settings"][:_MOST_ROWS], 1):
        result = "non-finite" if row["mean"] is None else with_sd(row["mean"], row["sd"], metric)
        setting = f"`{shlex.join(row['options'])}`"
        lines.append(
            f"| {number} | {result} | {len(row['figures'])} | {setting} | {row['trial']} |"
        )
    return "\n".join([*lines, "", *summary(found), "", "![Settings](sweep.png)", "", verdict, ""])


def optimism(found: Mapping[str, Any], unseen: Sequence[float], reserve: int) -> str:
    """What selection made of the winner's figure, in a sentence.

    Args:
        found: from ``results``.
        unseen: the figure of each of the winner's networks on the examples that no trial saw.
        reserve: the number of these examples.
    """
    metric, best = Metric.parse(found["metric"]), found["settings"][0]
    mean = sum(unseen) / len(unseen)
    gain = metric.worse * (mean - best["mean"]) * (100 if metric.is_share else 1)
    optimism = f"{gain:+.3g}"
    if metric.is_share:
        # The standard deviation of the difference if both sets of examples were drawn anew.
        chance = 100 * math.sqrt(2 * mean * (1 - mean) / reserve)
        optimism += f" points, where chance alone makes ± {chance:.2g}"
    return (
        f"The winner's {counted(len(unseen), 'network')}: {metric.name} "
        f"{shown(best['mean'], metric)} on the examples that selected the setting, "
        f"{shown(mean, metric)} on the {reserve:,} that no trial saw; optimism of the selection: "
        f"{optimism}."
    )
