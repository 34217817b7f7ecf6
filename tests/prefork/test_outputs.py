"""Outputs: whole or not there, and never outside the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePath

import pytest

from prefork.engines.base import InputError
from prefork.outputs import OutputFolder


def test_a_file_is_written_with_its_folders_and_known_to_be_whole(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    written = folder.write(PurePath("a/b/ü \n.cha"), "text\n")
    assert (tmp_path / "a/b/ü \n.cha").read_text() == "text\n"
    assert folder.is_whole(written)
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["ü \n.cha"]


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_text("tex"), lambda p: p.write_text("tuxt"), lambda p: p.unlink()]
)
def test_a_file_that_was_cut_changed_or_removed_is_not_whole(tmp_path: Path, damage: object) -> None:
    folder = OutputFolder(tmp_path)
    written = folder.write(PurePath("x.cha"), "text")
    assert callable(damage)
    damage(tmp_path / "x.cha")
    assert not folder.is_whole(written)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/tmp/x"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="relative path without"):
        OutputFolder(tmp_path / "out").write(PurePath(path), "")


def test_a_symbolic_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="symbolic link"):
        OutputFolder(tmp_path / "out").write(PurePath("link/x"), "")
    assert not (tmp_path / "x").exists()


def test_a_link_in_place_of_an_output_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").symlink_to(tmp_path / "precious")
    OutputFolder(tmp_path / "out").write(PurePath("x"), "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out" / "x").is_symlink()


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="make room or make it writable"):
        OutputFolder(tmp_path).write(PurePath("file/x"), "")


def test_a_full_disk_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk's end: the same error, in a process of its own."""
    OutputFolder(tmp_path).write(PurePath("x"), "old")
    script = (
        "import resource, signal, sys; from pathlib import PurePath, Path; from prefork.outputs import OutputFolder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "OutputFolder(Path(sys.argv[1])).write(PurePath('x'), 'new' * 100)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert "x: cannot be written below" in done.stderr
    assert "File too large" in done.stderr
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
