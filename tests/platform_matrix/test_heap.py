"""What glibc's malloc and the kernel hold for a process that loads, and for the children that it forks."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are options of glibc's malloc")

MB = 1 << 20
_LOAD = """
import ctypes, json, sys
from prefork.platform_matrix.systems import SYSTEM

class Figures(ctypes.Structure):  # mallinfo2(3)
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.mallinfo2.restype = ctypes.c_void_p, (ctypes.c_void_p,), Figures
if sys.argv[1] == "apart":
    SYSTEM.hold_blocks_apart()
libc.free(libc.malloc(24 << 20))  # from here on, glibc by itself holds blocks of so many bytes in its heap
kept, freed = [], []
for _ in range(80):  # what is loaded: for each block that stays, one that does not
    freed.append(libc.malloc(500_000))
    kept.append(libc.malloc(1_000))
for block in freed:
    libc.free(block)
loaded = libc.mallinfo2()
SYSTEM.reuse_blocks()
mapped = loaded.hblkhd
libc.malloc(1 << 20)
print(json.dumps([loaded.fordblks, libc.mallinfo2().hblkhd - mapped]))
"""
_FILES = """
import os, psutil
import torch
from prefork.platform_matrix.systems import SYSTEM
torch.set_num_threads(1)  # so that there are no threads before the fork
torch.ones(300, 300) @ torch.ones(300, 300)
before = psutil.Process().memory_info().shared
SYSTEM.release_mapped_files()
after = psutil.Process().memory_info().shared
right = (torch.ones(300, 300) @ torch.ones(300, 300)).sum().item() == 300**3
child = os.fork()
if child == 0:
    os._exit(int((torch.ones(300, 300) @ torch.ones(300, 300)).sum().item() != 300**3))
print(before, after, right, os.waitpid(child, 0)[1])
"""


def _run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_loading_leaves_no_holes_for_children_to_fill() -> None:
    (holes, mapped), (usual, _) = (json.loads(_run(_LOAD, how)) for how in ("apart", "as usual"))
    assert usual > 30 * MB
    assert holes < 10 * MB
    assert mapped == 0  # a child that computes has blocks of a megabyte in its heap


@pytest.mark.dependencies
def test_mapped_files_are_let_go_of_and_are_there_when_they_are_needed() -> None:
    before, after, *right = _run(_FILES).split()
    assert int(after) < 0.5 * int(before)
    assert right == ["True", "0"]
