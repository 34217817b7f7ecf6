"""The memory log: what is written is read again, whatever has happened to the file; its figures, and its picture."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from prefork.cli.app import app
from prefork.cli.memlog_picture import draw_picture, pile_up, show_figures
from prefork.engines.base import InputError
from prefork.memory.figures import follow, list_throttled, sum_up
from prefork.memory.memlog import Event, MemoryLog, read_log

MB = 1_000_000
COMMON: dict[str, Any] = {"engine": "ctc", "model": "tiny", "dtype": "float32", "strategy": "fork"}
START = 1_700_000_000.0


def _ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["memlog", *map(str, arguments)], env={"COLUMNS": "80"})


def _write(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def _sample(seconds: float, process: str, pss: int, uss: int, **more: Any) -> Event:
    return Event(START + seconds, "sample", process=process, pss=pss * MB, uss=uss * MB, **more)


def _complete(file: str, predicted: int | None, peak: int | None, audio: float = 60.0, **more: Any) -> Event:
    sizes: dict[str, Any] = {"predicted": predicted and predicted * MB, "peak": peak and peak * MB}
    return Event(START, "complete", file=file, audio=audio, **sizes, **{"engine": "ctc", **more})


def write_run(
    path: Path, workers: int = 4, seconds: float = 240.0, limit: int = 4_000 * MB, samples: int = 600
) -> Path:
    """A log as a run writes it: in rounds of samples, workers do their tasks; memory gets short, one of them is ended,
    a task fails, and the pool grows again. The same log each time."""
    chance = random.Random(workers)
    log = MemoryLog(path, **COMMON)
    weights, libraries, step = 1_260 * MB, 420 * MB, seconds / samples
    log.write("start", time=START, weights=weights, workers=workers, limit=limit, available=limit)
    busy: dict[int, tuple[float, float, int, str]] = {}  # by slot: begin, end, peak, file
    gone = workers - 1
    for number in range(samples):
        now = START + number * step
        share = number / samples
        slots = [slot for slot in range(workers) if slot != gone or not 0.55 <= share < 0.8]
        if number == int(0.45 * samples):
            log.write("throttle", time=now, reason="0.30 GB available, less than the reserve of 0.60 GB")
        if number == int(0.55 * samples):
            log.write("shrink", time=now, process=f"worker {gone}", workers=workers - 1, reason="memory is short")
            log.write("fail", time=now, process=f"worker {gone}", file="long.cha", reason="its worker was ended")
        if number == int(0.6 * samples):
            log.write("throttle", time=now, reason="over")
        if number == int(0.8 * samples):
            log.write("grow", time=now, workers=workers)
        used = {}
        for slot in slots:
            begin, end, peak, file = busy.get(slot, (now, now, 0, ""))
            if file and now >= end:
                predicted = int(peak * chance.lognormvariate(0.05, 0.12))
                sizes: dict[str, Any] = {"predicted": predicted, "peak": peak, "audio": 60.0, "segment": peak / MB / 30}
                log.write("complete", time=now, process=f"worker {slot}", file=file, task="run", **sizes)
            if now >= end and not 0.45 <= share <= 0.6:
                length = chance.uniform(0.04, 0.12) * seconds
                peak = int(chance.lognormvariate(5.4, 0.4) * MB)
                begin, end, file = now, now + length, f"folder/{number:03}-{slot}.cha"
                busy[slot] = (begin, end, peak, file)
                log.write("admit", time=now, process=f"worker {slot}", file=file, task="run", predicted=peak)
            elif now >= end:
                busy.pop(slot, None)
            grown = min(1.0, 3 * (now - begin) / (end - begin)) if now < end else 0.0
            used[slot] = int(40 * MB + grown * peak)
        total = weights + libraries + 60 * MB + sum(used.values())
        sizes = {"available": max(0, limit - total), "limit": limit, "pressure": 0.0}
        part = (weights + libraries) // (len(slots) + 1)
        log.write("sample", time=now, process="supervisor", pss=60 * MB, uss=60 * MB, **sizes)
        log.write("sample", time=now + 1e-4, process="zygote", pss=part + 5 * MB, uss=5 * MB, **sizes)
        for slot, uss in used.items():
            when = now + 1e-4 * (slot + 2)
            log.write("sample", time=when, process=f"worker {slot}", pss=part + uss, uss=uss, **sizes)
    log.write("end", time=START + seconds)
    log.close()
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("out") / "performance_logs" / "run.memory.jsonl")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.memory.jsonl"
    log = MemoryLog(path, **COMMON)
    log.write("start", time=START, weights=1_260_000_000, workers=2, limit=4_000_000_000)
    log.write("complete", file="a\udcff\n.cha", task="run", audio=61.5, predicted=7, peak=8, dtype="int8", reason=None)
    log.close()
    first, second = read_log(path).events
    assert first == Event(START, "start", weights=1_260_000_000, workers=2, limit=4_000_000_000, **COMMON)
    assert second.time > START
    assert (second.file, second.audio, second.peak, second.dtype) == ("a\udcff\n.cha", 61.5, 8, "int8")
    assert set(json.loads(path.read_text().splitlines()[0])) == {
        "time",
        "event",
        "weights",
        "workers",
        "limit",
        *COMMON,
    }


def test_every_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MemoryLog(tmp_path / "a.memory.jsonl")
    log.write("start")
    assert [event.event for event in read_log(log.path).events] == ["start"]
    log.close()


def test_a_torn_last_line_is_dropped_and_does_not_swallow_what_the_next_run_writes(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.memory.jsonl", {"time": 1.0, "event": "start"}, {"time": 2.0, "event": "end"})
    path.write_bytes(path.read_bytes()[:-5])
    torn = read_log(path)
    assert [event.time for event in torn.events] == [1.0]
    assert torn.skipped == {"torn last line": 1}
    log = MemoryLog(path)
    log.write("start", time=3.0)
    log.close()
    assert [event.time for event in read_log(path).events] == [1.0, 3.0]


def test_foreign_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.memory.jsonl"
    lines = [
        b'{"time": 1, "event": "start", "colour": "grey", "numa": 1, "peak": null}',
        b'{"time": 2, "event": "migrate"}',
        b"Traceback (most recent call last):",
        b"\xff\xfe\x00",
        b"[" * 20_000,
        b"x" * 200_000,
        b"[1, 2]",
        b'{"time": NaN, "event": "sample"}',
        b'{"time": 1, "event": "sample", "pss": "much"}',
        b'{"time": 1, "event": "sample", "pss": -1}',
        b'{"time": 1, "event": "sample", "process": true}',
        b'{"event": "sample"}',
        b"",
        b'{"time": 3, "event": "end"}',
    ]
    path.write_bytes(b"\n".join(lines))
    log = read_log(path)
    assert [(event.time, event.event) for event in log.events] == [(1.0, "start"), (3.0, "end")]
    skipped = dict(log.skipped)
    assert skipped.pop("not JSON") >= 4
    assert skipped == {"unknown field": 2, "unknown event": 1, "not an event": 6}
    done = _ask(path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert sum(line.startswith("skipped in the log: ") for line in done.stdout.splitlines()) == 1


def test_what_is_no_log_is_refused_with_its_name_the_reason_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "json").write_text('{"event": "done", "id": "a.cha"}\n')
    (tmp_path / "folder" / "performance_logs").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "empty": "is empty",
        "binary": "has no line that is an event",
        "text": "has no line that is an event",
        "json": "has no line that is an event",
        "folder": "contains no memory log",
        "nothing": "No such file",
        "text/in it": "Not a directory",
        "pipe": "is not a regular file",
    }.items():
        with pytest.raises(InputError) as refused:
            read_log(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name}: {reason}"), name
        assert str(refused.value).endswith("; give a file *.memory.jsonl, or the OUT of a run that wrote one"), name


def test_a_folder_stands_for_its_newest_log(tmp_path: Path) -> None:
    logs = tmp_path / "performance_logs"
    logs.mkdir()
    for age, path in enumerate([logs / "b.memory.jsonl", tmp_path / "a.memory.jsonl", logs / "a.memory.jsonl"]):
        _write(path, {"time": float(age), "event": "start"})
        os.utime(path, (START - age, START - age))
    (logs / "newer.jsonl").write_text("{}")
    assert read_log(tmp_path).path == logs / "b.memory.jsonl"
    os.utime(tmp_path / "a.memory.jsonl", (START + 1, START + 1))
    assert read_log(tmp_path).path == tmp_path / "a.memory.jsonl"
    assert read_log(logs).path == logs / "b.memory.jsonl"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: a full disk cannot be had")
def test_a_full_disk_is_told_once_and_ends_nothing() -> None:
    notices: list[str] = []
    log = MemoryLog(Path("/dev/full"), notice=notices.append, **COMMON)
    for _ in range(3):
        log.write("sample", process="worker 0")
    log.close()
    assert len(notices) == 1
    assert notices[0].startswith("/dev/full: No space left on device; the run continues")


def test_a_line_that_fits_only_in_part_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.memory.jsonl"
    code = (
        "import resource; from pathlib import Path; from prefork.memory.memlog import MemoryLog\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"log = MemoryLog(Path({str(path)!r}), notice=print)\n"
        "log.write('start', time=1.0); log.write('fail', reason='x' * 200); print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[0].startswith(f"{path}: No space left on device; "), done.stderr
    assert done.stdout.splitlines()[1:] == ["still here"]
    assert read_log(path).skipped == {"torn last line": 1}


def test_a_place_that_cannot_be_written_to_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notices: list[str] = []
    for path in (tmp_path / "file" / "a.memory.jsonl", tmp_path):
        log = MemoryLog(path, notice=notices.append)
        log.write("start")
        log.close()
    assert [notice.split(";")[0] for notice in notices] == [
        f"{tmp_path / 'file'}: File exists",
        f"{tmp_path}: Is a directory",
    ]


def test_predicted_and_measured_peaks_are_compared_by_engine() -> None:
    events = [
        _complete("a", 100, 80),  # 20 % below: within
        _complete("a", 100, 121, segment=9.0),  # above, and beyond
        _complete("b", 200, 201, audio=30.0),  # above, within
        _complete("c", 400, 300),
        _complete("d", 100, 300, engine="other", dtype="int8"),
        _complete("e", None, 900),
        _complete("f", 100, None),
        Event(START, "fail", file="g", predicted=10 * MB, peak=950 * MB),
    ]
    figures = sum_up(events)
    assert (figures.engine, figures.dtype, figures.model) == ("ctc, other", "int8", None)
    assert (figures.completed, figures.fails) == (7, 1)
    ctc, other = figures.engines
    assert (ctc.engine, ctc.tasks, ctc.audio) == ("ctc", 4, 150.0)
    predicted, measured = ctc.predicted, ctc.measured
    assert (predicted.median, predicted.percentile95, predicted.largest) == (150 * MB, 400 * MB, 400 * MB)
    assert (measured.median, measured.percentile95, measured.largest) == (161 * MB, 300 * MB, 300 * MB)
    assert (ctc.within20, ctc.above) == (0.5, 0.5)
    assert (ctc.worst.file, ctc.worst.segment, ctc.worst.measured) == ("a", 9.0, 121 * MB)
    assert (other.tasks, other.dtype, other.within20, other.above) == (1, "int8", 0.0, 1.0)
    assert [(peak.file, peak.measured // MB) for peak in figures.files] == [
        ("g", 950), ("e", 900), ("c", 300), ("d", 300), ("b", 201),
    ]  # fmt: skip


def test_the_95th_percentile_is_a_peak_that_19_of_20_do_not_exceed() -> None:
    figures = sum_up([_complete(str(peak), 100, peak) for peak in range(20, 0, -1)])
    assert figures.engines[0].measured.percentile95 == 19 * MB


def test_the_run_is_summed_up() -> None:
    events = [
        Event(START, "start", workers=2, weights=700 * MB, limit=4000 * MB, available=3000 * MB, strategy="fork"),
        _sample(1, "zygote", 400, 10),
        _sample(1, "worker 0", 300, 100, available=2500 * MB),
        _sample(2, "worker 1", 500, 200, limit=3500 * MB),
        Event(START + 3, "throttle", reason="short"),
        Event(START + 4, "shrink", process="worker 1", workers=1),
        Event(START + 5, "throttle", reason="still short"),
        _sample(6, "worker 0", 600, 400),
        Event(START + 7, "throttle", reason="over"),
        Event(START + 8, "throttle", reason="short"),
        Event(START + 10, "admit"),
        Event(START + 12, "end"),
        Event(START + 1000, "start", workers=3),
        Event(START + 1003, "throttle", reason="short"),
        _sample(1004, "worker 0", 100, 100),
    ]
    figures = sum_up(events)
    assert figures.peak_total == 1200 * MB  # 400 + 300 + 500; later 400 + 600, then 100: none of it across the runs
    assert (figures.runs, figures.seconds, figures.workers) == (2, 16.0, 3)
    assert (figures.weights, figures.limit, figures.lowest_available) == (700 * MB, 3500 * MB, 2500 * MB)
    assert (figures.shrinks, figures.throttled_seconds, figures.strategy) == (1, 4.0 + 2.0 + 1.0, "fork")
    assert list_throttled(events)[:2] == [(START + 3, START + 7), (START + 8, START + 10)]


def test_a_log_of_a_start_alone_has_no_figures() -> None:
    figures = sum_up([Event(START, "start")])
    assert (figures.peak_total, figures.seconds, figures.engines, figures.files) == (None, 0.0, [], [])


def _follow(*events: Event) -> list[tuple[float, dict[str, int]]]:
    states = follow([Event(START, "start"), *events, Event(START + 100, "end")])
    return [(round(when - START, 3), {name: e.share // MB for name, e in now.items()}) for when, now in states]


def test_processes_that_are_measured_one_after_the_other_are_one_state() -> None:
    samples = (_sample(1, "worker 0", 9, 1), _sample(1.01, "worker 1", 1, 1))
    later = (_sample(2, "worker 0", 1, 1), _sample(2.01, "worker 1", 9, 1))
    assert _follow(*samples, *later) == [
        (0, {}),
        (1, {"worker 0": 9, "worker 1": 1}),
        (2, {"worker 0": 1, "worker 1": 9}),
        (100, {}),
    ]


def test_a_worker_that_is_replaced_counts_from_its_first_sample() -> None:
    states = _follow(_sample(1, "worker 0", 900, 900), Event(START + 2, "fail"), _sample(3, "worker 0", 50, 50))
    assert states == [(0, {}), (1, {"worker 0": 900}), (3, {"worker 0": 50}), (100, {})]


def test_a_worker_whose_samples_are_missing_has_ended_and_a_zygote_has_not() -> None:
    beats = [_sample(second, "supervisor", 5, 5) for second in range(10, 60, 10)]
    states = _follow(_sample(10, "worker 0", 70, 70), _sample(10, "zygote", 8, 8), *beats)
    assert states[1] == (10, {"worker 0": 70, "zygote": 8, "supervisor": 5})
    assert [(when, sorted(now)) for when, now in states[2:]] == [
        (20, ["supervisor", "worker 0", "zygote"]),
        (30, ["supervisor", "worker 0", "zygote"]),
        (40, ["supervisor", "zygote"]),
        (50, ["supervisor", "zygote"]),
        (100, []),
    ]


def test_rare_samples_of_everybody_end_nobody() -> None:
    samples = [_sample(second, name, 5, 5) for second in (1, 45, 90) for name in ("supervisor", "worker 0")]
    assert [sorted(now) for _, now in _follow(*samples)] == [[], *[["supervisor", "worker 0"]] * 3, []]


def test_the_stack_has_the_weights_below_and_each_workers_own_above() -> None:
    stack = pile_up(
        [
            Event(START, "start", weights=700 * MB),
            _sample(0, "zygote", 400, 10),
            _sample(0, "worker 0", 400, 100),
            _sample(0, "worker 10", 450, 150),
            _sample(0, "worker 9", 100, 100),
            _sample(5, "worker 9", 30, 40),  # as no kernel says it
            Event(START + 10, "end"),
        ]
    )
    assert [when - START for when in stack.times] == [0, 5, 10]
    assert list(stack.workers) == ["worker 0", "worker 9", "worker 10"]
    assert [size // MB for size in stack.workers["worker 9"]] == [100, 30, 0]
    assert [size // MB for size in stack.weights] == [700, 700, 0]
    assert [size // MB for size in stack.rest] == [300, 300, 0]  # 400 + 400 + 450 + 100 - 350 - 700
    for column, when in enumerate(stack.times[:2]):
        everything = [stack.weights, stack.rest, *stack.workers.values()]
        assert sum(band[column] for band in everything) == (1350 - 70 * (when > START)) * MB


def test_a_long_run_is_drawn_from_fewer_states_that_keep_its_peak_and_its_end(tmp_path: Path) -> None:
    samples = [_sample(second, "worker 0", 5000 if second == 777 else 10, 10) for second in range(5000)]
    stack = pile_up([Event(START, "start"), *samples, Event(START + 5000, "end")])
    assert len(stack.times) < 1000
    peaks = [when - START for when, size in zip(stack.times, stack.rest, strict=True) if size]
    assert len(peaks) == 1 and abs(peaks[0] - 777) < 5000 / 800
    assert stack.workers["worker 0"][-2:] == [10 * MB, 0]


@pytest.mark.dependencies
def test_the_command_shows_figures_and_draws(log: Path, tmp_path: Path) -> None:
    done = _ask(log.parent.parent, "--picture", tmp_path / "a.png")
    assert (done.exit_code, done.stderr) == (0, "")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines() if line}
    assert rows["log"] == str(log)
    assert rows["weights"] == "1.26 GB"
    assert rows["limit"] == "4.00 GB"
    assert rows["time"] == "4:00"
    assert rows["throttled"] == "0:36"
    assert rows["shrinks"] == "1"
    assert rows["tasks"].endswith("completed, 1 failed")
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith(("log", "worst")))
    assert "worst prediction for ctc float32: " in done.stdout
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width >= 1500


def test_json_has_the_same_figures(log: Path) -> None:
    done = _ask(log, "--json")
    figures = sum_up(read_log(log).events)
    found = json.loads(done.stdout)
    assert (found["log"], found["skipped"]) == (str(log), {})
    assert found["peak_total"] == figures.peak_total
    assert found["engines"][0]["measured"]["median"] == figures.engines[0].measured.median
    assert found["files"][0]["file"] == figures.files[0].file


def test_bad_files_and_pictures_are_told_in_one_line(log: Path, tmp_path: Path) -> None:
    bare = _write(tmp_path / "bare", {"time": 1.0, "event": "start"})
    for arguments, reason in (
        ((tmp_path / "no",), f"{tmp_path / 'no'}: No such file"),
        ((tmp_path,), f"{tmp_path}: contains no memory log"),
        ((log, "--picture", "a.pdf"), "a.pdf: pictures are PNG or SVG; give a name that ends in .png or .svg"),
        ((log, "--picture", tmp_path / "no" / "a.svg"), "No such file or directory; give another path"),
        ((bare, "--picture", tmp_path / "a.svg"), "has no memory samples to draw"),
    ):
        done = _ask(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), reason
        assert done.stderr.startswith("prefork: ") and reason in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "a.svg").exists()


def test_without_matplotlib_a_picture_says_what_to_install(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = read_log(log)
    with pytest.raises(InputError, match=r'needs matplotlib: pip install "matplotlib'):
        draw_picture(found, sum_up(found.events), tmp_path / "a.png")


def _draw_svg(path: Path) -> list[str]:
    """The texts of the picture."""
    log = read_log(path)
    picture = path.with_suffix(".svg")
    draw_picture(log, sum_up(log.events), picture)
    root = ElementTree.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.dependencies
def test_an_svg_names_every_worker_the_limit_and_what_happened(log: Path) -> None:
    texts = _draw_svg(log)
    for text in (*(f"worker {slot}" for slot in range(4)), "shared weights", "limit 4.00 GB", "available"):
        assert text in texts
    for text in ("throttled", "shrink (1)", "fail (1)", "time (min)", "memory (GB)"):
        assert text in texts
    assert any("ctc" in text and "tiny" in text and "4 workers" in text for text in texts)


def test_many_workers_share_one_entry_and_a_limit_out_of_sight_is_a_text(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a.memory.jsonl", workers=64, limit=999_000 * MB, samples=30)
    texts = " ".join(_draw_svg(path))
    assert "worker 0 (dark) to worker 63 (light)" in texts
    assert "worker 31" not in texts
    assert "limit 999.00 GB, far above this picture" in texts


def test_no_name_breaks_the_table_or_the_picture(tmp_path: Path) -> None:
    name = "a$b_{$ \\x [red]" + "\n\udcff" + "long" * 40
    path = tmp_path / "a.memory.jsonl"
    log = MemoryLog(path, engine=name, model=name)
    log.write("sample", time=START, process="worker", pss=MB, uss=MB)
    log.write("complete", time=START, file=name, predicted=MB, peak=MB)
    log.close()
    found = read_log(path)
    shown = io.StringIO()
    show_figures(Console(file=shown, width=80), found, sum_up(found.events))
    assert "[red]\\n\\udcff" in "".join(shown.getvalue().split())
    assert any("a$b_{$" in text for text in _draw_svg(path))


def test_drawing_leaves_no_state_behind(log: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from prefork.cli.app import app\n"
        f"try: app(['memlog', {str(log)!r}, '--json', '--picture', {str(tmp_path / 'a.svg')!r}])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "import matplotlib\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
        "assert matplotlib.rcParams['svg.fonttype'] == matplotlib.rcParamsDefault['svg.fonttype'] == 'path'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
