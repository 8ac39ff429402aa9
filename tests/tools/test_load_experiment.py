"""A loaded experiment behaves as when Python runs its file."""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path
from typing import Any

from research.config import Config, config_as_json, config_from_json
from research.errors import InputError
from research.tools.load_experiment import load_experiment

import pytest
from conftest import EXPERIMENTS

EXPERIMENT = '''
"""An experiment with a type, a neighbour and a state of its own."""

from __future__ import annotations

import dataclasses
from typing import Literal

from research.config import Config as BaseConfig
from research.experiment import Experiment

import neighbour

Mode = Literal["fast", "slow"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    mode: Mode = "fast"


def build(config: Config, plan):
    neighbour.SEEN.append(plan)
    return neighbour.SEEN


def step(state, images, labels):
    import package.late

    return package.late.NAME


experiment = Experiment(config=Config, build=build, step=step)
'''


def write_experiment(folder: Path, name: str) -> Path:
    (folder / "package").mkdir(parents=True)
    (folder / "neighbour.py").write_text("SEEN = []\n")
    (folder / "package" / "late.py").write_text(f"NAME = {name!r}\n")
    (folder / "experiment.py").write_text(EXPERIMENT)
    return folder / "experiment.py"


def through_json(config: Config) -> Any:
    return json.loads(json.dumps(config_as_json(config)))


def test_annotations_of_its_own_are_resolved(tmp_path: Path) -> None:
    config_type: Any = load_experiment(write_experiment(tmp_path, "one")).config
    assert typing.get_type_hints(config_type)["mode"] == typing.Literal["fast", "slow"]
    config = config_type(mode="slow")
    assert config_from_json(config_type, through_json(config)) == config


@pytest.mark.parametrize("name", ["mnist_cnn", "label_smoothing", "mixup", "speedrun", "best"])
def test_the_config_of_every_experiment_can_be_read_back(name: str) -> None:
    config_type = load_experiment(EXPERIMENTS / f"{name}.py").config
    assert config_from_json(config_type, through_json(config_type())) == config_type()


def test_two_loads_share_no_state_and_each_has_its_own_neighbours(tmp_path: Path) -> None:
    one = write_experiment(tmp_path / "one", "one")
    two = write_experiment(tmp_path / "two", "two")
    none: Any = None
    for file, name in ((one, "one"), (one, "one"), (two, "two"), (one, "one")):
        experiment: Any = load_experiment(file)
        assert experiment.build(none, 7) == [7]
        assert experiment.step(none, none, none) == name


def test_nothing_is_left_in_the_folder_or_of_another_experiment(tmp_path: Path) -> None:
    file = write_experiment(tmp_path / "one", "one")
    before = list(sys.path)
    load_experiment(file)
    assert not list(file.parent.glob("__pycache__/experiment.*"))
    load_experiment(EXPERIMENTS / "mnist_cnn.py")
    assert "neighbour" not in sys.modules
    assert str(file.parent) not in sys.path
    assert len(sys.path) <= len(before) + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nowhere", "No module named 'nowhere'.*; install the module, or put it into"),
        ("raise SystemExit(3)", "it exits.*; call main under if __name__"),
        ("1 / 0", "division by zero"),
        ("\0", "null bytes"),
        ("experiment = None", "it makes no experiment; let it say experiment = Experiment"),
    ],
)
def test_a_file_that_can_not_be_loaded_is_refused_and_its_folder_forgotten(
    text: str, words: str, tmp_path: Path
) -> None:
    file = write_experiment(tmp_path, "one")
    file.write_text(f"import neighbour\n{text}\n")
    with pytest.raises(InputError, match=rf"experiment\.py: .*{words}") as caught:
        load_experiment(file)
    assert str(caught.value).isprintable()
    assert str(tmp_path) not in sys.path
    assert "neighbour" not in sys.modules
