"""What can be compared, and what is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

from research.comparing.question import (
    Arm,
    Metric,
    folder_name,
    names_of,
    parse_arms,
    parse_margin,
    with_held_out,
)
from research.errors import InputError

import pytest
from conftest import EXPERIMENTS, RunHere, contents

A, B = str(EXPERIMENTS / "mnist_cnn.py"), str(EXPERIMENTS / "mixup.py")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no arms", "two experiments"]),
        ([A], ["two experiments"]),
        ([A, "nothere.py"], ["nothere.py: no such file"]),
        ([A, ""], ["empty"]),
        ([A, f"{A} 'x"], ["close the quotes"]),
        ([A, f"{A} --seed 3"], ["--seed", "--first-seed"]),
        ([A, f"{A} --run-dir x"], ["--run-dir", "each training gets a directory"]),
        ([A, f"{A} --test"], ["--test", "the test set is not read"]),
        ([A, f"{A} --data=x.npz"], ["--data", "behind --"]),
        ([A, f"{A} --holdout-seed 3"], ["--holdout-seed", "behind --"]),
        ([A, f"{A} --patience 3"], ["--patience", "select", "behind --"]),
        ([A, f"{A} --epochs 1", "--", "--epochs", "2"], ["--epochs", "in one place"]),
        ([A, B, "--", "--seed", "3"], ["-- --seed", "--first-seed"]),
        ([A, B, "--", "--holdout", "0"], ["--holdout 0", "hold out"]),
        ([A, B, "--", "--holdout", "x"], ["--holdout x", "whole number"]),
        ([A, B, "--", "--examples", "10"], ["--holdout 10000", "10 training examples"]),
        ([A, B, "--", "--data", "nothere"], ["nothere", "no such file"]),
        ([A, B, "--epochs", "1"], ["--epochs", "behind --"]),
        ([A, B, "--metric", "smallest loss"], ["smallest loss", "lowest loss"]),
        ([A, B, "--metric", "f1"], ["f1", "which value is best"]),
        ([A, B, "--metric", "highest error"], ["highest error", "lowest error"]),
        ([A, B, "--margin", "-1"], ["--margin -1", "0.05%"]),
        ([A, B, "--margin", "5"], ["--margin 5", "between 0 and 1"]),
        ([A, B, "--margin", "1%", "--metric", "loss"], ["--margin 1%", "loss is no share"]),
        ([A, B, "--alpha", "0"], ["--alpha 0"]),
        ([A, B, "--workers", "0"], ["--workers 0"]),
        ([A, B, "--most-pairs", "0"], ["--most-pairs 0"]),
        ([A, B, "--directory", ".", "--", "--holdout", "9"], ["--directory .", "comparison.json"]),
        ([A, B, "--again", "x"], ["--again", "without arms"]),
        (["--again", "nothere"], ["--again nothere"]),
        ([A, "nosuchrevision:x.py", "--", "--holdout", "9"], ["no commit nosuchrevision"]),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], words: list[str], run_here: RunHere, data_file: Path
) -> None:
    if "--" not in arguments and "--again" not in arguments:
        arguments = [*arguments, "--", "--data", str(data_file)]
    elif "--data" not in arguments and "--" in arguments:
        arguments = [*arguments, "--data", str(data_file)]
    result = run_here("research", "compare", *arguments)
    assert (result.status, result.stderr.count("\n")) == (2, 1), result.stderr
    for word in words:
        assert word in result.stderr


def test_an_arm_is_a_file_its_options_and_a_revision(tmp_path: Path) -> None:
    spaced = tmp_path / "my file: 2.py"
    spaced.touch()
    assert Arm.parse(str(spaced)) == Arm(str(spaced), None, spaced, ())
    text = f"{A} --dropout 0 0.25 --decay=linear"
    assert Arm.parse(text).options == ("--dropout", "0", "0.25", "--decay=linear")
    arm = Arm.parse("HEAD~2:experiments/mnist_cnn.py --epochs 3")
    assert (arm.revision, arm.file) == ("HEAD~2", Path("experiments/mnist_cnn.py"))


def test_arms_have_names_that_tell_them_apart() -> None:
    texts = [A, f"{A} --epochs 1", "HEAD:experiments/mnist_cnn.py", B, A]
    names = names_of(parse_arms(texts, []))
    assert names == [
        "mnist_cnn (1)",
        "mnist_cnn --epochs 1",
        "HEAD:mnist_cnn",
        "mixup",
        "mnist_cnn (2)",
    ]
    folders = [folder_name(n, name) for n, name in enumerate(names)]
    assert folders[1:3] == ["1-mnist_cnn-epochs-1", "2-HEAD-mnist_cnn"]


def test_examples_are_held_out_unless_the_user_says_how_many() -> None:
    assert with_held_out(["--epochs", "1"]) == ("--epochs", "1", "--holdout", "10000")
    assert with_held_out(["--holdout=7"]) == ("--holdout=7",)


def test_a_figure_has_a_direction_and_a_margin_has_its_unit() -> None:
    error = Metric.parse("error")
    assert str(error) == "lowest error"
    assert error.of({"accuracy": 0.75}) == 0.25
    assert Metric.parse("highest f1").of({"f1": float("nan"), "accuracy": 1.0}) is None
    assert parse_margin("0.05%", error) == pytest.approx(0.0005)
    assert parse_margin("0.01", Metric.parse("loss")) == 0.01
    with pytest.raises(InputError):
        parse_margin("inf", error)


def test_refusing_leaves_no_file(tmp_path: Path, run_here: RunHere, data_file: Path) -> None:
    before = contents(tmp_path)
    arguments = [A, B, "--directory", "new", "--", "--data", str(data_file), "--holdout", "400"]
    assert run_here("research", "compare", *arguments).status == 2
    assert contents(tmp_path) == before
