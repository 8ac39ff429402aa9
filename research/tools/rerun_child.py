"""Runs a copy of a run's code as the experiment in its directory; a program of its own.

``research.tools.rerun`` starts it with the library of then in PYTHONPATH, so this file imports
nothing of ``research``. Its arguments are the cores to run on, such as ``0,1`` (none: any), the
copy of the experiment's file, and the command line that the run records: the file in the run
directory, which is there to stay, and its options.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

_PR_SET_PDEATHSIG = 1


def main() -> None:
    cores, copy, *sys.argv = sys.argv[1:]
    sys.orig_argv = [sys.executable, *sys.argv]
    # Before training is announced, Ctrl-C loses nothing and needs no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    # With some options Python leaves the folder of this file out.
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    sys.path.insert(0, str(Path(copy).parent))
    program = ModuleType("__main__")
    program.__file__ = copy
    sys.modules["__main__"] = program
    exec(compile(Path(copy).read_bytes(), copy, "exec", dont_inherit=True), program.__dict__)


if __name__ == "__main__":
    main()
