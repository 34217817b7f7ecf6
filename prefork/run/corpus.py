"""From a folder to jobs: which transcript goes with which recording, and what becomes of the rest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from prefork.engines.audio.container import is_named_as_one, is_recording
from prefork.engines.audio.media import MEDIA_SUFFIXES
from prefork.engines.audio.selection import Selection
from prefork.engines.base import InputError, Job, Output
from prefork.engines.parquet.row_path import SUFFIX as DATA_SET
from prefork.engines.text import formats
from prefork.engines.text.cues import CueLayout
from prefork.engines.text.formats import text
from prefork.engines.text.languages import get_long_code
from prefork.pool.pipeline import Intake
from prefork.run.folder import LOCKED, FoundFiles, Links, explain, fold, may_hide_transcripts, walk
from prefork.run.headers import read_languages
from prefork.run.pairing import pair
from prefork.run.problems import Problem, attempt
from prefork.run.recordings import find_recordings, measure_recordings

BYTES_PER_SECOND = 15  # of text, as it is usually spoken
_NOTES = frozenset({"readme", "license", "licence", "copying", "changelog", "changes", "notes", "0readme"})
_NOTE = "looks like a note about the other files; if it is a text, rename it or give it alone"


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is to be done, longest first; what cannot be, which is an error; what was not used, which is none."""

    jobs: tuple[Job, ...]
    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()


def find_jobs(
    source: Path,
    target: Path | None,
    names: Sequence[str] = (),
    media: Path | None = None,
    intake: Intake = Intake.PAIRS,
    *,
    selection: Selection | None = None,
    follow_links: bool = False,
    layout: CueLayout | None = None,
    language: str | None = None,
) -> Corpus:
    """The jobs that a folder, or a single file, makes.

    target: where the outputs will be, None if there will be none. names: output formats, by default CHAT; of texts,
    CHAT for CHAT and CoNLL-U for all others. media: where recordings are that do not lie beside their transcripts.
    intake: what else lies there is left where it is. selection: what is read of each recording. follow_links: symbolic
    links out of the folder are followed; that of a single file always is. layout: of subtitles. language: ISO 639,
    of plain texts. Raises InputError where nothing can be done at all.
    """
    corpus = _find_jobs(source, target, names, media, intake, selection or Selection(), follow_links)
    jobs = corpus.jobs
    if layout is not None:
        jobs = tuple(replace(job, outputs=_lay_out(job.outputs, layout)) for job in jobs)
    if language and (spoken := get_long_code(language)) != text.LANGUAGE:
        jobs = tuple(replace(job, language=spoken) if _is_plain(job.source) else job for job in jobs)
    return replace(corpus, jobs=jobs)


def _lay_out(outputs: Iterable[Output], layout: CueLayout) -> tuple[Output, ...]:
    return tuple(replace(output, layout=layout) for output in outputs)


def _is_plain(source: Path) -> bool:
    return source.suffix.lower() in formats.FORMATS["text"].suffixes


def _find_jobs(
    source: Path,
    target: Path | None,
    names: Sequence[str],
    media: Path | None,
    intake: Intake,
    selection: Selection,
    follow_links: bool,
) -> Corpus:
    _check_places(source, target, media, intake)
    outputs = _name_outputs(names or ("chat",))
    skip = os.path.realpath(target) if target is not None else ""
    single = not source.is_dir()
    known = formats.READABLE if intake is Intake.TEXTS else formats.TRANSCRIPTS
    links = Links(follow_links, source.name if single else "")
    found = walk(source.parent if single else source, skip, known, not single, links)
    only = PurePath(source.name) if single else None
    if intake is Intake.RECORDINGS:
        return _find_recordings(found, only, outputs, selection)
    if intake is Intake.TEXTS:
        return _find_texts(found, only, outputs if names else None)
    elsewhere = walk(media, skip, known, links=Links(follow_links)) if media is not None else None
    if single:
        found.transcripts = [Path(source.name)]
        found.refused = {path: why for path, why in found.refused.items() if path.suffix.lower() in MEDIA_SUFFIXES}
    pairs = pair(found, elsewhere, outputs)
    paired, problems, strays = pairs.jobs, pairs.problems, pairs.strays
    if single:
        problems, strays = [*problems, *strays], []
    problems += [explain(path, why) for path, why in found.refused.items() if may_hide_transcripts(path, why)]
    if strays and not paired and not problems:
        raise InputError(
            f"{source}: no recording belongs to any of its transcripts: {strays[0].id}: {strays[0].reason}"
        )
    if not paired and not problems:
        raise InputError(f"{source}: has no transcripts; their names must end in {', '.join(formats.TRANSCRIPTS)}")
    distinct, collisions = _refuse_collisions(paired)
    jobs, unheard = measure_recordings(distinct, selection)
    problems += [*collisions, *unheard]
    notices = [*pairs.notices, *([] if single else [*strays, *_list_unused(found, paired, problems)])]
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    return Corpus(tuple(jobs), tuple(sorted(problems, key=_get_id)), tuple(sorted(notices, key=_get_id)))


