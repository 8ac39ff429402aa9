"""An experiment from its file, for the verbs that run one."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from research.errors import InputError, one_line
from research.experiment import Experiment

# Beside the package: the project is installed in place.
EXPERIMENTS = Path(__file__).parents[2] / "experiments"

# The folders on sys.path because of load_experiment: at most one.
_folders: list[str] = []


def load_experiment(file: Path) -> Experiment:
    """The experiment that a file makes. Its main program is not run.

    The file is executed afresh by each call, and so are the modules that it imports from its own
    folder: two calls share no module state. As when Python runs the file, its folder comes first
    in ``sys.path``, from now until another experiment is loaded.

    Raises:
        InputError: if the file is missing or defines something else.
    """
    if not os.path.isfile(file):
        raise InputError(f"{file}: no such file; name an experiment, such as mnist_cnn.py")
    path = file.resolve()
    _leave_folder()
    sys.path.insert(0, str(path.parent))
    _folders.append(str(path.parent))
    # dataclasses and typing.get_type_hints look a class's module up in sys.modules. Experiments of
    # one name in two folders have modules of two names.
    module = ModuleType(f"_experiment_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        # Python's import would leave a __pycache__, which it does not for a file that is run.
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:  # it may fail in any way
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
    """Takes the folder of the experiment before off sys.path, and forgets its modules."""
    importlib.invalidate_caches()  # of which files a folder has
    while _folders:
        folder = _folders.pop()
        if folder in sys.path:
            sys.path.remove(folder)
        own = {n for n, m in sys.modules.items() if "." not in n and _lies_in(m, Path(folder))}
        # The research package lies in the folder of an experiment at the root of a clone.
        own -= {__name__.partition(".")[0], "__main__"}
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    """Whether a top-level module is a file of this folder, or a package in it."""
    # getattr would import a lazy module.
    names = getattr(module, "__dict__", {})
    file = names.get("__file__")
    try:
        places = [file] if file else list(names.get("__path__", ()))
        return any(
            folder == (path.parent.parent if path.name == "__init__.py" else path.parent)
            for path in map(Path, places)
        )
    except TypeError:  # somebody's own idea of a module
        return False
