"""stanza's models by language: which files they are, where they come from, and what is missing.

stanza's own downloader fetches what is not here yet, and compares it with the checksums that its index holds. The files
are read with `weights_only`: they can run no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import stanza
from huggingface_hub.constants import HF_HUB_OFFLINE
from stanza.models.common.foundation_cache import FoundationCache
from stanza.resources import common

from prefork.engines.checkpoints import hub
from prefork.engines.checkpoints.fetching import fetch_apart
from prefork.engines.errors import LoadError
from prefork.engines.text.languages import get_long_code, get_short_code

PROCESSORS = "tokenize,pos,lemma,depparse"  # and mwt where the language has it
_NEEDED = {"tokenize", "pos", "depparse"}  # a word's lemma may be the word itself
EMBEDDED = {"eng": Path(__file__).parents[1] / "models" / "stanza-en-ewt-small"}
_PARSED_TOGETHER = 300  # words; as fast as stanza's 5,000, in a third of the memory
_MOST_ALIASES = 10  # one after the other; stanza's own index has one
_STANZA_CODES = {"nor": "nb", "nob": "nb"}  # where they are not ISO 639-1


class MissingModel(Exception):
    """There is no model for a language: the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class StanzaPackage:
    """One language's models. code: as stanza calls the language. folder: stanza's model folder. name: of stanza's
    package. files: what is loaded of the folder. download: whether stanza may fetch what else they need."""

    language: str  # ISO 639-3
    code: str
    folder: Path
    name: str
    files: tuple[Path, ...]
    download: bool

    @classmethod
    def find(cls, language: str, name: str | None = None, folder: Path | None = None) -> StanzaPackage:
        """language: ISO 639-3. name: of stanza's package, by default the one that comes with prefork where there is
        one, else stanza's `default`. folder: the only place to look in; by default stanza's own, which is filled as
        needed. Raises MissingModel.
        """
        if folder is None and name is None and language in EMBEDDED:
            folder = EMBEDDED[language]
        known = folder if folder is not None else Path(common.DEFAULT_MODEL_DIR)
        try:
            return _choose(language, name or "default", known, download=folder is None and not HF_HUB_OFFLINE)
        except (TypeError, AttributeError, LookupError, RecursionError) as error:  # the index may hold anything
            raise MissingModel(
                f"{known / 'resources.json'} is no index of stanza's models ({type(error).__name__}: {error}); "
                "give a folder that stanza.download has filled"
            ) from error

    def load(self, cache: FoundationCache) -> stanza.Pipeline:
        """cache: what several packages use: word vectors, character models. Raises LoadError."""
        try:
            return stanza.Pipeline(
                self.code,
                dir=str(self.folder),
                package=self.name,
                processors=PROCESSORS,
                device="cpu",
                download_method=stanza.DownloadMethod.REUSE_RESOURCES if self.download else None,
                foundation_cache=cache,
                verbose=False,
                tokenize_no_ssplit=True,
                depparse_batch_size=_PARSED_TOGETHER,
            )
        except Exception as error:  # whatever is wrong with a file, torch and stanza have many words for it
            reason = re.split(r"[.\n]\s", f"{type(error).__name__}: {error}")[0]  # the rest is advice not to follow
            raise LoadError(
                f"stanza's {self.code} models in {self.folder} cannot be loaded ({reason}); remove them to have them "
                "downloaded again, or give another --model-dir"
            ) from error

    def identify(self) -> dict[str, Any]:
        """What tells these models from others."""
        return {"code": self.code, "package": self.name, **{f"{f.parent.name}/{f.name}": f for f in self.files}}


