"""Ctrl-C (on Windows Ctrl-Break) ends a command in order, and the same command goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import prefork

_COPIES = 4  # of each sample, so that it is not over too soon


def main() -> int:
    samples = Path(prefork.__file__).parent / "samples"
    with tempfile.TemporaryDirectory() as name:
        corpus, out = Path(name, "in"), Path(name, "out")
        for copy in range(_COPIES):
            shutil.copytree(samples, corpus / str(copy))
        command = [sys.executable, "-m", "prefork", "--force-cpu", "align", str(corpus), str(out), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **_detach())
        assert process.stdout is not None
        for line in process.stdout:
            if '"event": "done"' in line:
                break
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))
        output, _ = process.communicate(timeout=60)
        unfinished = json.loads(output.splitlines()[-1])["unfinished"]
        print(f"interrupted: exit code {process.returncode}, {unfinished} files are left")
        again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        summary = json.loads(again.stdout.splitlines()[-1])
        print(f"the same command: exit code {again.returncode}, {summary['done'] + summary['skipped']} files are done")
        number = getattr(signal, "SIGBREAK", signal.SIGINT)
        return int((process.returncode, again.returncode) != (128 + number, 0) or not unfinished)


def _detach() -> dict[str, Any]:
    """Ctrl-Break is sent to a group: one of the command's own."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
    return {}


if __name__ == "__main__":
    sys.exit(main())