def _name_outputs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Formats, and the suffixes of files in them."""
    return [(name, formats.find_suffix(name)) for name in dict.fromkeys(names)]


def _find_texts(found: FoundFiles, single: PurePath | None, outputs: Sequence[tuple[str, str]] | None) -> Corpus:
    """A job for each transcript or text, or for a single one. outputs: by default what each file is itself."""
    texts = [path for path in found.transcripts if single is None or path == single]
    notes = [path for path in texts if single is None and _is_note(path)]
    wanted: list[Job] = []
    problems = [
        explain(path, why)
        for path, why in found.refused.items()
        if (single is None and may_hide_transcripts(path, why)) or path == single
    ]
    for path in texts:
        if path in notes:
            continue
        chosen = outputs or _name_outputs(["chat" if path.suffix.lower() == ".cha" else "conllu"])
        files = tuple(Output(name, path.with_suffix(suffix)) for name, suffix in chosen)
        job = attempt(path.as_posix(), Job(path.as_posix(), found.root / path, None, files).note_files)
        if isinstance(job, Problem):
            problems.append(explain(path, f"cannot be read: {job.reason}; check the file"))
        else:
            wanted.append(replace(job, seconds=job.states[0].size / BYTES_PER_SECOND))
    if not wanted and not problems:
        raise InputError(f"{found.root}: has no texts; their names must end in {', '.join(formats.READABLE)}")
    jobs, collisions = _refuse_collisions(wanted)
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    notices = tuple(Problem(path.as_posix(), _NOTE) for path in notes)
    return Corpus(tuple(jobs), tuple(sorted([*problems, *collisions], key=_get_id)), notices)


def _is_note(path: PurePath) -> bool:
    return path.suffix.lower() == ".txt" and path.stem.lower() in _NOTES


def find_languages(source: Path, target: Path | None = None, follow_links: bool = False) -> tuple[str, ...]:
    """The languages that the texts of a folder, or a single one, are in: a look at their first lines. An empty one
    stands for those that do not say it.

    target: where the outputs are, which are not looked at. What cannot be read names none: it is complained about when
    its turn comes.
    """
    skip = os.path.realpath(target) if target is not None else ""
    paths = [source] if os.path.isfile(source) else []  # noqa: PTH113  unlike Path.is_file it never raises
    if source.is_dir():
        with suppress(InputError):
            found = walk(source, skip, formats.READABLE, links=Links(follow_links))
            paths = [source / path for path in found.transcripts if not _is_note(path)]
    return tuple(dict.fromkeys(name for path in paths for name in read_languages(path)))


def _find_recordings(
    found: FoundFiles, single: PurePath | None, outputs: Sequence[tuple[str, str]], selection: Selection
) -> Corpus:
    """A job for each recording, or for a single one."""
    refused = found.refused
    if single is not None:
        refused = {path: why for path, why in refused.items() if path == single}
    links = {path: why for path, why in refused.items() if path.suffix.lower() not in MEDIA_SUFFIXES and why != LOCKED}
    problems = [explain(path, why) for path, why in refused.items() if single is not None or path not in links]
    wanted, unheard, passed = find_recordings(found, single, outputs, selection)
    problems += unheard
    if not wanted and not problems:
        raise InputError(f"{found.root}: has no recordings that FFmpeg can read; give the folder that has them")
    jobs, collisions = _refuse_collisions(wanted)
    problems += collisions
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    notices = [*passed, *([] if single is not None else [explain(path, why) for path, why in links.items()])]
    return Corpus(tuple(jobs), tuple(sorted(problems, key=_get_id)), tuple(sorted(notices, key=_get_id)))


def _check_places(source: Path, target: Path | None, media: Path | None, intake: Intake) -> None:
    what, known = {
        Intake.PAIRS: ("transcript", f"a file that ends in {', '.join(formats.TRANSCRIPTS)}"),
        Intake.RECORDINGS: ("recording", "a recording"),
        Intake.TEXTS: ("transcript or text", f"a file that ends in {', '.join(formats.READABLE)}"),
    }[intake]
    suffix = source.suffix.lower()
    takes = {Intake.PAIRS: suffix in formats.TRANSCRIPTS, Intake.TEXTS: suffix in formats.READABLE}
    fits = takes.get(intake, suffix not in formats.READABLE)  # of anything else FFmpeg says whether it is a recording
    if not os.path.exists(source):  # noqa: PTH110  unlike Path.exists it never raises
        raise InputError(f"{source}: no such file or folder; check IN")
    if source.suffix == DATA_SET and not source.is_dir():
        raise InputError(f"{source}: is a data set; give --format parquet, which writes one too")
    if not source.is_dir() and not (source.is_file() and fits):
        raise InputError(f"{source}: no {what}; give a folder, or {known}")
    if media is not None and not media.is_dir():
        raise InputError(f"{media}: no such folder; check --media")
    root = source if source.is_dir() else source.parent
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root}: {LOCKED}")
    if target is not None:
        check_target(source, root, target)


def check_target(source: Path, root: Path, target: Path) -> None:
    """Raises InputError if outputs there could overwrite inputs. root: the folder of `source`, or itself."""
    if os.path.exists(target) and not target.is_dir():  # noqa: PTH110
        raise InputError(f"{target}: is a file; OUT must be a folder")
    inner, outer = Path(os.path.realpath(root)), Path(os.path.realpath(target))
    if outer == inner:
        raise InputError(f"{target}: is IN itself, whose transcripts would be overwritten; give another OUT")
    if source.is_dir() and inner.is_relative_to(outer):
        raise InputError(f"{target}: contains IN, whose files could be overwritten; give an OUT beside IN or inside it")


def _refuse_collisions(jobs: Sequence[Job]) -> tuple[list[Job], list[Problem]]:
    """Of several jobs that would write the same file, only the first stays."""
    owners: dict[Path, str] = {}
    kept, problems = [], []
    for job in jobs:
        taken = [(output.path, owners[output.path]) for output in job.outputs if output.path in owners]
        if taken:
            path, owner = taken[0]
            problems.append(Problem(job.id, f"its output {path} is also the output of {owner}; rename one of them"))
            continue
        kept.append(job)
        owners |= {output.path: job.id for output in job.outputs}
    return kept, problems


def _list_unused(found: FoundFiles, paired: Iterable[Job], problems: Iterable[Problem]) -> list[Problem]:
    used = {job.media for job in paired}
    explained = {fold(PurePath(problem.id).with_suffix("")) for problem in problems}
    notices = [
        Problem(path.relative_to(found.root).as_posix(), "has no transcript; add one of the same name")
        for stem, paths in found.media.items()
        for path in paths
        if used.isdisjoint(paths) and stem not in explained
    ]
    others = [path for paths in found.others.values() for path in paths if is_named_as_one(path)]
    notices += [
        Problem(path.as_posix(), "has no transcript; add one of the same name")
        for path in others
        if found.root / path not in used and is_recording(found.root / path)
    ]
    notices += [explain(path, why) for path, why in found.refused.items() if not may_hide_transcripts(path, why)]
    return notices


def _get_id(problem: Problem) -> str:
    return problem.id
