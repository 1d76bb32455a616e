"""What users read when something they gave cannot work: what was given, what is legal, how to mend it."""

import difflib
from collections.abc import Iterable

__all__ = ["AdjoinedError", "CaptureError", "CheckError", "DataError", "PlanError", "did_you_mean"]


class AdjoinedError(ValueError):
    """Base of every error a user can mend. The message is one line; the CLI prints it and exits with code 2."""


class CaptureError(AdjoinedError):
    """The model could not be captured as a graph."""


class PlanError(AdjoinedError):
    """A plan, a factor or a budget that does not fit the model."""


class CheckError(AdjoinedError):
    """The small network is not the large one with the dropped entries masked."""


class DataError(AdjoinedError):
    """Data that cannot be found, read or matched to the model."""


def did_you_mean(given: str, legal: Iterable[str], *, limit: int = 3) -> str:
    """A clause `; did you mean a, b?` with the names of `legal` nearest to `given`, or an empty string."""
    near = difflib.get_close_matches(given, list(legal), n=limit, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""
