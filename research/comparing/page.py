"""verdict.md: what a comparison found, on one page for people, as GitHub-flavoured Markdown."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from research.comparing.question import Metric, option_names
from research.comparing.rule import rule_of
from research.printable import counted, duration, printable

PICTURE = "differences.png"
# A longer difference of code is folded.
_MOST_LINES_SHOWN = 60
# The extensions of a processor that decide its speed here, highest first.
_EXTENSIONS = (
    *("amx_bf16", "amx_tile", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "avx", "sse4_2"),
    *("sve2", "sve", "asimd"),
)


def page(found: Mapping[str, Any], repeat: str, exploration: bool = False) -> str:
    """The page on a comparison.

    Args:
        found: what verdict.json holds (``research.comparing.report.verdict``).
        repeat: the command that repeats the comparison.
        exploration: whether the figure was chosen after the trainings.
    """
    question = found["question"]
    baseline, *others = [arm["name"] for arm in question["arms"]]
    challengers = _code(others[0]) if len(others) == 1 else f"{len(others)} challengers"
    title = f"{challengers} against {_code(baseline)}"
    if exploration:
        title = f"Exploration, no verdict: the figure was chosen after the trainings. {title}"
    numbers = range(len(found["findings"]))
    parts = [
        f"# {title}",
        *(sentence(found, number, markdown=True) for number in numbers),
        f"![The difference of each pair and the interval of their mean]({PICTURE})",
        _results(found),
        _costs(found),
        "## What was asked",
        _asked(found, exploration),
        "## How it was decided",
        _decided(question),
        "## What the verdict is about",
        _about(question),
        "## What it took",
        _took(found),
        "## The code",
        *(_code_difference(found, number) for number in numbers),
        "## To repeat it",
        _fenced(repeat, "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def sentence(found: Mapping[str, Any], number: int, markdown: bool = False) -> str:
    """What a comparison found about one challenger, in one to three sentences.

    Args:
        found: what verdict.json holds.
        number: the challenger's, from 0.
        markdown: for the page; otherwise for a terminal.
    """
    question, finding = found["question"], found["findings"][number]
    metric, verdict, pairs = Metric.parse(question["metric"]), finding["verdict"], finding["pairs"]
    name = _code if markdown else printable
    baseline, challenger = name(question["arms"][0]["name"]), name(finding["challenger"])
    said = f"**{verdict}**" if markdown else verdict
    so_many = counted(pairs, "pair")
    if not pairs:
        return f"{challenger} against {baseline} is {said}: there is no pair yet."
    figure = metric.name if metric.name.isalpha() else name(metric.name)
    interval = f"{level(question)} interval {shown_interval(finding, metric)}"
    if finding["interval"] is None:
        interval = f"no interval before {counted(rule_of(question).fewest_pairs, 'pair')}"
    evidence = f"{figure} {_compared(finding['difference'], metric)} ({interval})"
    if verdict == "identical":
        text = f"{challenger} is {said} to {baseline}: {so_many} ended with the same bits."
    elif verdict == "equivalent":
        margin = shown_difference(question["margin"], metric, sign=False)
        text = (
            f"{challenger} is {said} to {baseline}: {evidence}, within the margin of {margin}, "
            f"{so_many}."
        )
    elif verdict == "undecided":
        text = (
            f"{challenger} against {baseline} is {said} after {so_many}: {evidence}. "
            f"{_forecast(found, number)}"
        )
    else:
        text = f"{challenger} is {said} than {baseline}: {evidence}, {so_many}."
    for who, failed in zip((baseline, challenger), finding["failed"], strict=True):
        if failed:
            text += f" {_failures(failed, who, metric)}"
    return text


def shown(value: float, metric: Metric) -> str:
    """A value of the figure: in percent if the figure is a share, else with 4 digits."""
    return f"{_number(value, metric)}{'%' if metric.is_share else ''}"


def shown_difference(value: float, metric: Metric, sign: bool = True, unit: bool = True) -> str:
    """A difference of the figure: in percentage points if the figure is a share.

    Args:
        value: the difference, in units of the figure.
        metric: the figure.
        sign: whether a positive difference has a ``+``.
        unit: whether "points" follows.
    """
    number = _number(value, metric)
    plus = "+" if sign and float(number) > 0 else ""
    return f"{plus}{number}{' points' if unit and metric.is_share else ''}"


def shown_interval(finding: Mapping[str, Any], metric: Metric, unit: bool = True) -> str:
    """The interval of a finding in verdict.json; "none yet" as long as there is none."""
    if finding["interval"] is None:
        return "none yet"
    low, high = finding["interval"]
    ends = (shown_difference(low, metric, unit=False), shown_difference(high, metric, unit=unit))
    return " to ".join(ends)


def level(question: Mapping[str, Any]) -> str:
    """The probability of each challenger's interval: 95%, or 97.5% with two challengers."""
    return f"{100 * (1 - 1 / rule_of(question).threshold):.4g}%"


