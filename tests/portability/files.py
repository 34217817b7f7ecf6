"""Outputs are written while somebody reads the old ones, and below paths of more than 260 characters."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path, PurePath

from prefork.outputs import OutputFolder
from prefork.platform_matrix.systems import SYSTEM

_READING_SECONDS = 1.0


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = OutputFolder(SYSTEM.extend(Path(name)))
        path = PurePath("out.txt")
        folder.write(path, "old")
        threading.Thread(target=_read_slowly, args=(folder.root / path,)).start()
        time.sleep(_READING_SECONDS / 4)
        written = folder.write(path, "new")
        print(f"replaced while it was read: {folder.read(written)}")
        deep = PurePath(*["a folder with a long name of forty letters"] * 8, "out.txt")
        written = folder.write(deep, "deep")
        print(f"below {len(str(deep))} characters: {folder.read(written)}")
        _remove(folder.root / deep.parts[0])
    return 0


def _read_slowly(path: Path) -> None:
    with open(path, encoding="utf-8"):
        time.sleep(_READING_SECONDS)


def _remove(folder: Path) -> None:
    """By its long name, which TemporaryDirectory does not know."""
    for path in folder.iterdir():
        if path.is_dir():
            _remove(path)
        else:
            path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
