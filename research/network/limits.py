"""How large a network may be."""

from __future__ import annotations

from research.errors import InputError

# 160 MiB of float32: a dense layer of 4,500 units in the reference network, which needs a 16th.
LARGEST_PARAMETERS = 40 * 2**20


def refuse_too_many_parameters(what: str, parameters: int) -> None:
    """Refuses a network that is too large for mnist.h5.

    A network calls this before it makes its variables, which could fill the memory.

    Args:
        what: the network, or the option that makes it so large; the message begins with it.
        parameters: number of weights, moving statistics included.

    Raises:
        InputError: if there are more than ``LARGEST_PARAMETERS``.
    """
    if parameters > LARGEST_PARAMETERS:
        raise InputError(
            f"{what}: the network would have {parameters:,} parameters, and mnist.h5 holds at most "
            f"{LARGEST_PARAMETERS:,}; make the network smaller"
        )
