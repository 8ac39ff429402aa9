"""verdict.md says first what was found; no name and no code breaks its tables and blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from research.comparing.page import (
    page,
    sentence,
    shown,
    shown_difference,
    shown_interval,
)
from research.comparing.question import Metric

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from verdicts import BASELINE, WORSE, made_up, plus

NOISE = [0.0004, -0.0005, 0.0002, -0.0003, 0.0005, -0.0002, 0.0003, -0.0004]
PAIRED = {"mnist_cnn": BASELINE, "harder_half": plus(BASELINE, WORSE)}
BETTER = {"mnist_cnn": BASELINE, "b": plus(BASELINE, [-value for value in WORSE])}
UNDECIDED = {"mnist_cnn": BASELINE, "b": plus(BASELINE, NOISE)}
ODD = "a|b `c` ``` *d* <e> \\| \x1b[31m\nf\u202e"
ODD_READ = "a|b `c` ``` *d* <e> \\| \\x1b[31m\\nf\\u202e"


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def written(token: Token) -> str:
    """The text of a piece of Markdown as a reader sees it."""
    return "".join(child.content for child in token.children or [])


def sections(text: str) -> dict[str, str]:
    """What a reader sees below each heading."""
    found, heading = {"": ""}, ""
    for before, token in pairwise(tokens(text)):
        if token.type == "inline" and before.type == "heading_open":
            heading = written(token)
            found[heading] = ""
        elif token.type in ("inline", "fence"):
            content = token.content if token.type == "fence" else written(token)
            found[heading] += f"{content.rstrip()}\n"
    return found


def tables(text: str) -> list[list[list[str]]]:
    """The tables as rows of cells."""
    found: list[list[list[str]]] = []
    for before, token in pairwise(tokens(text)):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif before.type in ("th_open", "td_open"):
            found[-1][-1].append(written(token))
    return found


def blocks(text: str) -> dict[str, str]:
    """The blocks of code by language; of several the last."""
    return {token.info: token.content for token in tokens(text) if token.type == "fence"}


def parts(text: str) -> list[str]:
    """The page's paragraphs, as they are written."""
    return text.split("\n\n")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            made_up(PAIRED),
            "harder_half is worse than mnist_cnn: error 0.098 points higher (95% interval +0.066 "
            "to +0.131 points), 6 pairs.",
        ),
        (
            made_up(BETTER),
            "b is better than mnist_cnn: error 0.098 points lower (95% interval -0.131 to -0.066 "
            "points), 6 pairs.",
        ),
        (
            made_up(PAIRED, "highest accuracy"),
            "harder_half is better than mnist_cnn: accuracy 0.098 points higher (95% interval "
            "+0.066 to +0.131 points), 6 pairs.",
        ),
        (
            made_up(PAIRED, "lowest loss"),
            "harder_half is worse than mnist_cnn: loss 0.0009833 higher (95% interval +0.0006558 "
            "to +0.001311), 6 pairs.",
        ),
        (
            made_up(UNDECIDED, margin=0.002),
            "b is equivalent to mnist_cnn: error 0.0017 points higher (95% interval -0.089 to "
            "+0.092 points), within the margin of 0.200 points, 6 pairs.",
        ),
        (
            made_up({"a": BASELINE[:2], "b": BASELINE[:2]}, same_bits=True),
            "b is identical to a: 2 pairs ended with the same bits.",
        ),
        (made_up({"a": [], "b": []}), "b against a is undecided: there is no pair yet."),
    ],
    ids=lambda value: None if isinstance(value, dict) else value.split(":")[0],
)
def test_a_sentence_says_what_was_found(found: dict[str, Any], expected: str) -> None:
    assert sentence(found, 0) == expected
    verdict = found["findings"][0]["verdict"]
    in_markdown = sentence(found, 0, markdown=True)
    assert in_markdown in parts(page(found, "again"))
    assert in_markdown.replace("`", "").replace(f"**{verdict}**", verdict) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (6, 6, "6 pairs in all: 2 more, 36 s."),
        (6, 14, "6 to 14 pairs in all: 2 to 10 more, 36 s to 3 min."),
        (24, None, "24 to more than 40 pairs in all: at least 20 more, 6 min."),
        (None, None, "more than 40 pairs in all."),
    ],
)
def test_an_undecided_challenger_has_a_forecast(
    low: int | None, high: int | None, expected: str
) -> None:
    found = made_up({"a": BASELINE[:4], "b": plus(BASELINE[:4], WORSE)})
    found["findings"][0]["still"] = {"low": low, "high": high}
    found["cost"]["arms"][1]["seconds"] = [18.0, None]
    so_far = "b against a is undecided after 4 pairs: error 0.095 points higher (no interval before"
    assert sentence(found, 0) == (
        f"{so_far} 6 pairs). With 80% probability a verdict takes {expected}"
    )
    found["cost"]["arms"][0]["seconds"] = [None, None]
    untimed = expected if low is None else f"{expected.rpartition(',')[0]}."
    assert sentence(found, 0).endswith(f" a verdict takes {untimed}")


