"""Loads an experiment from its file, for the verbs that need one."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from research.errors import InputError, one_line
from research.experiment import Experiment

# The folder that load_experiment has put on sys.path, if any: at most one.
_folders: list[str] = []


def load_experiment(file: Path) -> Experiment:
    """Loads the experiment that a file defines, without running its main program.

    Each call executes the file, and the modules that it imports from its own folder, afresh: two
    calls share no module state. As when Python runs the file, its folder is the first in
    ``sys.path``, until another experiment is loaded.

    Raises:
        InputError: if the file is missing, fails, or does not define an ``experiment``.
    """
    if not os.path.isfile(file):
        raise InputError(f"{file}: no such file; name an experiment, such as mnist_cnn.py")
    path = file.resolve()
    _leave_folder()
    sys.path.insert(0, str(path.parent))
    _folders.append(str(path.parent))
    # dataclasses and typing.get_type_hints look up a class's module in sys.modules. The digest of
    # the path gives files of the same name in two folders two modules.
    module = ModuleType(f"_experiment_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        # Not an import, which would write a __pycache__ beside the file.
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:  # the file may fail in any way
        _leave_folder()
        reason, remedy = one_line(error)[:200], ""
        if isinstance(error, SystemExit):
            reason, remedy = "it exits", '; call main under if __name__ == "__main__"'
        elif isinstance(error, ModuleNotFoundError):
            remedy = f"; install the module, or put it into {path.parent}"
        raise InputError(
            f"{file}: not a program that Python can load ({reason}){remedy}"
        ) from error
    found = getattr(module, "experiment", None)
    if not isinstance(found, Experiment):
        _leave_folder()
        raise InputError(
            f"{file}: it makes no experiment; let it say experiment = Experiment(config=Config, "
            "build=build, step=step)"
        )
    return found


def _leave_folder() -> None:
    """Removes the previous experiment's folder from sys.path, and its modules."""
    importlib.invalidate_caches()  # the caches of file names
    while _folders:
        folder = _folders.pop()
        if folder in sys.path:
            sys.path.remove(folder)
        own = {n for n, m in sys.modules.items() if "." not in n and _lies_in(m, Path(folder))}
        # For an experiment at the root of a clone, this package is in the experiment's folder.
        own -= {__name__.partition(".")[0], "__main__"}
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    """Whether a top-level module is a file or a package in this folder."""
    # getattr would import a lazy module.
    names = getattr(module, "__dict__", {})
    file = names.get("__file__")
    try:
        places = [file] if file else list(names.get("__path__", ()))
        return any(
            folder == (path.parent.parent if path.name == "__init__.py" else path.parent)
            for path in map(Path, places)
        )
    except TypeError:  # an object in sys.modules that is no usual module
        return False
