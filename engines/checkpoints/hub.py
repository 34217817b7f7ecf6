"""Models of the Hugging Face hub: downloaded by its own client, and one reason why not.

That client waits 10 s (HF_HUB_DOWNLOAD_TIMEOUT) for the next bytes of a file, six times; for some answers, such as the
list of a repository's files, without limit, and for others a minute, six times. Here it waits for none longer than
30 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefork.engines.checkpoints.fetching import FetchError, fetch_apart

_CLIENTS = ("httpx", "httpx2")  # of huggingface_hub 1 and 2; what they raise is no OSError
_PATIENCE = 3  # times HF_HUB_DOWNLOAD_TIMEOUT, 10 s


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
        with limited():
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


@contextmanager
def limited() -> Iterator[None]:
    """Within it the hub's client waits for nothing without limit. What ends a connection is raised as an OSError."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not HF_HUB_OFFLINE:  # then there is no need to make a client
        _add_limit()
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise OSError(_explain(error)) from error


def _add_limit() -> None:
    """To the client that this process has."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if _limit not in hooks:
        hooks.append(_limit)


def _limit(request: Any) -> None:
    """A hook of the client."""
    asked, most = request.extensions.get("timeout", {}), read_limit()
    limits = {name: min(asked.get(name) or most, most) for name in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}


def read_limit() -> float:
    """Seconds without a byte, after which the hub counts as gone: more, if the user has set that for the hub's own
    tools."""
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    return _PATIENCE * float(HF_HUB_DOWNLOAD_TIMEOUT)


def _explain(error: BaseException) -> str:
    """The reason that the hub's client had, in a few words."""
    cause: BaseException | None = error
    while cause is not None:
        if any(kind.__name__ == "TimeoutException" for kind in type(cause).__mro__):
            return "it does not answer, or has stopped in the middle of it"
        cause = cause.__cause__
    return shorten(error)


def _describe_offline(error: Exception) -> str:
    reason = "the hub cannot be reached; download it on a machine with network access"
    return f"{reason} ({_explain(error)})"


def shorten(error: object) -> str:
    """On one line, of 200 characters at most."""
    return " ".join(str(error).split())[:200]
