"""What someone is told who has broken a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import EXPERIMENTS, RunHere

TAPE = "    with tf.GradientTape() as tape:\n"
UPDATE = "    measured = state.update(gradients)\n"
STEP = "def step(state: State, images: Any, labels: Any) -> dict[str, Any]:\n"


BROKEN: dict[str, tuple[str, str, dict[str, str]]] = {
    "sound": (TAPE, TAPE, {}),
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


@pytest.mark.parametrize("kind", BROKEN)
def test_the_check_that_fails_names_the_likely_cause(
    kind: str, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    place, change, causes = BROKEN[kind]
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    assert place in text
    (tmp_path / "changed.py").write_text(text.replace(place, change))
    options = ("--data", data_file, "--kills", "0", "--stops", "0", "--json")
    result = run_here("research", "verify", "changed.py", *options)
    failed = {
        found["name"]: found["found"] for found in json.loads(result.stdout) if not found["holds"]
    }
    assert result.status == (1 if causes else 0), result.stderr
    assert bool(failed) == bool(causes)
    for check, cause in causes.items():
        assert cause in failed[check]
