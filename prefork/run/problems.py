"""Problems: what is wrong with inputs, in words for the user.

Whatever the supervisor's side does for one input goes through `attempt`, and whatever a worker does for one is caught
around its task (prefork.work.worker): an exception of any kind costs the input that it was raised for, and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar

from prefork.engines.base import InputError, LoadError
from prefork.wire.exceptions import describe_error

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Problem:
    """An input, and why it cannot be used; with the remedy."""

    id: str
    reason: str


def find_reason(error: BaseException) -> str:
    """What an InputError says; of any other exception, its type and text.

    >>> find_reason(InputError("a.cha: is empty; write something")), find_reason(KeyError("x"))
    ('a.cha: is empty; write something', "KeyError: 'x'")
    """
    return str(error) if isinstance(error, InputError) else describe_error(error).removesuffix(": ")


def strip_name(job: str, reason: str) -> str:
    """The reason without the job's name before it, which stands there already wherever it is shown.

    >>> strip_name("a/b.cha", "b.cha: is not UTF-8")
    'is not UTF-8'
    """
    for name in (job, PurePath(job).name):
        reason = reason.removeprefix(f"{name}: ")
    return reason


def attempt(id: str, work: Callable[[], _T]) -> _T | Problem:
    """What work for one input returns, or the input's problem, whatever was raised. A LoadError is raised on: every
    other input would meet it too."""
    try:
        return work()
    except LoadError:
        raise
    except Exception as error:  # noqa: BLE001  nothing that is wrong with one input may end the run
        return Problem(id, find_reason(error))
