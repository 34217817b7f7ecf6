"""What only one system has, in one module for each. `SYSTEM` is the one that this process runs on.

    System          what every system has, and what stands for the rest where a system has nothing of the kind
    ├── Posix       fork, signals, descriptors that are passed on
    │   ├── Linux   /proc, memfd, prctl, madvise
    │   └── MacOS   kqueue
    └── Windows     handles, job objects, kernel32

Nothing else in prefork names what only one of them has; tests/platform_matrix/test_systems.py holds that. Imports
nothing heavy.
"""

from __future__ import annotations

import sys

from prefork.platform_matrix.systems.system import Status, System


def choose(platform: str) -> System:
    """platform: as sys.platform has it."""
    if platform == "win32":
        from prefork.platform_matrix.systems.windows import Windows

        return Windows()
    if platform == "darwin":
        from prefork.platform_matrix.systems.macos import MacOS

        return MacOS()
    if platform.startswith("linux"):
        from prefork.platform_matrix.systems.linux import Linux

        return Linux()
    from prefork.platform_matrix.systems.posix import Posix

    return Posix()


SYSTEM = choose(sys.platform)

__all__ = ["SYSTEM", "Status", "System", "choose"]