def _number(value: float, metric: Metric) -> str:
    """A number without its unit: four digits; a share in percent, with three decimals or more."""
    if metric.is_share:
        percent = round(100 * value, 9) + 0.0  # without the rounding error of a mean, and no -0
        zeros = -math.floor(math.log10(abs(percent))) if percent else 0
        return f"{percent:.{max(3, min(zeros + 1, 6))}f}"
    return _four_digits(value)


def _four_digits(value: float) -> str:
    if value == 0:
        return "0"
    if 1e4 <= abs(value) < 1e9:
        return f"{value:.0f}"
    small_or_large = abs(value) < 1e-4 or abs(value) >= 1e4
    return f"{value:.4g}" if small_or_large else f"{value:#.4g}".rstrip(".")


def _compared(difference: float, metric: Metric) -> str:
    """A difference in words."""
    size = shown_difference(abs(difference), metric, sign=False)
    if float(_number(difference, metric)) == 0:
        return "equal on average"
    return f"{size} {'higher' if difference > 0 else 'lower'}"


def _forecast(found: Mapping[str, Any], number: int) -> str:
    """How many pairs an undecided challenger may still need, and what they cost."""
    finding = found["findings"][number]
    most = max(found["question"]["most_pairs"], 4 * finding["pairs"])
    pairs, low, high = finding["pairs"], finding["still"]["low"], finding["still"]["high"]
    if low is None:
        return f"With 80% probability a verdict takes more than {counted(most, 'pair')} in all."
    if low <= pairs:  # the figures would decide, but for trainings that failed
        return "No forecast: the trainings that failed bar the verdict of the others."
    arms = found["cost"]["arms"]
    seconds = [arms[arm]["seconds"][0] for arm in (0, number + 1)]
    each = None if None in seconds else sum(seconds) / found["cost"]["workers"]
    ends = [low] if high in (None, low) else [low, high]
    totals, further = " to ".join(map(str, ends)), " to ".join(str(end - pairs) for end in ends)
    costs = "" if each is None else ", " + " to ".join(duration((n - pairs) * each) for n in ends)
    if high is None:
        totals, further = f"{low} to more than {most}", f"at least {further}"
    return f"With 80% probability a verdict takes {totals} pairs in all: {further} more{costs}."


def _failures(count: int, name: str, metric: Metric) -> str:
    """What trainings that became non-finite count as."""
    trainings = counted(count, "training")
    verb = "counts" if count == 1 else "count"
    if metric.worst is None:
        value = f"the worst value so far, and {name} can't be found better or equivalent"
    else:
        value = f"the worst {metric.name}, {metric.worst:.0%}"
    return f"{trainings} of {name} became non-finite and {verb} with {value}."


