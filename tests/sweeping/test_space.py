"""What --over says: options typed by the experiment's Config, and impossible ones refused."""

from __future__ import annotations

from research.errors import InputError
from research.network.mnist_cnn import Config
from research.sweeping.space import Setting, grid, parse_space, words_of

import pytest


def test_a_setting_becomes_the_words_of_a_command_line() -> None:
    texts = ["learning-rate=0.1..10:log", "decay=linear,cosine", "dropout=0 0.25,0.25 0.5"]
    space = parse_space([*texts, "eager=True,False"], Config, [], "mnist_cnn")
    setting: Setting = {
        "learning_rate": 0.5,
        "decay": "cosine",
        "dropout": "0 0.25",
        "eager": "False",
    }
    assert words_of(space, setting) == [
        *("--learning-rate", "0.5", "--decay", "cosine"),
        *("--dropout", "0", "0.25", "--no-eager"),
    ]


def test_a_grid_has_every_combination_once_in_order() -> None:
    texts = ["learning_rate=0.1..10:log:3", "dense_width=8..10", "clip_norm=None,1"]
    settings = grid(parse_space(texts, Config, [], "mnist_cnn"))
    assert len(settings) == len({tuple(each.values()) for each in settings}) == 18
    assert [each["learning_rate"] for each in settings[::6]] == ["0.1", "1", "10"]
    assert [each["dense_width"] for each in settings[:6:2]] == [8, 9, 10]
    with pytest.raises(InputError, match=r"give learning_rate=1..2:5, or list them"):
        grid(parse_space(["learning_rate=1..2"], Config, [], "mnist_cnn"))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("", "no option to try: give --over"),
        ("learning_rate", "give the option and its values"),
        ("learning-rat=1..2", "no such option; did you mean learning_rate?"),
        ("decay=1..2", "decay is no number; list its values"),
        ("decay=linear", "give two values or more, each once"),
        ("decay=linear,linear", "give two values or more, each once"),
        ("decay=linear,sudden", "invalid choice 'sudden'"),
        ("learning_rate=10..0.1", "the lower one first"),
        ("learning_rate=a..b", "give two numbers"),
        ("learning_rate=0..1", "--learning-rate 0: give a number above 0"),
        ("learning_rate=0..1:log", "a logarithmic range begins above 0"),
        ("learning_rate=1..2:1", "1 values; give 2 to 1000"),
        ("batch_size=1.5..3", "give two whole numbers"),
        ("seed=1,2", "seed can't be tried; seeds count upwards"),
        ("holdout=1,2", "holdout decides how trials are judged"),
        ("decay=linear,cosine decay=linear,constant", "decay is there twice"),
        ("epochs=1,2", "epochs stands behind -- too"),
        ("warmup_epochs=0..5", "--warmup-epochs 5: give at least 0 and at most the 2"),
    ],
)
def test_what_can_not_be_tried_is_refused(texts: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_space(texts.split(), Config, ["--epochs", "2"], "mnist_cnn")
    assert words in str(caught.value).replace("5.0", "5").replace("0.0", "0")


def test_options_that_clash_with_each_other_are_refused() -> None:
    texts = ["warmup_epochs=0..3", "epochs=1..4"]
    with pytest.raises(InputError, match=r"--warmup-epochs 3.*at most the 1 of --epochs"):
        parse_space(texts, Config, ["--batch-size", "8"], "mnist_cnn")
