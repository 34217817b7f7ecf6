"""Text as it is shown: names that may hold anything, times, and what the operating system has refused."""

from __future__ import annotations

import errno

from prefork.platform_matrix.systems import SYSTEM

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have your quota raised",
    errno.EFBIG: "allow larger files (`ulimit -f unlimited`)",
    errno.EMFILE: "allow more open files (`ulimit -n 4096`)",
    errno.ENFILE: "the whole machine has too many files open; end what is not needed",
    errno.ENOMEM: "free memory, or use fewer --workers",
    errno.EAGAIN: "allow more processes (`ulimit -u`), or use fewer --workers",
    errno.EROFS: "write to another folder",
    errno.EACCES: "change its permissions",
    errno.EIO: "check the disk",
}


def make_printable(name: str) -> str:
    """A name or text as it can be printed on one line whatever is in it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in SYSTEM.shorten(name))


def describe_os_error(error: OSError) -> str:
    """One line: what it is about, as far as that is known, why, and what to do."""
    what = f"{make_printable(str(error.filename))}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0, "")
    return f"{what}{error.strerror or str(error) or type(error).__name__}{f'; {remedy}' if remedy else ''}"


def format_duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
