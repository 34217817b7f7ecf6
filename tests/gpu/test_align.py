"""The recordings that come with prefork, aligned on a GPU by every strategy: as the CPU aligns them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.gpu.machine import DEVICES, STAND_IN, STRATEGIES, count_gpus, list_mig
from tests.prefork.command import SAMPLES, run

Words = dict[str, list[tuple[str, float, float]]]  # by recording: text, start and end in seconds
_FEW = 0.05  # of the words
_FAR = 0.005  # seconds, of all words on average
_NAMES = {"adult00", "adult07", "child14", "child15"}


def _align(target: Path, *options: object) -> Words:
    command = ("align", SAMPLES, target, "--format", "json", "--utr", "off", "--workers", 2, *options)
    done = run(*command, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    documents = {path.stem: json.loads(path.read_text()) for path in target.glob("*.json")}
    assert documents.keys() == _NAMES
    return {
        name: [(w["text"], w["start"], w["end"]) for u in document["utterances"] for w in u["words"]]
        for name, document in documents.items()
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Words:
    return _align(tmp_path_factory.mktemp("cpu"), "--devices", "cpu")


def _compare(found: Words, expected: Words, title: str) -> None:
    pairs = [(a, b) for name in expected for a, b in zip(found[name], expected[name], strict=True)]
    assert [a[0] for a, _ in pairs] == [b[0] for _, b in pairs]
    off = [max(abs(a[1] - b[1]), abs(a[2] - b[2])) for a, b in pairs]
    other = sum(distance > 0 for distance in off)
    print(f"\n{title}: of {len(pairs)} words {other} have other times than on the CPU, by at most {max(off):.3f} s")
    assert other <= _FEW * len(pairs)  # where two paths are as good, rounding chooses
    assert sum(off) <= _FAR * len(pairs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_word_times_are_those_of_the_cpu(strategy: str, expected: Words, tmp_path: Path) -> None:
    found = _align(tmp_path, "--devices", ",".join(DEVICES), "--strategy", strategy)
    [log] = (tmp_path / "performance_logs").glob("*.performance.json")
    content = json.loads(log.read_text())
    assert content["strategy"] == strategy
    assert content["device"] == ("cpu" if STAND_IN else "cuda")
    said = f"TF32 {content['tf32']}, GPU {content['gpu']}"
    _compare(found, expected, f"{strategy}, {content['audio_seconds_per_second']:.0f} audio seconds/s, {said}")


@pytest.mark.skipif(count_gpus() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["server", "ipc"])
def test_two_gpus_share_the_work(strategy: str, expected: Words, tmp_path: Path) -> None:
    found = _align(tmp_path, "--devices", "cuda:0,cuda:1", "--strategy", strategy)
    _compare(found, expected, f"{strategy} on two GPUs")


@pytest.mark.skipif(not list_mig(), reason="needs a MIG instance")
def test_a_mig_instance_is_used_by_its_uuid(expected: Words, tmp_path: Path) -> None:
    name: Sequence[str] = list_mig()[:1]
    _compare(_align(tmp_path, "--devices", name[0]), expected, f"server on {name[0]}")