def _results(found: Mapping[str, Any]) -> str:
    """The table of the figure."""
    question, metric = found["question"], Metric.parse(found["question"]["metric"])
    heading = [
        *("arm", "pairs", _code(metric.name, table=True), "difference"),
        f"{level(question)} interval",
        *("pairs won", "correlation", "failed"),
    ]
    rows = []
    for number, result in enumerate(found["results"]):
        name, failed = _code(result["name"], table=True), str(result["failed"])
        value = with_sd(result["mean"], result["sd"], metric, "%")
        if number == 0:
            pairs = result["n"] + result["failed"]
            rows.append([f"{name}, baseline", str(pairs), value, "", "", "", "", failed])
            continue
        finding = found["findings"][number - 1]
        pairs, correlation = finding["pairs"], finding["correlation"]
        difference = with_sd(finding["difference"], finding["sd"], metric, " points")
        plus = "+" if (finding["difference"] or 0) > 0 else ""
        tied = f", {finding['tied']} tied" if finding["tied"] else ""
        rows.append(
            [
                *(name, str(pairs), value, f"{plus}{difference}", shown_interval(finding, metric)),
                f"{finding['won']} of {pairs}{tied}",
                "" if correlation is None else f"{round(correlation, 2) + 0.0:.2f}",  # never -0.00
                failed,
            ]
        )
    explained = (
        "Mean ± standard deviation over the seeds. The difference is challenger minus baseline "
        f"with the same seed; {'less' if metric.worse > 0 else 'more'} is better. The correlation "
        "is that of the two arms' values within pairs: the nearer to 1, the more pairing helped."
    )
    if any(result["failed"] for result in found["results"]):
        explained += (
            f" The column {_code(metric.name)} leaves out trainings that became non-finite; "
            "the differences count them."
        )
    return f"{_table(heading, rows)}\n\n{explained}"


def with_sd(mean: float | None, sd: float | None, metric: Metric, unit: str = "") -> str:
    """Mean ± standard deviation of the figure, as far as they are known.

    Args:
        mean, sd: in units of the figure.
        metric: the figure.
        unit: what follows if the figure is a share.
    """
    if mean is None:
        return ""
    spread = "" if sd is None else f" ± {_number(sd, metric)}"
    return f"{_number(mean, metric)}{spread}{unit if metric.is_share else ''}"


def _costs(found: Mapping[str, Any]) -> str:
    """The table of what trainings of each arm cost, with the ratio to the baseline's."""
    cost = found["cost"]
    columns = (
        ("step_milliseconds", "ms per step", 1.0),
        ("seconds", "s to the end", 1.0),
        ("peak_memory", "MiB at the peak", 1.0 / 2**20),
    )
    heading = ["arm"]
    for _, title, _ in columns:
        heading += [title, "ratio"]
    rows = []
    for number, (arm, row) in enumerate(zip(found["question"]["arms"], cost["arms"], strict=True)):
        cells = [_code(arm["name"], table=True)]
        for key, _, scale in columns:
            mean, sd = (None if v is None else v * scale for v in row[key])
            cells.append("" if mean is None else _three_digits(mean, sd))
            ratio, spread, n = row[f"ratio_of_{key}"]
            spread = "" if spread is None else f" ± {spread:.2f}"
            there = number > 0 and ratio is not None
            cells.append(f"{ratio:.2f}{spread} (n = {n})" if there else "")
        rows.append(cells)
    workers = cost["workers"]
    together = "one at a time" if workers == 1 else f"{workers} at a time"
    explained = f"Ratios are those of pairs; this comparison ran all arms, {together}."
    apart = [
        _code(arm["name"])
        for arm, row in zip(found["question"]["arms"][1:], cost["arms"][1:], strict=True)
        if not row["side_by_side"] and row["ratio_of_seconds"][2]
    ]
    if apart:
        explained = (
            f"Not side by side: an earlier comparison ran the baseline's trainings, so the ratios "
            f"of {', '.join(apart)} also show what else the machine was doing."
        )
    return f"{_table(heading, rows)}\n\n{explained}"


def _three_digits(mean: float, sd: float | None) -> str:
    decimals = 2 if mean <= 0 else max(0, 2 - math.floor(math.log10(mean)))
    return f"{mean:.{decimals}f}" + ("" if sd is None else f" ± {sd:.{decimals}f}")


