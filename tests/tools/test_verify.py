"""The reports of ``verify`` on broken steps and on sound ones."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from research.config import Config, parse
from research.data.dataset import Dataset
from research.screen import Screen
from research.tools import verify
from research.tools.check import Check
from research.tools.verify import run, shorter, smaller, with_options
from research.tools.verify_step import step_is_sound
from research.verbs import Verify

import pytest
import tensorflow as tf
from conftest import EXPERIMENTS, RunHere, run_python

TAPE = "    with tf.GradientTape() as tape:\n"
UPDATE = "    measured = state.update(gradients)\n"
STEP = "def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:\n"


BROKEN: dict[str, tuple[str, str, dict[str, str]]] = {
    "TensorFlow's own random numbers": (
        TAPE,
        "    images = images * tf.random.uniform([])\n" + TAPE,
        {"gives the same bits again": "state.random_seed does not decide"},
    ),
    "Python's random numbers": (
        TAPE,
        "    images = images * __import__('random').random()\n" + TAPE,
        {"compiled equals eager": "Python's or NumPy's random numbers"},
    ),
    "a Python value, at step 5": (
        STEP,
        f"CALLS = iter(range(100))\n\n\n{STEP}    images = images / (1 + (next(CALLS) >= 4))\n",
        {"compiled equals eager": "differs at step 5"},
    ),
    "a Python value, at step 16": (
        STEP,
        f"CALLS = iter(range(100))\n\n\n{STEP}    images = images / (1 + (next(CALLS) >= 15))\n",
        {"compiled equals eager": "differs at step 16"},
    ),
    "a Python value, long after verify has ended": (
        STEP,
        f"CALLS = [0]\n\n\n{STEP}    CALLS[0] += 1\n    images = images / (1 + (CALLS[0] > 999))\n",
        {"compiled equals eager": "each call changes the Python value CALLS"},
    ),
    "state elsewhere": (
        STEP,
        f"SEEN = tf.Variable(0.0)\n\n\n{STEP}    images = images / (1 + SEEN.assign_add(0.1))\n",
        {"resumed equals uninterrupted": "kept outside the state"},
    ),
    "a variable in the step": (
        TAPE,
        "    images = images * tf.Variable(1.0)\n" + TAPE,
        {"it runs": "it makes a variable; make it in build"},
    ),
    "nothing trained": (UPDATE, "    measured = {}\n", {"it runs": "no weight has changed"}),
    "one weight left out, the others the wrong way": (
        UPDATE,
        "    gradients[2] *= 0\n    measured = state.update([-g for g in gradients])\n",
        {"every weight changes": "conv2/kernel", "loss falls on a fixed batch": "from 2."},
    ),
}


# The others fail the same checks, or checks that come last.
FAST = (
    *("TensorFlow's own random numbers", "a Python value, at step 5"),
    *("a variable in the step", "nothing trained"),
)


@pytest.mark.parametrize(
    "kind",
    [*FAST, *(pytest.param(k, marks=pytest.mark.slow) for k in BROKEN if k not in FAST)],
)
def test_the_check_that_fails_names_the_likely_cause(
    kind: str, dataset: Dataset, tmp_path: Path
) -> None:
    place, change, causes = BROKEN[kind]
    tf.random.set_seed(None)  # another test may have set one
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    assert place in text
    (tmp_path / "changed.py").write_text(text.replace(place, change))
    small = ["--examples", "200", "--batch-size", "16", "--dense-width", "16"]
    failed: dict[str, str] = {}
    for check in step_is_sound(tmp_path / "changed.py", small, dataset.train, print):
        failed |= {} if check.holds else {check.name: check.found}
        if failed.keys() >= causes.keys():
            break
    for name, cause in causes.items():
        assert cause in failed[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("speedrun", "the same training, but for rounding"),
        ("residual", "the same training, but for rounding"),
        ("mixup", "another training: loss differs at step"),
        ("harder_half", "another training: loss_harder differs at step"),
    ],
)
def test_it_says_whether_several_replicas_train_alike(
    name: str, words: str, dataset: Dataset
) -> None:
    small = ["--examples", "200", "--batch-size", "16"]
    checks = step_is_sound(EXPERIMENTS / f"{name}.py", small, dataset.train, print)
    found = next(check for check in checks if check.name == "on several replicas")
    assert found.holds
    assert found.found.startswith(words)


# This experiment fails if it is built for other steps or examples than it is trained for, or if its
# epochs are shortened without its warm-up.
DEMANDING = """
from research.config import require
from research.network.mnist_cnn import Config as Base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Base):
    epochs: float = 6
    warmup_epochs: float = 4.0
    holdout: int = 60
    alpha: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        require("alpha", self.alpha, self.alpha > 0, "give a number above 0")


