"""Errors a caller may want to tell apart: few, one meaning each, facts as attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class EdgeMonitorError(Exception):
    """Base of every error raised on purpose; the command line prints it as one line."""


class InputError(EdgeMonitorError):
    """Something the user gave is unusable.

    Parameters
    ----------
    what : str
        The file, key or tensor at fault, as the user would name it.
    problem : str
        What is wrong with it, with the bad value.
    """

    def __init__(self, what: object, problem: str) -> None:
        super().__init__(f"{what}: {problem}")
        self.what = str(what)
        self.problem = problem


class ModelError(InputError):
    """A model file that is missing, truncated, or cannot be tapped as asked."""


class MapError(InputError):
    """A region map that is damaged, or that belongs to another model."""


class ConfigError(InputError):
    """A configuration that cannot be used; ``what`` is the file and the key."""


class RecordingError(InputError):
    """A recording that cannot be read or replayed."""


@contextmanager
def about(what: object) -> Iterator[None]:
    """Put ``what``, a file or a key, in front of an error on purpose that does not begin with it."""
    try:
        yield
    except InputError as error:
        if error.what.startswith(str(what)):
            raise
        raise type(error)(what, str(error)) from error


def first_line(error: Exception) -> str:
    """First line of another library's message, or the error's type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