def test_an_undecided_challenger_has_an_interval() -> None:
    assert sentence(made_up(UNDECIDED), 0).startswith(
        "b against mnist_cnn is undecided after 8 pairs: error equal on average (95% interval "
        "-0.059 to +0.059 points). With 80% probability a verdict takes "
    )


@pytest.mark.parametrize(
    ("metric", "failed", "expected"),
    [
        (
            "lowest error",
            [("harder_half", 2)],
            "1 training of harder_half became non-finite and counts with the worst error, 100%.",
        ),
        (
            "highest accuracy",
            [("mnist_cnn", 0), ("mnist_cnn", 3)],
            "2 trainings of mnist_cnn became non-finite and count with the worst accuracy, 0%.",
        ),
        (
            "lowest loss",
            [("harder_half", 2)],
            "1 training of harder_half became non-finite and counts with the worst value so far, "
            "and harder_half can't be found better or equivalent.",
        ),
    ],
)
def test_failures_are_told(metric: str, failed: list[tuple[str, int]], expected: str) -> None:
    found = made_up(PAIRED, metric, failed)
    assert sentence(found, 0).endswith(expected)
    table, _ = tables(page(found, "again"))
    column = table[0].index("failed")
    counts = [sum(name == arm for name, _ in failed) for arm in PAIRED]
    assert [row[column] for row in table[1:]] == list(map(str, counts))
    assert "leaves out trainings that became non-finite" in page(found, "again")


def test_a_verdict_that_a_failure_bars_has_no_forecast() -> None:
    found = made_up(BETTER, "lowest loss", [("b", 1)])
    assert found["findings"][0]["verdict"] == "undecided"
    found["findings"][0]["still"] = {"low": 6, "high": 6}
    assert "No forecast: the trainings that failed bar the verdict" in sentence(found, 0)


@pytest.mark.parametrize(
    ("metric", "value", "as_value", "as_difference"),
    [
        ("lowest error", 0.00793, "0.793%", "+0.793 points"),
        ("lowest error", -0.0009, "-0.090%", "-0.090 points"),
        ("lowest error", 0.000012, "0.0012%", "+0.0012 points"),
        ("lowest error", 0.0, "0.000%", "0.000 points"),
        ("lowest error", 1e-17, "0.000%", "0.000 points"),
        ("lowest error", -1e-17, "0.000%", "0.000 points"),
        ("highest accuracy", 0.9918, "99.180%", "+99.180 points"),
        ("lowest loss", 0.12567, "0.1257", "+0.1257"),
        ("lowest loss", 2.5, "2.500", "+2.500"),
        ("lowest loss", 1234.5678, "1235", "+1235"),
        ("lowest loss", 123456.7, "123457", "+123457"),
        ("lowest loss", -0.0000123456, "-1.235e-05", "-1.235e-05"),
        ("lowest loss", 0.0, "0", "0"),
    ],
)
def test_shares_are_shown_in_percent_and_other_figures_with_four_digits(
    metric: str, value: float, as_value: str, as_difference: str
) -> None:
    figure = Metric.parse(metric)
    assert shown(value, figure) == as_value
    assert shown_difference(value, figure) == as_difference
    assert shown_difference(value, figure, sign=False) == as_difference.removeprefix("+")


