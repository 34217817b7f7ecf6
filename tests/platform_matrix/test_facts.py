"""Facts: of this machine, of made-up control groups, and of files that describe another machine, or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.platform_matrix.devices import KINDS, MODES, MOST_BYTES, Device, Devices
from prefork.platform_matrix.errors import FactsError
from prefork.platform_matrix.facts import SYSTEMS, Facts, count_usable_cores, read_cpu_quota, read_facts
from prefork.platform_matrix.matrix import Request, decide

MB = 1 << 20
FACTS = Facts(
    system="linux",
    release="6.8.0",
    machine="x86_64",
    python="3.12.3",
    start_methods=("fork", "spawn", "forkserver"),
    cores=8,
    installed_cores=16,
    memory=16 << 30,
    installed_memory=64 << 30,
    available=10 << 30,
    container="docker",
    devices=Devices("2.11.0", ("cuda",), (Device("cuda", "NVIDIA H200", 150 << 30, 1 << 30, "9.0"),)),
)


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuacct,cpu:/docker/1f\n0::/\n",
                "sys/fs/cgroup/cpuacct,cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpuacct,cpu/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "0::/../other\n",
                "sys/fs/cgroup/cpu.max": "200000 100000\n",
                "sys/fs/other/cpu.max": "1 100000\n",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/unified/cpu.max": "200000 100000\n"}, 2.0),
        ({"proc/self/cgroup": "nonsense\n0::/\n", "sys/fs/cgroup/cpu.max": "200000 0\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "many\n"}, None),
    ],
    ids=[
        "none",
        "v2 unlimited",
        "v2",
        "v2 nested: the tightest",
        "v2 root",
        "v1",
        "v1 unlimited",
        "v1 in a container",
        "v2 outside the namespace",
        "v2 beside v1",
        "no period",
        "no numbers",
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert read_cpu_quota(_write(tmp_path, files)) == quota


def test_affinity_counts() -> None:
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert count_usable_cores() == 1
    finally:
        os.sched_setaffinity(0, everything)


def test_the_limits_on_memory_count_among_the_facts(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/memory.max": f"{64 * MB}\n", "sys/fs/cgroup/a/memory.current": f"{40 * MB}\n"}
    facts = read_facts(Devices(), _write(tmp_path, {"proc/self/cgroup": "0::/a\n", **files}))
    assert (facts.memory / MB, facts.available / MB) == (64, 24)
    assert facts.installed_memory == psutil.virtual_memory().total


def test_the_quota_counts_among_the_cores(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"})
    facts = read_facts(Devices(), root)
    assert (facts.cores, facts.installed_cores) == (1, os.cpu_count())


@pytest.mark.parametrize(
    ("cpuinfo", "instructions"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n",
            ("avx512_vnni",),
        ),
        ("flags\t\t: avx2 avx_vnni avx512_vnni amx_int8\n", ("avx512_vnni", "avx_vnni", "amx_int8")),
        ("flags\t\t: avx2 fma avx512_vnni_not\n", ()),
        ("Features\t: fp asimd asimddp\n", ()),
        ("", ()),
    ],
)
def test_what_multiplies_int8_is_read_and_decides_what_weights_are_held_in(
    tmp_path: Path, cpuinfo: str, instructions: tuple[str, ...]
) -> None:
    facts = read_facts(Devices(), _write(tmp_path, {"proc/cpuinfo": cpuinfo}))
    assert facts.instructions == instructions
    assert decide(facts, Request(("whisper",))).fast_dtype == ("int8" if instructions else "float32")
    assert Facts.from_json(facts.to_json()) == facts


@pytest.mark.parametrize(
    ("files", "container"),
    [
        ({}, ""),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": 'engine="podman-5.0"\n'}, "podman"),
        ({"run/systemd/container": "lxc\n"}, "lxc"),
        ({"run/systemd/container": "wsl\n"}, ""),
        ({"proc/self/cgroup": "4:memory:/kubepods/pod1/2\n"}, "kubernetes"),
        ({"run/secrets/kubernetes.io/token": "", ".dockerenv": ""}, "kubernetes"),
        ({"proc/self/cgroup": "0::/user.slice\n"}, ""),
    ],
)
def test_a_container_is_known_by_its_traces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], container: str
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("container", raising=False)
    assert read_facts(Devices(), _write(tmp_path, files)).container == container


@pytest.mark.parametrize(
    ("release", "wsl"),
    [("5.15.153.1-microsoft-standard-WSL2\n", True), ("4.4.0-19041-Microsoft\n", True), ("6.8.0-generic\n", False)],
)
def test_wsl_is_known_by_its_kernel(tmp_path: Path, release: str, wsl: bool) -> None:
    assert read_facts(Devices(), _write(tmp_path, {"proc/sys/kernel/osrelease": release})).wsl is wsl


def test_the_facts_of_this_machine_are_read_without_torch_and_can_be_written_and_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "import sys; from prefork.platform_matrix.facts import read_facts\n"
        "print(sys.platform, read_facts().to_json()); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    system, _, text = done.stdout.partition(" ")
    facts = Facts.from_json(text)
    assert facts.system == {"win32": "windows"}.get(system, system)
    assert (facts.cores, facts.initialised) == (count_usable_cores(), ())
    assert 0 < facts.available <= facts.memory <= facts.installed_memory


WORDS = st.text(st.characters(exclude_categories=("C", "Z")), max_size=8)
SIZES = st.integers(1, MOST_BYTES)
DEVICES = st.builds(
    lambda free, more, **rest: Device(memory=min(MOST_BYTES, free + more), free=free, **rest),
    free=st.integers(0, MOST_BYTES),
    more=SIZES,
    kind=st.sampled_from(KINDS),
    name=WORDS,
    capability=WORDS,
    uuid=WORDS,
    mig=st.booleans(),
    mode=st.sampled_from(MODES),
    busy=WORDS,
    visible=WORDS,
)


@st.composite
def machines(draw: st.DrawFn) -> Facts:
    available, memory, installed = sorted(draw(st.tuples(SIZES, SIZES, SIZES)))
    cores, installed_cores = sorted(draw(st.tuples(st.integers(1, 1024), st.integers(1, 1024))))
    system = draw(st.sampled_from(SYSTEMS))
    kinds = st.lists(st.sampled_from(KINDS), max_size=3).map(tuple)
    present = draw(st.lists(DEVICES, max_size=3).map(tuple))
    return replace(
        FACTS,
        system=system,
        release=draw(WORDS),
        start_methods=draw(st.sampled_from([("spawn",), ("fork", "spawn", "forkserver")])),
        cores=cores,
        installed_cores=installed_cores,
        memory=memory,
        installed_memory=installed,
        available=available,
        container=draw(WORDS),
        wsl=system == "linux" and draw(st.booleans()),
        initialised=draw(kinds),
        devices=Devices(draw(WORDS), draw(kinds), present, draw(WORDS), draw(WORDS)),
    )


@given(machines())
def test_every_machine_survives_being_written_and_read(facts: Facts) -> None:
    assert Facts.from_json(facts.to_json()) == facts


def test_what_has_a_default_may_be_missing() -> None:
    content = json.loads(FACTS.to_json())
    for name in ("container", "wsl", "initialised", "devices"):
        del content[name]
    assert Facts.from_json("\ufeff" + json.dumps(content)) == replace(FACTS, container="", devices=Devices())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"memory": -1}, "memory is -1, not from 1 to 68719476736"),
        ({"cores": 0}, "cores is 0, not from 1 to 16"),
        ({"cores": 17}, "cores is 17, not from 1 to 16"),
        ({"installed_cores": 1 << 40}, "installed_cores is 1099511627776"),
        ({"installed_memory": 10**400}, "installed_memory is 1000"),
        ({"available": (16 << 30) + 1}, "available is 17179869185, not from 0 to 17179869184"),
        ({"cores": 8.0}, "cores is 8.0, not a whole number"),
        ({"cores": True}, "cores is True, not a whole number"),
        ({"cores": float("nan")}, "cores is nan, not a whole number"),
        ({"cores": "8"}, "cores is '8', not a whole number"),
        ({"wsl": 1}, "wsl is 1, not true or false"),
        ({"python": None}, "python is None, not a string"),
        ({"release": "\ud800"}, "release is '\\ud800', with characters that cannot be printed"),
        ({"release": "\x1b[2J"}, "release is '\\x1b[2J', with characters that cannot be printed"),
        ({"system": "beos"}, "system has 'beos', none of linux, darwin, windows"),
        ({"system": "linux" * 999}, "system has 'linux"),
        ({"system": "windows", "wsl": True}, "wsl is true, but system is 'windows'"),
        ({"start_methods": []}, "start_methods is empty"),
        ({"start_methods": "fork"}, "start_methods is 'fork', not a list"),
        ({"start_methods": ["fork", 1]}, "start_methods[1] is 1, not a string"),
        ({"initialised": ["tpu"]}, "initialised has 'tpu', none of cuda, rocm, mps"),
        ({"devices": []}, "devices is [], not an object"),
        ({"devices": {"built": ["tpu"]}}, "devices.built has 'tpu', none of cuda, rocm, mps"),
        ({"devices": {"present": [{"kind": "cuda"}]}}, "devices.present[0].name is missing"),
        (
            {"devices": {"present": [{"kind": "tpu", "name": "v5", "memory": 2, "free": 1}]}},
            "devices.present[0].kind is 'tpu', none of cuda, rocm, mps",
        ),
        (
            {"devices": {"present": [{"kind": "cuda", "name": "H200", "memory": 2, "free": 1, "mode": "shut"}]}},
            "devices.present[0].mode is 'shut', none of '', 'exclusive', 'prohibited'",
        ),
        (
            {"devices": {"present": [{"kind": "cuda", "name": "H200", "memory": 2, "free": 3}]}},
            "devices.present[0].free is 3, not from 0 to 2",
        ),
        ({"threads": 4}, "threads is not a field; fields are system, release"),
    ],
)
def test_an_absurd_file_is_refused_with_field_reason_and_remedy(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(FactsError) as caught:
        Facts.from_json(json.dumps({**json.loads(FACTS.to_json()), **change}), "other.json")
    message = str(caught.value)
    assert message.startswith(f"other.json: {reason}")
    assert "prefork matrix --json" in message
    assert len(message) < 600


@pytest.mark.parametrize("name", ["system", "cores", "memory", "start_methods"])
def test_a_missing_field_is_named(name: str) -> None:
    content = json.loads(FACTS.to_json())
    del content[name]
    with pytest.raises(FactsError, match=f"^facts: {name} is missing"):
        Facts.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("cores: 8", "is not JSON"),
        ("[]", r"the content is \[\], not an object"),
        ("null", "the content is None, not an object"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"cores": ' + "9" * 5000 + "}", "limit"),
    ],
    ids=range(6),
)
def test_what_is_no_description_at_all_is_refused(text: str, reason: str) -> None:
    with pytest.raises(FactsError, match=reason):
        Facts.from_json(text)
