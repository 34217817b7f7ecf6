"""Memory that may be used: of made-up control groups, of files that lie, of real limits, and of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.platform_matrix.memory import MachineMemory, find_groups, keep_back, read_memory
from prefork.platform_matrix.systems import SYSTEM
from tests.limits import MemoryGroup, NotAllowed

MB = 1 << 20
GB = 1 << 30
UNLIMITED = str((1 << 63) - 4096)  # what v1 says when there is no limit
HYBRID = {"proc/self/cgroup": "4:memory:/m\n0::/a/b\n"}
V2 = {"proc/self/cgroup": "0::/a\n"}
V1 = {"proc/self/cgroup": "4:memory:/m\n"}
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits of the kernel")


def _write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def _is_unlimited(memory: MachineMemory) -> bool:
    """Whether no limit but that of the machine was seen; what is available changes from one moment to the next."""
    available = max(psutil.virtual_memory().available, SYSTEM.measure_available())
    close = abs(memory.available - available) < 4 * GB
    return bool(memory.limit == memory.installed == psutil.virtual_memory().total and close)


@pytest.mark.parametrize(
    ("files", "limit", "available"),
    [
        ({"sys/fs/cgroup/memory.max": f"{64 * MB}\n"}, 64, 64),
        (
            {
                "sys/fs/cgroup/a/memory.max": f"{64 * MB}\n",
                "sys/fs/cgroup/a/memory.current": f"{40 * MB}\n",
                "sys/fs/cgroup/a/memory.stat": f"anon {20 * MB}\ninactive_file {10 * MB}\nactive_file {10 * MB}\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": f"{30 * MB}\n",
            },
            64,
            34,
        ),
        (
            {
                "sys/fs/cgroup/a/memory.max": f"{100 * MB}\n",
                "sys/fs/cgroup/a/memory.current": f"{90 * MB}\n",
                "sys/fs/cgroup/a/b/memory.max": f"{64 * MB}\n",
                "sys/fs/cgroup/a/b/memory.current": f"{20 * MB}\n",
            },
            64,
            10,
        ),
        (
            {
                "sys/fs/cgroup/a/b/memory.max": f"{64 * MB}\n",
                "sys/fs/cgroup/a/b/memory.high": f"{48 * MB}\n",
                "sys/fs/cgroup/a/b/memory.current": f"{20 * MB}\n",
            },
            48,
            28,
        ),
        (
            {
                "sys/fs/cgroup/unified/a/memory.max": f"{64 * MB}\n",
                "sys/fs/cgroup/unified/a/memory.current": f"{24 * MB}\n",
            },
            64,
            40,
        ),
        (
            {
                "sys/fs/cgroup/memory/m/memory.limit_in_bytes": f"{64 * MB}\n",
                "sys/fs/cgroup/memory/m/memory.usage_in_bytes": f"{50 * MB}\n",
                "sys/fs/cgroup/memory/m/memory.stat": f"inactive_file 0\ntotal_inactive_file {20 * MB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{UNLIMITED}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{999 * MB}\n",
            },
            64,
            34,
        ),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{64 * MB}\n"}, 64, 64),
        (
            {
                "sys/fs/cgroup/memory/m/memory.limit_in_bytes": f"{64 * MB}\n",
                "sys/fs/cgroup/memory/m/memory.usage_in_bytes": f"{20 * MB}\n",
                "sys/fs/cgroup/unified/a/memory.max": f"{100 * MB}\n",
                "sys/fs/cgroup/unified/a/memory.current": f"{90 * MB}\n",
            },
            64,
            10,
        ),
        (
            {
                "proc/self/cgroup": "0::/../other\n",
                "sys/fs/cgroup/memory.max": f"{64 * MB}\n",
                "sys/fs/other/memory.max": f"{1 * MB}\n",
            },
            64,
            64,
        ),
        (
            {
                "proc/self/cgroup": "0::/docker/1f (deleted)\n",
                "sys/fs/cgroup/memory.max": f"{64 * MB}\n",
                "sys/fs/cgroup/memory.current": f"{4 * MB}\n",
            },
            64,
            60,
        ),
        (
            {
                "proc/self/cgroup": "7:hugetlb,memory:/k8s:pod 1\n",
                "sys/fs/cgroup/hugetlb,memory/k8s:pod 1/memory.limit_in_bytes": f"{64 * MB}\n",
            },
            64,
            64,
        ),
    ],
    ids=[
        "v2",
        "v2 nested",
        "v2 outer is fuller",
        "v2 throttled before its limit",
        "v2 beside v1",
        "v1",
        "v1 in a container",
        "hybrid: the smaller limit and the least room",
        "v2 outside the namespace",
        "v2 path that exists only outside",
        "v1 with two controllers and a name with a colon",
    ],
)
def test_the_tightest_limit_and_the_least_room_count(
    tmp_path: Path, files: dict[str, str | bytes], limit: int, available: int
) -> None:
    memory = read_memory(_write(tmp_path, {**HYBRID, **files}))
    assert (memory.limit / MB, memory.available / MB) == (limit, available)
    assert memory.installed == psutil.virtual_memory().total


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{UNLIMITED}\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "max\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max/a-folder": ""},
        {**V2, "sys/fs/cgroup/a/memory.max": ""},
        {**V2, "sys/fs/cgroup/a/memory.max": "0\n"},
        {**V2, "sys/fs/cgroup/a/memory.max": f"-{64 * MB}\n"},
        {**V2, "sys/fs/cgroup/a/memory.max": "64M\n"},
        {**V2, "sys/fs/cgroup/a/memory.max": "nan\n"},
        {**V2, "sys/fs/cgroup/a/memory.max": f"{64 * MB} {64 * MB}\n"},
        {**V2, "sys/fs/cgroup/a/memory.max": b"\xff\xfe\x00\x80" * 9},
        {**V2, "sys/fs/cgroup/a/memory.max": "9" * 400},
        {**V2, "sys/fs/cgroup/a/memory.max": "9" * 5000},
        {"proc/self/cgroup": "", "sys/fs/cgroup/memory.max": f"{64 * MB}\n"},
        {"proc/self/cgroup": "memory\n0:\n\n:::\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "5\n"},
        {"proc/self/cgroup": b"0::/a\x00b\n"},
        {"proc/self/cgroup": b"0::/" + b"x" * 5000},
        {"proc/self/cgroup/a-folder": ""},
        {**V2, "sys/fs/cgroup/a": "no folder"},
    ],
    ids=[
        "no groups",
        "v1 unlimited",
        "v2 unlimited",
        "a folder",
        "empty",
        "zero",
        "negative",
        "with a unit",
        "nan",
        "two numbers",
        "binary",
        "more than a float holds",
        "more than an int is read from",
        "in no group",
        "no groups in the list",
        "a path with a zero",
        "a path too long",
        "a list that is a folder",
        "a group that is a file",
    ],
)
def test_without_a_limit_that_makes_sense_the_machine_counts(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    assert _is_unlimited(read_memory(_write(tmp_path, files)))


@pytest.mark.parametrize(
    ("usage", "statistics", "available"),
    [
        (f"{65 * MB}\n", "", 0),
        (f"{40 * MB}\n", f"inactive_file {50 * MB}\n", 64),
        (f"{40 * MB}\n", f"inactive_file -{50 * MB}\n", 24),
        (f"{40 * MB}\n", f"inactive_file {10 * MB} {10 * MB}\n", 24),
        (f"{40 * MB}\n", "inactive_file\n", 24),
        (f"{40 * MB}\n", f"inactive_file {'9' * 400}\n", 24),
        (f"{40 * MB}\n", f"inactive_file {'9' * 5000}\n", 24),
        (f"{40 * MB}\n", b"\x80inactive_file \xff\n" * 9, 24),
        (f"{40 * MB}\n", f"total_inactive_file {10 * MB}\n", 24),
        (f"-{40 * MB}\n", "", 64),
        ("max\n", "", 64),
        ("much\n", "", 64),
        ("", "", 64),
    ],
    ids=[
        "over its limit",
        "more inactive than used",
        "negative inactive",
        "two numbers",
        "no number",
        "a number that no float holds",
        "a number too long to be read",
        "binary",
        "the other version's name",
        "negative use",
        "no number but max",
        "a word",
        "nothing",
    ],
)
def test_a_group_that_lies_about_its_use_keeps_its_limit(
    tmp_path: Path, usage: str, statistics: str | bytes, available: int
) -> None:
    files = {
        "sys/fs/cgroup/a/memory.max": f"{64 * MB}\n",
        "sys/fs/cgroup/a/memory.current": usage,
        "sys/fs/cgroup/a/memory.stat": statistics,
    }
    memory = read_memory(_write(tmp_path, {**V2, **files}))
    assert (memory.limit / MB, memory.available / MB) == (64, available)


NUMBERS = st.integers(-(10**30), 10**30).map(lambda number: f"{number}\n".encode())
ODD = st.sampled_from([b"max\n", b"", b"9" * 400, b"9" * 5000, b"inactive_file " + b"9" * 5000, b"some avg10=1.2.3\n"])
FILES = {
    name: st.one_of(NUMBERS, ODD, st.binary(max_size=30))
    for name in (
        "sys/fs/cgroup/a/memory.max",
        "sys/fs/cgroup/a/memory.high",
        "sys/fs/cgroup/a/memory.current",
        "sys/fs/cgroup/a/memory.stat",
        "sys/fs/cgroup/a/memory.pressure",
        "sys/fs/cgroup/a/memory.events",
        "sys/fs/cgroup/memory/m/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/m/memory.usage_in_bytes",
        "proc/pressure/memory",
        "proc/vmstat",
    )
}
LISTS = st.one_of(st.just(b"4:memory:/m\n0::/a\n"), st.binary(max_size=30).map(b"0::/".__add__))


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({"proc/self/cgroup": LISTS, **FILES}))
def test_whatever_the_files_hold_the_figures_are_possible(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    root = tmp_path_factory.getbasetemp() / "whatever"
    memory = read_memory(_write(root, dict(files)))
    assert 0 <= memory.available <= memory.limit <= memory.installed
    assert memory.limit > 0
    assert memory.kills >= 0
    assert all(share is None or share >= 0 for share in (memory.some, memory.full))


def test_groups_are_found_from_the_inside_out(tmp_path: Path) -> None:
    _write(tmp_path, HYBRID)
    mounts = [tmp_path / "sys/fs/cgroup", tmp_path / "sys/fs/cgroup/unified"]
    assert find_groups(tmp_path, "") == [mount / group for mount in mounts for group in ("a/b", "a", "")]
    assert find_groups(tmp_path, "memory") == [tmp_path / "sys/fs/cgroup/memory" / group for group in ("m", "")]
    assert find_groups(tmp_path, "cpu") == []


PSI = "some avg10={} avg60=3.21 avg300=0.10 total=1842592\nfull avg10={} avg60=1.00 avg300=0.00 total=1032285\n"
WHOLE_MACHINE = {"proc/pressure/memory": PSI.format("12.50", "3.25")}


@pytest.mark.parametrize(
    ("files", "some", "full"),
    [
        ({}, None, None),
        (WHOLE_MACHINE, 12.5, 3.25),
        ({**V2, **WHOLE_MACHINE, "sys/fs/cgroup/a/memory.pressure": PSI.format("40.00", "0.00")}, 40.0, 0.0),
        ({**V2, **WHOLE_MACHINE, "sys/fs/cgroup/memory.pressure": PSI.format("7.00", "1.00")}, 7.0, 1.0),
        (
            {
                **V2,
                "sys/fs/cgroup/a/memory.pressure": PSI.format("2.00", "1.00"),
                "sys/fs/cgroup/memory.pressure": PSI.format("70.00", "60.00"),
            },
            2.0,
            1.0,
        ),
        ({**V2, **WHOLE_MACHINE, "sys/fs/cgroup/a/memory.pressure": ""}, 12.5, 3.25),
        ({**V2, **WHOLE_MACHINE, "sys/fs/cgroup/a/memory.pressure": PSI.format("1.2.3", "0.00")}, 12.5, 3.25),
        ({**V2, **WHOLE_MACHINE, "sys/fs/cgroup/a/memory.pressure": PSI.format("-4.00", "0.00")}, 12.5, 3.25),
        ({**V2, **WHOLE_MACHINE, "sys/fs/cgroup/a/memory.pressure": PSI.format("nan", "nan")}, 12.5, 3.25),
        ({**V2, **WHOLE_MACHINE, "sys/fs/cgroup/a/memory.pressure": b"\xff\x00some avg10="}, 12.5, 3.25),
        ({"proc/pressure/memory": "some avg10=1.00\n"}, None, None),
        ({"proc/pressure/memory/a-folder": ""}, None, None),
    ],
    ids=[
        "a kernel that does not say",
        "the machine",
        "the group before the machine",
        "the group around it before the machine",
        "the innermost group",
        "an empty file",
        "a malformed number",
        "a negative number",
        "nan",
        "binary",
        "half of it",
        "a folder",
    ],
)
def test_pressure_is_that_of_the_innermost_group_that_says_it(
    tmp_path: Path, files: dict[str, str | bytes], some: float | None, full: float | None
) -> None:
    memory = read_memory(_write(tmp_path, files))
    assert (memory.some, memory.full) == (some, full)


VMSTAT = {"proc/vmstat": "nr_free_pages 5\noom_kill 24\noom_kill_extra 7\n"}


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({}, 0),
        (VMSTAT, 24),
        ({**V2, **VMSTAT, "sys/fs/cgroup/a/memory.events": "low 0\nhigh 9\nmax 8\noom 3\noom_kill 2\n"}, 2),
        ({**V2, **VMSTAT, "sys/fs/cgroup/a/memory.events": "low 0\nhigh 9\nmax 8\noom 3\noom_kill 0\n"}, 0),
        ({**V1, **VMSTAT, "sys/fs/cgroup/memory/m/memory.oom_control": "oom_kill_disable 0\noom_kill 5\n"}, 5),
        ({**V1, **VMSTAT, "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\noom_kill 6\n"}, 6),
        ({**V1, **VMSTAT, "sys/fs/cgroup/memory/m/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 24),
        ({**V2, **VMSTAT, "sys/fs/cgroup/a/memory.events": "oom_kill -3\n"}, 24),
        ({**V2, **VMSTAT, "sys/fs/cgroup/a/memory.events": f"oom_kill {'9' * 5000}\n"}, 24),
        ({**V2, **VMSTAT, "sys/fs/cgroup/a/memory.events": b"\x00\xff"}, 24),
    ],
    ids=[
        "nobody counts",
        "the machine",
        "v2",
        "v2: none of ours",
        "v1",
        "v1 around it",
        "v1 of an old kernel",
        "negative",
        "a number too long to be read",
        "binary",
    ],
)
def test_kills_are_counted_by_the_innermost_group_that_counts(
    tmp_path: Path, files: dict[str, str | bytes], kills: int
) -> None:
    assert read_memory(_write(tmp_path, files)).kills == kills


@pytest.mark.parametrize(
    ("limit", "reserve"),
    [
        (0, 0),
        (9, 0),
        (500_000_000, 50_000_000),
        (4 * GB, 4 * GB // 10),
        (16 * GB, 16 * GB // 10),
        (20 * GB, 2 * GB),
        (21 * GB, 2 * GB),
        (512 * GB, 2 * GB),
    ],
)
def test_a_tenth_is_kept_back_and_at_most_two_gigabytes(limit: int, reserve: int) -> None:
    assert keep_back(limit) == reserve


def _run_limited(limit: str, *spaces: int, group: MemoryGroup | None = None) -> list[tuple[int, int]]:
    """Limit and available as a fresh process reads them that has first done what `limit` says."""
    code = (
        "import sys; from prefork.platform_matrix.memory import read_memory\n"
        f"{limit}\n"
        "for space in map(int, sys.argv[1:]):\n"
        "    memory = read_memory(address_space=space)\n"
        "    print(memory.limit, memory.available)"
    )
    command = [sys.executable, "-c", code, *map(str, spaces)]
    wrapped = command if group is None else group.wrap(command)
    done = subprocess.run(wrapped, capture_output=True, text=True, timeout=60, check=True)
    return [(int(limit), int(available)) for limit, available in map(str.split, done.stdout.splitlines())]


@needs_linux
def test_a_limit_of_the_address_space_counts_less_what_the_largest_process_has_of_it() -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({GB}, resource.RLIM_INFINITY))"
    free, taken, over = _run_limited(limit, 0, 600 * MB, 2 * GB)
    assert free == (GB, GB)
    assert taken == (GB, GB - 600 * MB)
    assert over == (GB, 0)


@needs_linux
def test_a_limit_of_the_address_space_beyond_the_machine_is_none() -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({1 << 60}, resource.RLIM_INFINITY))"
    ((seen, available),) = _run_limited(limit, GB)
    assert seen == psutil.virtual_memory().total
    assert 0 < available < seen


@needs_linux
def test_a_real_group_has_its_limit_and_what_a_process_takes_is_missing_from_it() -> None:
    take = f"before = read_memory(); held = bytearray(b'x') * {60 * MB}; print(before.limit, before.available)"
    try:
        group = MemoryGroup(200 * MB)
    except NotAllowed as error:
        pytest.skip(str(error))
    with group:
        before, after = _run_limited(take, 0, group=group)
    assert before[0] == after[0] == 200 * MB
    assert 0 < after[1] < before[1] < 200 * MB
    assert 55 * MB < before[1] - after[1] < 70 * MB


def test_the_machine_itself_is_read() -> None:
    memory = read_memory()
    assert 0 < memory.available <= memory.limit <= memory.installed == psutil.virtual_memory().total
    assert memory.some is None or 0 <= memory.some <= 100
