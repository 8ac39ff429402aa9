"""How large a network may be."""

from __future__ import annotations

from research.errors import InputError

# 160 MiB of float32: the reference network with a dense layer of 4,543 units instead of 256.
LARGEST_PARAMETERS = 40 * 2**20


def refuse_too_many_parameters(what: str, parameters: int) -> None:
    """Refuses a network that is too large for mnist.h5.

    Call this before the network makes its variables: they could fill the memory.

    Args:
        what: the beginning of the message: the network, or the option that makes it too large.
        parameters: number of weights, moving statistics included.

    Raises:
        InputError: if there are more than ``LARGEST_PARAMETERS``.
    """
    if parameters > LARGEST_PARAMETERS:
        raise InputError(
            f"{what}: the network would have {parameters:,} parameters, and mnist.h5 holds at most "
            f"{LARGEST_PARAMETERS:,}; make the network smaller"
        )
