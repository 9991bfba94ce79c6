"""The errors that users meet. Each is a `JaxdecoupleError`, and a ``ValueError``: something given cannot be used."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args


class JaxdecoupleError(ValueError):
    """Something given cannot be used; the message says what was given, what was expected and what to write."""


class ScheduleError(JaxdecoupleError):
    """A schedule that cannot be built or cannot be executed."""


class DataError(JaxdecoupleError):
    """Data, or a request for data, that cannot be used."""


class DataWarning(UserWarning):
    """Data that can be used, but perhaps not as they were meant."""


class CutWarning(UserWarning):
    """Numbers that will depend on where the network is cut."""


class CheckpointError(JaxdecoupleError):
    """A checkpoint that cannot be written, is not there, or does not fit."""


class ProcessError(JaxdecoupleError):
    """Another process of the run is gone, or does not say what is waited for."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are incomplete or changed. An older one may still be whole."""


def did_you_mean(given: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6, rest: str = "") -> str:
    """A hint for a message about a name that is not known: ``"did you mean 'fdg'? "``, or nothing.

    Args:
      given: the name; its case does not matter.
      known: the names that it may stand for.
      most: how many of them the hint names at most.
      cutoff: how alike a name must be, from 0 to 1.
      rest: what follows the name in what the user gave, to be written again.
    """
    near = difflib.get_close_matches(given.lower(), list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(repr(name + rest) for name in near)}? " if near else ""


def check_choice(name: str, given: Any, kind: Any) -> None:
    """Refuses what is none of the values of ``kind``, a ``Literal``; ValueError, with them."""
    if given not in get_args(kind):
        raise ValueError(f"{name} is {given!r}; write one of {', '.join(get_args(kind))}")
