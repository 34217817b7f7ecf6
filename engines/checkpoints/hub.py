"""Models of the Hugging Face hub: downloaded by its own client, and one reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefork.engines.checkpoints.fetching import FetchError, fetch_apart


class NotAvailable(Exception):
    """A model that the hub does not give. Says why, and what to do."""


def fetch(repository: str, patterns: Sequence[str] = (), revision: str | None = None, file: str = "") -> Path:
    """The folder of a repository with the files that match the patterns, or one file of it; from the hub's cache, if it
    is there. The user's token is where the hub's own tools look for it. Raises NotAvailable."""
    try:
        return Path(fetch_apart(_ask, repository, list(patterns), revision, file))
    except FetchError as error:
        raise NotAvailable(str(error)) from error


def _ask(repository: str, patterns: Sequence[str], revision: str | None, file: str) -> str:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        if file:
            return str(hf_hub_download(repository, file, revision=revision))
        return str(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise NotAvailable(f"{repository} is not a valid hub id") from error
    except GatedRepoError as error:
        raise NotAvailable(
            f"the hub requires that you accept the terms of {repository}: do so on https://huggingface.co/{repository},"
            " then run `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        reason = f"the hub has no {repository} that this user can access (HF_TOKEN, `hf auth login`)"
        raise NotAvailable(reason) from error
    except LocalEntryNotFoundError as error:
        raise NotAvailable(_describe_offline(error)) from error
    except EntryNotFoundError as error:
        raise NotAvailable(f"{repository} on the hub has no {file or 'such revision'}") from error
    except OSError as error:
        raise NotAvailable(_describe_offline(error)) from error


def _describe_offline(error: Exception) -> str:
    reason = "the hub cannot be reached; download it on a machine with network access"
    return f"{reason} ({shorten(error)})"


def shorten(error: object) -> str:
    """On one line, of 200 characters at most."""
    return " ".join(str(error).split())[:200]
