"""The journal: what is done stays done, what has changed is done again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from prefork.engines.base import InputError, Job, Output
from prefork.outputs import OutputFolder
from prefork.run.journal import Journal

SETTINGS = {"engine": "ctc", "model": {"sha256": "abc"}}


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder(tmp_path / "out")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "a.cha").write_text("transcript")
    (tmp_path / "a.wav").write_bytes(b"audio")
    return Job("a.cha", tmp_path / "a.cha", tmp_path / "a.wav", (Output("chat", Path("a.cha")),), 1.0).note_files()


@pytest.fixture
def journal(folder: OutputFolder, job: Job) -> Journal:
    """One with the job done, opened again."""
    first = Journal(folder)
    first.record(job, SETTINGS, (folder.write(PurePath("a.cha"), "aligned"),))
    first.close()
    return Journal(folder)


def test_a_job_that_is_done_is_known_to_be(journal: Journal, job: Job) -> None:
    assert journal.is_done(job, SETTINGS)


def test_a_job_is_done_again_when_what_it_depends_on_has_changed(
    journal: Journal, job: Job, folder: OutputFolder
) -> None:
    assert not journal.is_done(job, {**SETTINGS, "model": {"sha256": "xyz"}})
    assert not journal.is_done(replace(job, outputs=(*job.outputs, Output("srt", Path("a.srt")))), SETTINGS)
    assert job.media is not None
    job.media.write_bytes(b"other audio")
    assert not journal.is_done(job.note_files(), SETTINGS)


def test_a_job_that_is_to_be_done_again_for_other_settings_alone_says_so(journal: Journal, job: Job) -> None:
    made = {"stages": [{"engine": "ctc", "prefork": "1.0", "dtype": "float32"}]}
    wanted = {"stages": [{**made["stages"][0], "dtype": "int8"}]}
    journal.record(job, made)
    assert journal.has_done_any()
    assert journal.explain(job, wanted) == "dtype was float32 and is int8"
    assert journal.explain(job, made) == ""
    os.utime(job.source, (1, 1))
    job = job.note_files()
    assert journal.explain(job, wanted) == ""
    journal.record(job, made, error="worker 0: killed")
    assert journal.explain(job, wanted) == "" and not journal.has_done_any()


def test_a_touched_input_is_done_again(journal: Journal, job: Job) -> None:
    os.utime(job.source, (1, 1))
    assert not journal.is_done(job.note_files(), SETTINGS)


def test_an_input_that_was_edited_and_got_its_old_time_back_is_done_again(journal: Journal, job: Job) -> None:
    status = job.source.stat()
    job.source.write_text("TRANSCRIPT")
    os.utime(job.source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not journal.is_done(job.note_files(), SETTINGS)


def test_an_input_that_was_edited_before_its_job_was_recorded_is_done_again(journal: Journal, job: Job) -> None:
    status = job.source.stat()
    job.source.write_text("TRANSCRIPT")
    os.utime(job.source, ns=(status.st_atime_ns, status.st_mtime_ns))
    journal.record(job, SETTINGS)
    assert not journal.is_done(job.note_files(), SETTINGS)


def test_what_is_recorded_is_what_the_inputs_were_before_they_were_read(journal: Journal, job: Job) -> None:
    os.utime(job.source, (1, 1))
    journal.record(job, SETTINGS)
    assert not journal.is_done(job.note_files(), SETTINGS)


def test_an_output_that_is_not_whole_is_made_again(journal: Journal, job: Job, folder: OutputFolder) -> None:
    (folder.root / "a.cha").write_text("align")
    assert not journal.is_done(job, SETTINGS)


def test_a_job_that_was_set_aside_is_tried_again(journal: Journal, job: Job) -> None:
    journal.record(job, SETTINGS, error="worker 0: killed")
    assert not journal.is_done(job, SETTINGS)


def test_two_runs_into_one_folder_are_refused(journal: Journal, folder: OutputFolder) -> None:
    with pytest.raises(InputError, match="another run is writing there"):
        Journal(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="give another OUT"):
        Journal(OutputFolder(tmp_path / "out"))


def test_what_is_recorded_together_is_there_together_or_not_at_all(folder: OutputFolder, job: Job) -> None:
    jobs = [replace(job, id=f"{number}.cha") for number in range(3)]
    files = (folder.write(PurePath("a.cha"), "aligned"),)
    journal = Journal(folder)
    with journal.together():
        for each in jobs:
            journal.record(each, SETTINGS, files)
        assert not journal.has_done_any()
    assert all(journal.is_done(each, SETTINGS) for each in jobs)
    with pytest.raises(RuntimeError, match="in between"), journal.together():
        journal.record(jobs[0], SETTINGS, error="worker 0: killed")
        raise RuntimeError("in between")
    assert journal.is_done(jobs[0], SETTINGS)
    journal.record(jobs[0], SETTINGS, error="worker 0: killed")
    assert not journal.is_done(jobs[0], SETTINGS)