def test_an_interval_has_its_unit_once_and_may_be_missing() -> None:
    error, loss = Metric.parse("error"), Metric.parse("loss")
    assert shown_interval({"interval": [-0.0002, 0.001]}, error) == "-0.020 to +0.100 points"
    assert shown_interval({"interval": [-0.0002, 0.001]}, loss) == "-0.0002000 to +0.001000"
    assert shown_interval({"interval": None}, error) == "none yet"


def test_the_page_shows_figures_and_costs_in_tables() -> None:
    found = tables(page(made_up(PAIRED), "again"))
    assert [["|".join(row) for row in table] for table in found] == [
        [
            "arm|pairs|error|difference|95% interval|pairs won|correlation|failed",
            "mnist_cnn, baseline|6|0.803 ± 0.038%|||||0",
            "harder_half|6|0.902 ± 0.038%|+0.098 ± 0.015 points|+0.066 to +0.131 points|0 of 6"
            "|0.92|0",
        ],
        [
            "arm|ms per step|ratio|s to the end|ratio|MiB at the peak|ratio",
            "mnist_cnn|21.3 ± 0.4||18.0 ± 0.5||1024 ± 1|",
            "harder_half|21.3 ± 0.4|1.10 ± 0.02 (n = 8)|18.0 ± 0.5|1.02 ± 0.03 (n = 8)|1024 ± 1"
            "|1.00 ± 0.00 (n = 8)",
        ],
    ]


def test_the_page_shows_pairs_that_are_equal() -> None:
    found = made_up({"a": BASELINE, "b": plus(BASELINE, [0, 0, *NOISE])})
    assert tables(page(found, "again"))[0][2][5] == "3 of 8, 2 tied"


def test_before_there_are_enough_pairs_the_page_says_what_is_missing() -> None:
    table, _ = tables(page(made_up({"a": BASELINE[:1], "b": BASELINE[1:2]}), "again"))
    assert table[1:] == [
        ["a, baseline", "1", "0.810%", "", "", "", "", "0"],
        ["b", "1", "0.790%", "-0.020 points", "none yet", "1 of 1", "", "0"],
    ]
    found = made_up({"a": [], "b": []})
    nothing: dict[str, Any] = dict.fromkeys(
        ("seconds", "step_milliseconds", "peak_memory"), [None] * 2
    )
    nothing |= {f"ratio_of_{name}": [None, None, 0] for name in nothing}
    found["cost"]["arms"] = [nothing | {"side_by_side": False}] * 2
    figures, costs = tables(page(found, "again"))
    assert figures[2] == ["b", "0", "", "", "none yet", "0 of 0", "", "0"]
    assert costs[1:] == [[name, *[""] * 6] for name in ("a", "b")]
    assert "Not side by side" not in page(found, "again")


def test_every_challenger_has_a_sentence_a_row_and_its_share_of_alpha() -> None:
    arms = {"a": BASELINE, "b": plus(BASELINE, WORSE), "c": plus(BASELINE, NOISE)}
    text = page(made_up(arms), "again")
    assert text.startswith("# 2 challengers against `a`\n\n`b` is **worse** than `a`: ")
    assert parts(text)[2].startswith("`c` against `a` is **undecided** after 8 pairs: ")
    figures, costs = tables(text)
    assert figures[0][4] == "97.5% interval"
    assert [row[:2] for row in figures[1:]] == [["a, baseline", "8"], ["b", "7"], ["c", "8"]]
    assert [row[0] for row in costs[1:]] == ["a", "b", "c"]
    assert "Alpha: 5% false verdicts at most, over all looks, divided by 2 challengers" in text
    assert "From `a` to `b`:" in text
    assert "From `a` to `c`:" in text


