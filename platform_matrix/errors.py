"""What all errors of prefork have in common."""

from __future__ import annotations


class PreforkError(Exception):
    """Above every error that prefork raises itself; what a user's function or a library raises stays what it is."""