def _asked(found: Mapping[str, Any], exploration: bool) -> str:
    """The question, as a list."""
    question = found["question"]
    metric, rule = Metric.parse(question["metric"]), rule_of(question)
    digest, examples, held_out, holdout_seed = question["evaluated_on"]
    when = "chosen after the trainings" if exploration else "declared before the first training"
    margin = "none; any difference matters"
    if rule.margin is not None:
        margin = f"{shown_difference(rule.margin, metric, sign=False)} in both directions"
    alpha = f"{100 * rule.alpha:.4g}% false verdicts at most, over all looks"
    if rule.challengers > 1:
        alpha += f", divided by {rule.challengers} challengers"
    of = "others for each seed"
    if holdout_seed is not None:
        of = f"the same for all seeds (`--holdout-seed {holdout_seed}`)"
    seeds = [pair["seed"] for pair in found["pairs"]]
    reused = found["reused_baseline_seeds"]
    limit = "" if examples is None else f", the first {examples:,} training examples"
    items = [
        f"Figure: {_code(metric.name)}, {'less' if metric.worse > 0 else 'more'} is better; {when}",
        f"Too small to matter: {margin}",
        f"Alpha: {alpha}",
        *(_arm(arm, number) for number, arm in enumerate(question["arms"])),
        f"Options for all arms: {_code(shlex.join(question['options']))}",
        f"Seeds: {_seeds(seeds)}, one pair each"
        + (
            f"; the baseline's trainings with {_seeds(reused)} are an earlier comparison's"
            * bool(reused)
        ),
        f"Evaluated on: {held_out:,} held-out training examples, {of}; trained on the other "
        f"{question['training_examples']:,}",
        f"Data: SHA-256 `{digest}`{limit}",
        f"Threads of each training: {question['threads']}",
    ]
    return "\n".join(f"- {item}" for item in items)


def _arm(arm: Mapping[str, Any], number: int) -> str:
    what = "Baseline" if number == 0 else "Challenger"
    if arm["commit"] is None:
        code = "no commit"
    elif arm["revision"] is None:
        code = f"working tree on commit `{arm['commit'][:12]}`"
    else:
        code = f"commit `{arm['commit'][:12]}`, given as {_code(arm['revision'])}"
    return f"{what}: {_code(arm['command'])} ({code})"