def test_the_page_says_what_was_asked() -> None:
    found = made_up(PAIRED, margin=0.0002, variables={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    found["reused_baseline_seeds"] = [0, 1, 2, 4]
    found["question"]["arms"][1] |= {"revision": "HEAD~1"}
    text = sections(page(found, "again"))
    commands = [arm["command"] for arm in found["question"]["arms"]]
    assert text["What was asked"].splitlines() == [
        "Figure: error, less is better; declared before the first training",
        "Too small to matter: 0.020 points in both directions",
        "Alpha: 5% false verdicts at most, over all looks",
        f"Baseline: {commands[0]} (working tree on commit 0fb154c00000)",
        f"Challenger: {commands[1]} (commit 0fb154c00000, given as HEAD~1)",
        "Options for all arms: --epochs 1.5 --holdout 10000",
        "Seeds: 0 to 5, one pair each; the baseline's trainings with 0 to 2, 4 are an earlier "
        "comparison's",
        "Evaluated on: 10,000 held-out training examples, others for each seed; trained on the "
        "other 50,000",
        f"Data: SHA-256 {'5eed' * 16}",
        "Threads of each training: 1",
    ]
    assert text["What it took"].splitlines() == [
        "Trainings: 5 min of this comparison's own, added up; 2 at a time, 1 thread each",
        "Processor: A Processor, up to AVX512-BF16, 2 cores",
        "Versions: Python 3.11.7, tensorflow 2.21.0",
        "Environment: ONEDNN_MAX_CPU_ISA=AVX2",
    ]


def test_the_page_says_which_processors_trained() -> None:
    arms = {"base": BASELINE, "other": plus(BASELINE, WORSE)}
    here, one, two = {"A Processor": 16}, {"Another": 16}, {"A Processor": 9, "Another": 7}
    text = page(made_up(arms) | {"processors": here}, "")
    assert "- Processor: A Processor, up to AVX512-BF16, 2 cores\n" in text
    text = page(made_up(arms) | {"processors": one}, "")
    assert "- Processor: Another, of a cluster\n" in text
    text = page(made_up(arms) | {"processors": two}, "")
    assert "- The trainings ran on 2 kinds of processors" in text
    assert "A Processor (9), Another (7).\n" in text


def test_the_page_says_how_it_was_decided() -> None:
    plain, margin = (sections(page(made_up(PAIRED, margin=m), "again")) for m in (None, 0.0002))
    said = plain["How it was decided"]
    for expected in (
        "with a probability of 95% the intervals after every number of pairs all contain the true "
        "mean, so that the result may be looked at after every pair",
        "arXiv 2310.03722",
        "The verdict comes with the first interval that excludes 0, and not before 6 pairs.",
        "taken to be at least 0.010 points.",
        "There is no p-value",
    ):
        assert expected in said
    assert "excludes 0, or lies within the margin, and not" in margin["How it was decided"]


@pytest.mark.parametrize(
    ("question", "metric", "expected"),
    [
        (
            {},
            "lowest error",
            "on MNIST's 60,000 examples, with this recipe. Other data, or other options, are "
            "another question.\nHeld-out sets of two seeds share 17% of their examples on "
            "average, training sets 83%. Other examples would change the difference by an amount "
            "that the interval leaves out: about 0.01 to 0.02 points, whatever the number of "
            "pairs.",
        ),
        (
            {"evaluated_on": ["5eed", None, 10_000, 3]},
            "lowest error",
            "All seeds are evaluated on the same held-out examples and train on the same ones. "
            "Other examples would change the difference by an amount that the interval leaves "
            "out: about 0.01 to 0.02 points, whatever the number of pairs (estimated for held-out "
            "sets of each seed's own; more with one for all).",
        ),
        ({}, "lowest loss", "that the interval leaves out; it was not estimated here."),
        (
            {"options": ["--data=x.npz"], "held_out": 1000, "training_examples": 1000},
            "lowest error",
            "on these 2,000 examples, with this recipe. Other data, or other options, are another "
            "question.\nHeld-out sets of two seeds share 50% of their examples on average, "
            "training sets 50%. Other examples would change the difference by an amount that the "
            "interval leaves out; it was not estimated here.",
        ),
    ],
    ids=["each its own", "--holdout-seed", "loss", "--data"],
)
def test_the_page_says_what_the_verdict_is_about(
    question: dict[str, Any], metric: str, expected: str
) -> None:
    about = sections(page(made_up(PAIRED, metric, **question), "again"))[
        "What the verdict is about"
    ]
    assert expected in about
    assert "in 12% of simulated comparisons if they are exponential, in 23% if lognormal" in about
    assert "The test set was not read." in about


def test_an_exploration_says_so_in_the_first_line() -> None:
    text = page(made_up(PAIRED, "lowest loss"), "again", exploration=True)
    first = text.splitlines()[0]
    assert first.startswith("# Exploration, no verdict: the figure was chosen after the trainings.")
    assert "Figure: `loss`, less is better; chosen after the trainings" in text
    assert "declared before" not in text


def test_costs_that_were_not_measured_side_by_side_are_named() -> None:
    found = made_up(PAIRED)
    assert "this comparison ran all arms, 2 at a time" in page(found, "again")
    found["cost"]["arms"][1]["side_by_side"] = False
    text = page(found, "again")
    assert "Not side by side: an earlier comparison ran the baseline's trainings" in text
    assert "this comparison ran all arms" not in text


def test_names_options_and_code_from_elsewhere_break_nothing() -> None:
    odd = ODD.replace("\n", "")  # split() would take it for space
    found = made_up({ODD: BASELINE, "b": plus(BASELINE, WORSE)}, options=["--data", odd])
    found["question"]["arms"][0]["command"] = ODD
    diff = "+```\n+````diff\n-\tx = '`'\x1b[31m\n</details>\n| a | b |\n"
    found["differences_of_code"] = [diff]
    text = page(found, f"compare {ODD}")
    for table in tables(text):
        assert {len(row) for row in table} == {len(table[0])}
        assert table[1][0].removesuffix(", baseline") == ODD_READ
        assert table[2][0] == "b"
    assert blocks(text) == {
        "diff": diff.replace("\x1b", "\\x1b"),
        "sh": f"compare {ODD}\n".replace("\x1b", "\\x1b").replace("\u202e", "\\u202e"),
    }
    read = sections(text)
    assert list(read)[1] == f"b against {ODD_READ}"
    assert list(read)[2:] == [
        *("What was asked", "How it was decided", "What the verdict is about", "What it took"),
        *("The code", "To repeat it"),
    ]
    assert f"b is worse than {ODD_READ}: " in read[f"b against {ODD_READ}"]
    assert f"Baseline: {ODD_READ} (" in read["What was asked"]
    assert sentence(found, 0).isprintable()


def test_a_figure_with_an_odd_name_breaks_nothing() -> None:
    found = made_up(PAIRED, "lowest a|b_`c")
    table, _ = tables(page(found, "again"))
    assert table[0][2] == "a|b_`c"
    assert {len(row) for row in table} == {8}
    assert "than `mnist_cnn`: ``a|b_`c`` 0.0009833 higher" in page(found, "again")


@pytest.mark.parametrize("lines", [0, 60, 61])
def test_a_long_difference_of_code_is_folded_and_equal_code_is_named(lines: int) -> None:
    found = made_up(PAIRED)
    found["differences_of_code"] = ["+x\n" * lines]
    text = page(found, "again")
    assert blocks(text).get("diff", "") == "+x\n" * lines
    assert ("<details><summary>61 lines</summary>" in text) == (lines == 61)
    assert ("From `mnist_cnn` to `harder_half`: the same code." in text) == (lines == 0)


def test_the_page_shows_the_picture_and_ends_with_the_command_that_repeats_it() -> None:
    text = page(made_up(PAIRED), "python -m research compare a b")
    images = [
        child.attrs["src"]
        for token in tokens(text)
        for child in token.children or []
        if child.type == "image"
    ]
    assert images == ["differences.png"]
    assert text.endswith("## To repeat it\n\n```sh\npython -m research compare a b\n```\n")
    assert all(line.isprintable() for line in text.splitlines())
