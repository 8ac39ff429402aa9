"""The library is layered: imports run downwards only, in the order that the README lists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import research

PACKAGE = Path(research.__file__).parent
README = (PACKAGE.parent / "README.md").read_text()


def rooms() -> list[str]:
    listing = README.split("    research/\n")[1].split("    experiments/")[0]
    return re.findall(r"^      (\w+)", listing, re.MULTILINE)


def imported(file: Path) -> set[str]:
    """The rooms of this package that a file imports from."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
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
