"""The layout in research/README.md: imports run downwards only; the top level is short."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import research

import pytest

PACKAGE = Path(research.__file__).parent
README = (PACKAGE / "README.md").read_text()


def rooms() -> list[str]:
    listing = README.split("    research/\n")[1].split("\n\n")[0]
    return re.findall(r"^      (\w+)", listing, re.MULTILINE)


def imported(file: Path) -> set[str]:
    """The rooms of this package that a file imports from when it runs.

    An import below ``if TYPE_CHECKING`` is for annotations only and does not run.
    """
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("research.")}


def test_every_module_is_in_the_readme() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(rooms()) == there - {"__init__", "__pycache__"}


def test_imports_run_downwards_only() -> None:
    order = rooms()
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported(file) - {room}:
            assert order.index(other) > order.index(room), f"{file} imports research.{other}"


def test_the_top_level_holds_nothing_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no git repository")
    top = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        *("research", "experiments", "tests", "runs"),
        *("pyproject.toml", "README.md"),
    }


def test_the_folders_of_tests_are_those_of_the_library() -> None:
    tests = {path.parent.name for path in (PACKAGE.parent / "tests").glob("*/test_*.py")}
    assert tests <= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
