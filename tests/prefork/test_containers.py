"""As containers run programs: as a user whom nobody knows, without a home folder, on a read-only file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prefork.command import PREFORK, copy_sample

UID = "12345"
NOBODY = ["setpriv", "--reuid", UID, "--regid", UID, "--clear-groups"]
# Whoever runs the tests may have Python where others cannot read it.
READER = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
READ_ONLY = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro /
cd /
shift
exec "$@"
"""

pytestmark = [
    pytest.mark.exec,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(not (shutil.which("setpriv") and shutil.which("unshare")), reason="needs util-linux"),
]


@pytest.fixture
def mounted() -> Iterator[Path]:
    """Anybody's; pytest's own folders are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("command", ["align", "morphotag"])
@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_a_user_whom_nobody_knows_gets_results(command: str, read_only: bool, mounted: Path) -> None:
    copy_sample(mounted, "child14")
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    line = [*NOBODY, *READER, "env", "-i", *[f"{name}={value}" for name, value in kept.items()]]
    line += [*PREFORK, command, str(mounted), str(mounted / "out"), "--workers", "1"]
    if read_only:
        line = ["unshare", "-m", "bash", "-c", READ_ONLY, "-", str(mounted), *line]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180, check=False, cwd=mounted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (mounted / "out" / "child14.cha").stat().st_uid == int(UID)


@pytest.mark.parametrize(
    ("wrapped", "reason"),
    [
        (["unshare", "-m", "bash", "-c", 'mount -t tmpfs none /proc; exec "$@"', "-"], "/proc is not mounted here"),
        (["unshare", "-p", "-f"], "/proc is another PID namespace's"),
    ],
    ids=["missing", "another's"],
)
def test_without_a_proc_of_its_own_a_command_says_how_to_get_one(wrapped: list[str], reason: str) -> None:
    done = subprocess.run([*wrapped, *PREFORK, "matrix"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"prefork: {reason}") and done.stderr.count("\n") == 1
    assert "mount -t proc proc /proc" in done.stderr
