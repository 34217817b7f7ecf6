"""What all errors of prefork have in common."""

from __future__ import annotations


class PreforkError(Exception):
    """Above every error that prefork raises itself; what a user's function or a library raises stays what it is."""


class FactsError(PreforkError, ValueError):
    """A machine, or a description of one, that nothing can be decided for. Says which file and field, why, and what to
    do."""