def _choose(language: str, name: str, folder: Path, *, download: bool) -> StanzaPackage:
    code = _STANZA_CODES.get(language, get_short_code(language))
    resources = _read_index(language, folder, download)
    for _ in range(_MOST_ALIASES):
        if isinstance(resources.get(code), dict) and "alias" in resources[code]:
            code = resources[code]["alias"]
    if not isinstance(resources.get(code), dict) or "packages" not in resources[code]:
        known = sorted(get_long_code(c) for c, r in resources.items() if isinstance(r, dict) and "packages" in r)
        raise MissingModel(
            f"there is no model for language {language!r} in {folder}, only for {', '.join(known) or 'none'}; "
            "correct @Languages or --lang, or give a --model-dir that has one"
        )
    wanted = _list_files(resources, code, name, folder)
    files = tuple(folder / code / processor / f"{package}.pt" for processor, package in wanted)
    absent = [pair for pair, file in zip(wanted, files, strict=True) if not file.is_file()]
    if absent and download:
        _download(language, absent, code, folder)
    elif absent:
        named = ", ".join(f"{processor}/{package}.pt" for processor, package in absent)
        raise MissingModel(
            f"the models for {language!r} in {folder} are incomplete: {code} lacks {named}; download them on a machine "
            f"with network access: stanza.download({code!r}, model_dir={str(folder)!r})"
        )
    return StanzaPackage(language, code, folder, name, files, download)


def _read_index(language: str, folder: Path, download: bool) -> Mapping[str, Any]:
    path = folder / "resources.json"
    try:
        if not path.is_file() and download:
            fetch_apart(_fetch_index, str(folder))
        resources: Mapping[str, Any] = common.load_resources_json(str(folder))
    except common.ResourcesFileNotFoundError as error:
        raise MissingModel(
            f"{folder} has no resources.json, stanza's index of its models; give a folder that stanza.download has "
            "filled, or leave --model-dir out to have them downloaded"
        ) from error
    except ValueError as error:
        raise MissingModel(f"{path} cannot be read ({error}); remove it to have it downloaded again") from error
    except OSError as error:
        raise _explain_network(language, error) from error
    return resources


def _fetch_index(folder: str) -> str:
    with _limited():
        common.download_resources_json(folder)
    return folder


def _fetch_models(pairs: list[list[str]], code: str, folder: str) -> str:
    with _limited():
        common.download_models(pairs, common.load_resources_json(folder), code, folder, log_info=False)
    return folder


@contextmanager
def _limited() -> Iterator[None]:
    """Within it stanza waits for nothing without limit: it asks the hub, and for what is elsewhere `requests`, which it
    gives no limit."""
    plain = common.requests
    common.requests = SimpleNamespace(get=partial(plain.get, timeout=hub.read_limit()))
    try:
        with hub.limited():
            yield
    finally:
        common.requests = plain


def _list_files(resources: Mapping[str, Any], code: str, name: str, folder: Path) -> Sequence[tuple[str, str]]:
    """Processors, and packages of them, with the word vectors and character models that they need."""
    with common.logging_level_context(None, False):
        _, _, package, processors = common.process_pipeline_parameters(code, str(folder), name, PROCESSORS)
        try:
            found = common.maintain_processor_list(resources, code, package, processors)
        except (KeyError, ValueError, common.UnknownProcessorError) as error:
            raise MissingModel(
                f"stanza has no package {name!r} for {code} in {folder} ({error}); leave --package out"
            ) from error
        pairs = common.flatten_processor_list(common.add_dependencies(resources, code, found))
    if lacking := _NEEDED - {processor for processor, _ in found}:
        raise MissingModel(
            f"stanza's package {name!r} for {code} in {folder} has no model for {', '.join(sorted(lacking))}; "
            "give another --package"
        )
    # some have no lemmatiser but the word itself, and some tokenisers are other libraries
    return sorted((kind, package) for kind, package in pairs if package in resources[code].get(kind, {}))


def _download(language: str, absent: Sequence[tuple[str, str]], code: str, folder: Path) -> None:
    try:
        fetch_apart(_fetch_models, [list(pair) for pair in absent], code, str(folder))
    except (OSError, ValueError) as error:
        raise _explain_network(language, error) from error


def _explain_network(language: str, error: Exception) -> MissingModel:
    host = re.search(r"host='([^']+)'", str(error))  # requests says much more, which helps nobody
    reason = f"{host[1]} cannot be reached" if host else " ".join(str(error).split())[:200]
    return MissingModel(
        f"stanza's models are not in {common.DEFAULT_MODEL_DIR}, and those for {language!r} cannot be downloaded "
        f"({reason}); correct @Languages or --lang, download them on a machine with network "
        "access, or give a --model-dir"
    )
