"""What ends a job, and what ends the run."""

from __future__ import annotations

from prefork.platform_matrix.errors import PreforkError


class InputError(PreforkError):
    """An input that cannot be processed: names the input, the reason and the remedy.

    It costs only its own job, and the job is not tried again: the same input would fail again.
    """


class LoadError(PreforkError):
    """A model that cannot be loaded: names the model, the reason and the remedy. It ends the run."""
