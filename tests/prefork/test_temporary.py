"""Temporary files and folders of processes that were killed: a later one removes them, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.temporary import TemporaryFile, TemporaryFolder, remove_abandoned

_HOLDING = """
import sys, time
from prefork.wire.temporary import TemporaryFolder
folder = TemporaryFolder("machine")
(folder.path / "log").write_text("written")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The one for temporary files, here and in processes that are started."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def find_free_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_a_killed_process_had_is_removed_once_it_is_gone(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert path.parent == folder and (path / "log").exists()
        remove_abandoned("machine")
        assert (path / "log").exists()
        process.kill()
    remove_abandoned("machine")
    assert not path.exists()


def test_what_is_closed_is_gone_at_once(folder: Path) -> None:
    made, file = TemporaryFolder("machine"), TemporaryFile("arena")
    (made.path / "log").write_text("written")
    made.close()
    file.close()
    assert not list(folder.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="which has no such locks")
def test_what_another_container_has_is_left_although_no_process_here_has_its_number(folder: Path) -> None:
    path = folder / f"prefork-machine-{find_free_pid()}-x"
    path.mkdir()
    lock = SYSTEM.hold(path)
    remove_abandoned("machine")
    assert path.exists()
    os.close(lock)
    remove_abandoned("machine")
    assert not path.exists()


def test_no_link_is_followed_and_no_other_kind_is_touched(folder: Path) -> None:
    number = find_free_pid()
    mine = folder / "mine"
    mine.mkdir()
    (mine / "file").write_text("precious")
    names = [f"prefork-machine-{number}-link", f"prefork-arena-{number}-x", "prefork-machine-x", f"machine-{number}-x"]
    (folder / names[0]).symlink_to(mine)
    for name in names[1:]:
        (folder / name).mkdir()
    inside = folder / f"prefork-machine-{number}-y"
    inside.mkdir()
    (inside / "link").symlink_to(mine)
    remove_abandoned("machine")
    assert not inside.exists()
    assert all((folder / name).is_dir() for name in names)
    assert (mine / "file").read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="needs root: makes a folder another user's")
def test_what_is_another_user_s_is_left(folder: Path) -> None:
    path = folder / f"prefork-machine-{find_free_pid()}-x"
    path.mkdir()
    os.chown(path, 12345, 12345)
    remove_abandoned("machine")
    assert path.exists()
