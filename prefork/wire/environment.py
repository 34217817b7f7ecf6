"""The environment of processes that compute: variables that libraries read when they are imported."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefork.platform_matrix.systems import SYSTEM

if TYPE_CHECKING:  # the command line imports this at once, and the matrix reads the machine
    from prefork.platform_matrix.matrix import Plan

# Read by libraries when they are first imported: no pool of threads may exist before a fork, and no progress bar
# belongs into a worker.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYANNOTE_METRICS_ENABLED": "0",
    "MPLBACKEND": "Agg",  # pyannote imports matplotlib, which may look for a display
    # oneDNN keeps what it has prepared for each shape it has seen, 1,024 of them; every recording brings new ones. Over
    # 20 recordings: 237 MB in a worker, 52 MB with 16 kept, 34 MB with malloc_trim after each; equally fast.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    # So does what lies between torch and oneDNN, for each shape of a convolution: 36 kB for every segment, 0.2 with 16.
    "LRU_CACHE_CAPACITY": "16",
}


_HIDING = {
    "cuda": {"CUDA_VISIBLE_DEVICES": ""},
    "rocm": {"HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": ""},
    "mps": {},  # torch has no variable for it: see hide_mps
}


def hide_gpus(plan: Plan) -> dict[str, str]:
    """What is added to the environment of a process that forks workers: it must not initialise CUDA, not even to ask
    whether there are GPUs, or its children could not use them."""
    return {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if plan.devices else {}


def make_environment(plan: Plan) -> dict[str, str]:
    """What is added to the environment of a process that computes."""
    return {**make_plain_environment(plan), **_ENVIRONMENT}


def make_plain_environment(plan: Plan) -> dict[str, str]:
    """The same for one that computes as any other does; but it has folders, and does not see what the plan hides."""
    hiding = {name: value for kind in plan.hidden for name, value in _HIDING[kind].items()}
    return {**find_folders(), **hiding}


@cache
def find_folders() -> Mapping[str, str]:
    """TMPDIR and HOME, where this process has none that libraries could use: on a file system that is read-only, or as
    a user whom nobody knows (`docker run --user 12345`), some cannot even be imported."""
    found: dict[str, str] = {}
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:
        if SYSTEM.memory_folder is None or not os.access(SYSTEM.memory_folder, os.W_OK):
            return {}
        found[SYSTEM.temporary] = temporary = str(SYSTEM.memory_folder)
    if os.path.expanduser("~") == "~":  # noqa: PTH111  Path's raises
        found["HOME"] = _make_home(Path(temporary))
    return found


def _make_home(parent: Path) -> str:
    """The same one every time, so that models are downloaded once; another if it is not this user's alone."""
    home = parent / f"prefork-home-{SYSTEM.name_user()}"
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    there = home.lstat()
    if home.is_symlink() or SYSTEM.is_other_user(there) or there.st_mode & 0o022:
        return tempfile.mkdtemp(prefix="prefork-home-", dir=parent)
    return str(home)