def build(config, plan):
    examples, batch_size = config.examples - config.holdout, config.batch_size
    assert (plan.examples, plan.batch_size) == (examples, batch_size)
    assert plan.steps == round(config.epochs * -(-examples // batch_size))
    state = mnist_cnn.build(config, plan)
    return dataclasses.replace(state, options=(examples, batch_size, plan.steps))


def step(state, images, labels):
    examples, batch_size, total_steps = state.options
    tf.debugging.assert_less(state.step, tf.constant(total_steps, tf.int64))
    last = state.step % -(-examples // batch_size) == examples // batch_size
    size = tf.where(last, examples % batch_size, batch_size)
    tf.debugging.assert_equal(tf.shape(images)[0], size)
    return mnist_cnn.step(state, images, labels)


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
"""


@pytest.fixture
def demanding(tmp_path: Path) -> str:
    """The name of an experiment with an option that must be given."""
    text = (EXPERIMENTS / "mnist_cnn.py").read_text().rpartition("\n\nexperiment = ")[0]
    own = DEMANDING.replace("mnist_cnn.", "of_mnist_cnn_")
    for name in ("build", "step"):
        text = text.replace(f"def {name}(", f"def of_mnist_cnn_{name}(")
    imports = text.replace("import annotations", "import annotations\nimport dataclasses", 1)
    (tmp_path / "demanding.py").write_text(imports + own)
    return "demanding.py"


def test_an_experiment_gets_its_options_and_the_training_it_is_built_for(
    demanding: str, data_file: Path, run_here: RunHere
) -> None:
    verify = ("verify", demanding, "--data", data_file, "--kills", "0", "--stops", "0", "--json")
    result = run_here("research", *verify, "--", "--alpha", "0.3")
    assert result.status == 0, result.stdout + result.stderr
    assert [check["found"] for check in json.loads(result.stdout) if not check["holds"]] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--alpha 0.0: give a number above 0"),
        (["--alhpa", "1"], "--alpha"),
        (["--alpha", "1", "--run-dir", "run"], "--run-dir run: verify starts runs of its own"),
    ],
)
def test_options_that_the_experiment_refuses_are_bad_input(
    options: list[str], words: str, demanding: str, tmp_path: Path, run_here: RunHere
) -> None:
    result = run_here("research", "verify", demanding, "--", *options)
    assert (result.status, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == [demanding]  # noqa: PTH208


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"epochs": 3.0, "warmup_epochs": 0.5, "examples": 200, "batch_size": 32}),
        (["--batch-size=64", "--examples", "90"], {"batch_size": 64, "examples": 90}),
        (["--warmup-epochs", "9"], {"epochs": 3.0, "warmup_epochs": 1.5}),
        (["--epochs", "1"], {"epochs": 1.0, "warmup_epochs": 1.0}),
        (["--holdout", "70"], {"holdout": 70, "examples": 270}),
    ],
)
def test_what_is_given_is_kept_and_epochs_are_shortened_together(
    given: list[str], expected: dict[str, float]
) -> None:
    defaults = ["--epochs", "18", "--warmup-epochs", "1" if "--epochs" in given else "3"]
    config = parse(Config, [*defaults, *given])
    options = smaller(config, batch_size=32) | shorter(config, epochs=3)
    found = parse(Config, with_options([*defaults[2:], *given], options))
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_check_that_hangs_is_ended_and_named(tmp_path: Path) -> None:
    code = (
        "import time; from research.tools.verify import ended_if_it_hangs\n"
        "with ended_if_it_hangs(0.01): time.sleep(1000)"
    )
    result = run_python("-c", code, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: a check hangs: it was ended after 0.01 minutes; mend ")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_is_whole_and_says_what_its_columns_are(
    columns: int,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Path("[/b].py")  # as rich's markup it ends what has not begun
    odd.parent.mkdir()
    odd.write_bytes((EXPERIMENTS / "mnist_cnn.py").read_bytes())
    words = [f"word{n}" for n in range(60)]
    checks = [
        Check("a" * 20, True, "short"),
        Check("other", False, " ".join([*words, "/long" * 40])),
    ]
    monkeypatch.setattr(verify, "step_is_sound", lambda *_: checks)
    monkeypatch.setenv("COLUMNS", str(columns))
    with Screen() as screen:
        assert not run(Verify(odd, data=data_file, kills=0, stops=0), screen)
    lines = capfd.readouterr().out.splitlines()
    assert str(odd) in map(str.strip, lines)
    assert max(map(len, lines)) <= columns
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
    heads = [row for row, line in zip(rows, lines, strict=True) if line.startswith("┃")]
    head = [" ".join(cells).strip() for cells in zip(*heads, strict=True)]
    assert head == ["check", "holds", "what was seen, or the likely cause"]
    first, *others = [row for row in rows if row and row not in heads]
    assert first == ["a" * 20, "yes", "short"]
    assert others[0][:2] == ["other", "no"]
    found = " ".join(row[2] for row in others)
    assert found.split()[:60] == words
    assert found.replace(" ", "").endswith("/long" * 40)
    assert all(row[:2] == ["", ""] for row in others[1:])