def _seeds(seeds: Sequence[int]) -> str:
    """Seeds as ranges: 0 to 3, 7."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    texts = [str(low) if low == high else f"{low} to {high}" for low, high in ranges]
    return ", ".join(texts) or "none yet"


def _decided(question: Mapping[str, Any]) -> str:
    """How the rule decides, in a paragraph."""
    metric, rule = Metric.parse(question["metric"]), rule_of(question)
    within = "" if rule.margin is None else ", or lies within the margin"
    return (
        "By an anytime-valid t confidence sequence for the mean difference (Wang and Ramdas, "
        f"[arXiv 2310.03722](https://arxiv.org/abs/2310.03722)): with a probability of "
        f"{level(question)} the intervals after every number of pairs all contain the true mean, "
        "so that the result may be looked at after every pair and the comparison continued later. "
        f"The verdict comes with the first interval that excludes 0{within}, and not before "
        f"{rule.fewest_pairs} pairs. Pairs count in the order of their seeds, and none is dropped. "
        "The standard deviation is taken to be at least "
        f"{shown_difference(rule.least_sd, metric, sign=False)}. "
        "There is no p-value, since none survives looking after every pair."
    )


def _about(question: Mapping[str, Any]) -> str:
    """What the verdict says and what it leaves open, as a list."""
    metric = Metric.parse(question["metric"])
    held_out, trained = question["held_out"], question["training_examples"]
    given = option_names(question["options"])
    data = "these" if {"data", "examples"} & set(given) else "MNIST's"
    shared = (
        "Held-out sets of two seeds share "
        f"{held_out / (held_out + trained):.0%} of their examples on average, training sets "
        f"{trained / (held_out + trained):.0%}."
    )
    fixed = question["evaluated_on"][3] is not None
    if fixed:
        shared = "All seeds are evaluated on the same held-out examples and train on the same ones."
    others = "Other examples would change the difference by an amount that the interval leaves out"
    if not metric.is_share or {"data", "examples"} & set(given):
        size = "; it was not estimated here"
    else:
        size = ": about 0.01 to 0.02 points, whatever the number of pairs"
        size += " (estimated for held-out sets of each seed's own; more with one for all)" * fixed
    return "\n".join(
        [
            f"- It is about what further seeds would show, on {data} {held_out + trained:,} "
            "examples, with this recipe. Other data, or other options, are another question.",
            f"- {shared} {others}{size}.",
            "- The probability of a false verdict holds for normal differences and, in "
            "simulations, for other symmetric ones. Skewed differences are decided wrongly more "
            "often: at an alpha of 5%, looked at after every pair up to 100, in 12% of simulated "
            "comparisons if they are exponential, in 23% if lognormal.",
            "- The test set was not read.",
        ]
    )


def _took(found: Mapping[str, Any]) -> str:
    """Time, hardware and versions, as a list."""
    question, cost = found["question"], found["cost"]
    seconds, workers = cost["training_seconds"], cost["workers"]
    has = set(question["processor"])
    highest = next((e for e in _EXTENSIONS if e in has), None)
    name = printable(question["processor_name"]) or "unknown"
    extension = "" if highest is None else f", up to {highest.upper().replace('_', '-')}"
    packages = [f"{k} {v}" for k, v in question["packages"].items() if v is not None]
    variables = [_code(f"{k}={v}") for k, v in question["variables"].items()]
    threads = counted(question["threads"], "thread")
    kinds: Mapping[str, int] = found.get("processors", {})
    processor = f"Processor: {name}{extension}, {cost['cores']} cores"
    if len(kinds) == 1 and question["processor_name"] not in kinds:
        processor = f"Processor: {printable(next(iter(kinds)))}, of a cluster"
    items = [
        f"Trainings: {duration(seconds)} of this comparison's own, added up; {workers} at a time, "
        f"{threads} each",
        mixture(kinds) or processor,
        f"Versions: {', '.join(['Python ' + question['python'], *packages])}",
    ]
    if variables:
        items.append(f"Environment: {', '.join(variables)}")
    return "\n".join(f"- {item}" for item in items)


def mixture(kinds: Mapping[str, int]) -> str:
    """A sentence about trainings on several kinds of processors; empty if there is one kind."""
    if len(kinds) < 2:
        return ""
    each = ", ".join(f"{printable(kind)} ({count})" for kind, count in kinds.items())
    return (
        f"The trainings ran on {len(kinds)} kinds of processors, so that equal ones may differ in "
        f"their last bits: {each}."
    )


def _code_difference(found: Mapping[str, Any], number: int) -> str:
    """The difference between the baseline's code and a challenger's."""
    baseline, challenger = (found["question"]["arms"][n]["name"] for n in (0, number + 1))
    text = found["differences_of_code"][number]
    title = f"From {_code(baseline)} to {_code(challenger)}"
    if not text:
        return f"{title}: the same code."
    block, lines = _fenced(text, "diff"), text.count("\n")
    if lines > _MOST_LINES_SHOWN:
        block = f"<details><summary>{lines} lines</summary>\n\n{block}\n\n</details>"
    return f"{title}:\n\n{block}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, marks, *rows))


def _code(text: str, table: bool = False) -> str:
    """Text from elsewhere as inline code, which nothing in it can end.

    Args:
        text: any text.
        table: whether it stands in a table, where a ``|`` would begin the next cell.
    """
    safe = printable(text) or " "
    mark = "`" * (_longest_run(safe) + 1)
    space = " " if "`" in (safe[0], safe[-1]) else ""
    code = f"{mark}{space}{safe}{space}{mark}"
    return code.replace("|", r"\|") if table else code


def _fenced(text: str, language: str) -> str:
    """Text from elsewhere as a block of code, which nothing in it can end."""
    lines = [
        "\t".join(printable(part) for part in line.split("\t"))
        for line in text.removesuffix("\n").split("\n")
    ]
    fence = "`" * max(3, _longest_run(text) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def _longest_run(text: str) -> int:
    """The length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
