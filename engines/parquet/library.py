"""pyarrow, which not everybody has."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prefork.engines.errors import InputError


def import_arrow(module: str = "pyarrow") -> Any:
    """pyarrow, or one of its modules. Raises InputError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"parquet files need pyarrow, which cannot be imported ({error}); pip install 'prefork[data]'"
        ) from error
