"""Exceptions on their way from one process to another."""

from __future__ import annotations

import pickle


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in a worker, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def pickle_error(error: BaseException, trace: str) -> bytes:
    """For the way from a worker to who asked: the exception, what it says, and its traceback."""
    try:
        itself = pickle.dumps(error)
    except Exception:  # noqa: BLE001  an exception class may fail to pickle in any way it likes
        itself = b""
    return pickle.dumps((itself, f"{type(error).__name__}: {error}", trace))


def unpickle_error(data: bytes) -> BaseException:
    """The exception itself, or, if it does not survive the way, a RuntimeError that says the same."""
    itself, text, trace = pickle.loads(data)
    error: BaseException | None
    try:
        error = pickle.loads(itself)
    except BaseException:  # noqa: BLE001  nor need it be one that can be made again; it may even want to exit
        error = None
    if not isinstance(error, BaseException):
        error = RuntimeError(text)
    error.__cause__ = RemoteTraceback(trace)
    return error
