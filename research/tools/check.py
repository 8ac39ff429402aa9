"""The result of one check of ``verify``."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Check:
    """A check and its result; ``found`` is the observation, with the likely cause of a failure."""

    name: str
    holds: bool
    found: str = ""
