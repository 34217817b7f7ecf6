"""The aligner with its real weights on real speech, and with small models made here."""

from __future__ import annotations

import dataclasses
import json
import pickle
import statistics
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import HubertConfig, HubertForCTC, Wav2Vec2Config, Wav2Vec2ForCTC

from prefork.engines.alignment.forced_aligner import keep_apart, keep_order
from prefork.engines.base import InputError, Job, LoadError, Segment
from prefork.engines.ctc.aligner import EMBEDDED, MOST_BYTES, CTCAligner
from prefork.engines.text import formats
from prefork.engines.text.document import Document, Timing, Utterance, Word
from prefork.fingerprint import complete, note_files
from tests.prefork.command import SAMPLES

pytestmark = pytest.mark.dependencies

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
WORDS = ["And", "so", "my", "fellow", "Americans"]  # all of the three seconds of speech that come with the model
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
}


@pytest.fixture(scope="module")
def speech() -> np.ndarray[Any, np.dtype[np.float32]]:
    return load_file(EMBEDDED / "check.safetensors")["waveform"].numpy()


@pytest.fixture(scope="module")
def aligner() -> CTCAligner:
    engine = CTCAligner()
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def model(aligner: CTCAligner) -> Any:
    return aligner.load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write_job(folder: Path, samples: Any, transcript: str, suffix: str = ".txt", name: str = "talk") -> Job:
    source, media = folder / f"{name}{suffix}", folder / f"{name}.wav"
    source.write_text(transcript, encoding="utf-8")
    with wave.open(str(media), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    return Job(source.name, source, media, seconds=len(samples) / 16_000)


def write_chat(*lines: tuple[str, int | None, int | None]) -> str:
    """A CHAT transcript; times in milliseconds."""
    head = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tPAR Participant\n@ID:\teng|x|PAR|||||Participant|||\n"
    body = [f"*PAR:\t{text} ." + (f" \x15{start}_{end}\x15" if start is not None else "") for text, start, end in lines]
    return head + "\n".join(body) + "\n@End\n"


def split(engine: CTCAligner, job: Job) -> list[Segment]:
    return engine.split(job, formats.read(job.source))


@torch.inference_mode()
def align(engine: CTCAligner, model: Any, job: Job) -> Document:
    """As a run does it: what goes from step to step is pickled."""
    segments = pickle.loads(pickle.dumps(split(engine, job)))
    outputs = [engine.infer(model, [engine.prepare(job, segment)])[0] for segment in segments]
    pieces = [engine.finish(job, *pair) for pair in zip(segments, outputs, strict=True)]
    return engine.join(job, formats.read(job.source), segments, pickle.loads(pickle.dumps(pieces)))


def test_words_that_nobody_says_get_a_low_confidence(
    aligner: CTCAligner, model: Any, folder: Path, speech: Any
) -> None:
    right = align(aligner, model, write_job(folder, speech, " ".join(WORDS)))
    assert right.warnings == ()
    text = "nobody in this world has ever spoken of purple elephants\nnor would we like to hear about them"
    wrong = align(aligner, model, write_job(folder, speech, text))
    assert [warning.partition(":")[0].partition(" (")[0] for warning in wrong.warnings[:2]] == [
        "utterance 1",
        "utterance 2",
    ]
    assert "low confidence (0." in wrong.warnings[0]
    assert "2 of 2 utterances have a low confidence; check that the transcript is of this recording" in wrong.warnings


def test_a_word_that_is_not_said_is_named(aligner: CTCAligner, model: Any, folder: Path, speech: Any) -> None:
    for wrong in ("elephants", "thousand"):
        text = " ".join(wrong if word == "fellow" else word for word in WORDS)
        (warning,) = align(aligner, model, write_job(folder, speech, text)).warnings
        assert "low confidence (0.0" in warning and f"in: {wrong}; check text and times" in warning
    words = list_words(align(aligner, model, write_job(folder, speech, " ".join(WORDS))))
    assert min(word.score or 0 for word in words) > 0.5


def test_words_follow_one_another_and_their_phones_fill_them(
    aligner: CTCAligner, model: Any, folder: Path, speech: Any
) -> None:
    words = list_words(align(aligner, model, write_job(folder, speech, " ".join(WORDS))))
    assert [phone.text for phone in words[3].phones] == ["F", "EH", "L", "OW"]
    for word in words:
        assert (word.phones[0].start, word.phones[-1].end) == (word.start, word.end)
        assert all(one.end == other.start for one, other in pairwise(word.phones))


_TIMES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8)


@given(_TIMES, st.data())
def test_utterances_that_were_in_order_begin_in_order(times: list[tuple[int, int]], data: st.DataObject) -> None:
    """Whatever comes out; the ends and the order of the transcript stay."""
    before = [Utterance("a", (), start=float(a), end=float(a + b)) for a, b in sorted(times)]
    moved = data.draw(st.lists(st.tuples(*[st.integers(0, 50)] * 2), min_size=len(times), max_size=len(times)))
    after = [Utterance("a", (), start=float(a), end=float(a + b)) for a, b in moved]
    ordered = keep_order(before, after)
    starts = [utterance.start for utterance in ordered]
    assert starts == sorted(starts, key=lambda start: start or 0.0)
    assert [utterance.end for utterance in ordered] == [utterance.end for utterance in after]
    assert all((one.start or 0.0) <= (other.start or 0.0) for one, other in zip(ordered, after, strict=True))


def test_an_order_that_the_transcript_has_otherwise_stays() -> None:
    found = [Utterance("a", (), start=3.0, end=4.0), Utterance("b", (), start=1.0, end=2.0)]
    assert keep_order(found, found) == found


@pytest.mark.parametrize("sample", ["child15", "adult07"])
def test_an_output_that_is_aligned_again_stays_as_it_is(
    aligner: CTCAligner, model: Any, sample: str, tmp_path: Path
) -> None:
    source, media = tmp_path / f"{sample}.cha", SAMPLES / f"{sample}.flac"
    source.write_bytes((SAMPLES / source.name).read_bytes())
    outputs = []
    for _ in range(2):
        outputs.append(formats.render(align(aligner, model, Job(sample, source, media)), "chat"))
        source.write_text(outputs[-1])
    assert outputs[0] == outputs[1] and outputs[0] != (SAMPLES / source.name).read_text()


def test_words_in_a_bullet_that_is_much_too_wide_are_where_they_are_in_the_right_one(
    aligner: CTCAligner, model: Any, tmp_path: Path
) -> None:
    """Without a stage that looks for utterances before, as with --utr off."""
    lines = [line for line in (SAMPLES / "child15.cha").read_text().splitlines() if line.startswith("*")]
    texts = [line.partition("\t")[2].partition(" .")[0] for line in lines]
    source = tmp_path / "a.cha"
    times = []
    for bullet in [(3500, 6500), (0, 33000)]:
        source.write_text(write_chat((texts[1], *bullet)))
        found = list_words(align(aligner, model, Job("a", source, SAMPLES / "child15.flac")))
        times.append([(word.start, word.end) for word in found])
    assert times[0] == times[1] and texts[1] == "every one loves her"


def list_words(document: Document) -> list[Word]:
    return [word for utterance in document.utterances for word in utterance.words]


def assert_in_order(words: list[Word], seconds: float) -> None:
    edges = [time for word in words for time in (word.start, word.end) if time is not None]
    assert len(edges) == 2 * len(words)
    assert edges[0] >= 0 and edges[-1] <= seconds
    assert all(a <= b for a, b in pairwise(edges))


def test_real_speech_is_aligned_word_by_word(aligner: CTCAligner, model: Any, speech: Any, folder: Path) -> None:
    document = align(aligner, model, write_job(folder, speech, " ".join(WORDS)))
    words = list_words(document)
    assert [word.text for word in words] == WORDS
    assert all(word.timing is Timing.ALIGNED and (word.score or 0) > 0.2 for word in words)
    assert all([c.text for c in word.characters] == list(word.text) for word in words)
    assert_in_order(words, 3.0)
    # The waveform's energy, in steps of 20 ms, falls by 10 dB where "my" (0.97 s) and "fellow" (1.24 s) begin.
    assert [words[2].start, words[3].start] == pytest.approx([0.97, 1.24], abs=0.1)
    (utterance,) = document.utterances
    assert (utterance.start, utterance.end) == (words[0].start, words[-1].end)
    assert document.seconds == 3.0 and not document.warnings


def test_words_of_a_synthesiser_are_found_where_it_spoke_them(aligner: CTCAligner, model: Any, folder: Path) -> None:
    data = SHARED / "data" / "aligned-tts"
    if not data.is_dir():
        pytest.skip("needs ../shared/data/aligned-tts, the synthesiser's own word times")
    truth = json.loads((data / "words.json").read_text(encoding="utf-8"))
    errors = []
    for name in sorted(truth)[:12]:
        source = folder / f"{name}.txt"
        source.write_text(" ".join(word["word"] for word in truth[name]), encoding="utf-8")
        document = align(aligner, model, Job(name, source, data / f"{name}.flac"))
        errors += [
            abs((word.start or 0) - known["start"])
            for word, known in zip(list_words(document), truth[name], strict=True)
        ]
    assert statistics.median(errors) < 0.025
    assert sum(error <= 0.1 for error in errors) / len(errors) > 0.93


def test_a_word_that_cannot_be_spelled_is_found_between_its_neighbours(
    aligner: CTCAligner, model: Any, speech: Any, folder: Path
) -> None:
    known = list_words(align(aligner, model, write_job(folder, speech, " ".join(WORDS))))
    hidden = list_words(align(aligner, model, write_job(folder, speech, "And so my שלום Americans", name="hidden")))
    assert [word.text for word in hidden] == ["And", "so", "my", "שלום", "Americans"]
    assert hidden[3].timing is Timing.WILDCARD
    assert [hidden[3].start, hidden[3].end] == pytest.approx([known[3].start, known[3].end], abs=0.08)


def test_a_timed_utterance_is_looked_for_near_its_times(
    aligner: CTCAligner, model: Any, speech: Any, folder: Path
) -> None:
    long = np.tile(speech, 3)
    chat = write_chat(("and so my fellow americans", 3400, 5600))
    document = align(aligner, model, write_job(folder, long, chat, ".cha"))
    alone = list_words(align(aligner, model, write_job(folder, speech, " ".join(WORDS), name="alone")))
    assert [word.start for word in list_words(document)] == pytest.approx(
        [(word.start or 0) + 3.0 for word in alone], abs=0.061
    )


def test_a_recording_longer_than_the_model_can_take_is_aligned_to_its_end(
    aligner: CTCAligner, model: Any, speech: Any, folder: Path
) -> None:
    rounds = 18
    transcript = "\n".join([" ".join(WORDS)] * rounds)
    document = align(aligner, model, write_job(folder, np.tile(speech, rounds), transcript))
    words = list_words(document)
    assert_in_order(words, 3.0 * rounds)
    starts = np.array([word.start for word in words]).reshape(rounds, len(WORDS)) - 3.0 * np.arange(rounds)[:, None]
    assert np.abs(starts[:, 2:4] - [0.97, 1.24]).max() < 0.1
    assert np.abs(starts - np.median(starts, axis=0)).max() < 0.25  # the first word comes out of a pause


def test_windows_leave_no_frame_out(aligner: CTCAligner, model: Any) -> None:
    for samples in (320_001, 384_000, 576_319, 704_321):
        with torch.inference_mode():
            (output,) = aligner.infer(model, [{"waveform": torch.zeros(samples)}])
        assert abs(len(output["log_probs"]) - samples / 320) <= 1, samples


def test_neighbours_do_not_draw_each_others_words(aligner: CTCAligner, model: Any, speech: Any, folder: Path) -> None:
    """The times of both lines reach half a second into the other's speech."""
    samples = np.tile(speech, 2)
    chat = write_chat(("and so my fellow americans", 0, 3400), ("and so my fellow americans", 3000, 6000))
    document = align(aligner, model, write_job(folder, samples, chat, ".cha"))
    first, second = ([word.start or 0 for word in u.words] for u in document.utterances)
    assert [start - 3.0 for start in second] == pytest.approx(first, abs=0.081)


def test_one_thread_and_two_give_the_same_bits(aligner: CTCAligner, model: Any, speech: Any, folder: Path) -> None:
    before = torch.get_num_threads()
    job = write_job(folder, np.tile(speech, 3)[:130_001], " ".join(WORDS * 2))
    documents = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            documents.append(align(aligner, model, job))
    finally:
        torch.set_num_threads(before)
    assert documents[0] == documents[1]


def test_a_segment_of_a_batch_gives_what_it_gives_alone(aligner: CTCAligner, model: Any, speech: Any) -> None:
    """To the bit on one thread, whoever has set how many before; two share a batch out otherwise than a segment."""
    batch = [{"waveform": torch.from_numpy(speech[:length])} for length in (48_000, 20_000, 1_600)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            together = aligner.infer(model, batch)
            alone = [aligner.infer(model, [tensors])[0] for tensors in batch]
    finally:
        torch.set_num_threads(before)
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one["log_probs"], other["log_probs"])


def test_more_words_than_the_recording_can_hold_are_refused_with_the_figures(
    aligner: CTCAligner, speech: Any, folder: Path
) -> None:
    with pytest.raises(InputError, match=r"talk.txt: 200 words need at least \d+\.\d s, but the recording has 3\.0 s"):
        split(aligner, write_job(folder, speech, "Americans " * 200))


def test_an_utterance_with_too_many_words_is_spread_over_its_times_and_said_so(
    aligner: CTCAligner, model: Any, speech: Any, folder: Path
) -> None:
    chat = write_chat(("and so my fellow americans", 300, 2400), ("americans " * 30, 2500, 2900))
    document = align(aligner, model, write_job(folder, speech, chat, ".cha"))
    first, second = document.utterances
    assert all(word.timing is Timing.ALIGNED for word in first.words)
    assert all(word.timing is Timing.INTERPOLATED and word.score is None for word in second.words)
    assert (second.start, second.end) == (2.5, 2.9)
    (warning,) = document.warnings
    assert "utterance 2" in warning and "30 words do not fit into 0.4 s" in warning


def test_hours_without_times_are_refused_before_memory_runs_out(aligner: CTCAligner, folder: Path) -> None:
    job = write_job(folder, np.zeros(16_000), "\n".join([" ".join(WORDS)] * 2_000))
    with pytest.raises(InputError, match=f"10000 words without times over 3600 s .*at most {MOST_BYTES >> 20}"):
        split(aligner, dataclasses.replace(job, seconds=3600.0))


def test_a_transcript_without_a_recording_names_the_remedy(aligner: CTCAligner, folder: Path) -> None:
    source = folder / "talk.txt"
    source.write_text("hello", encoding="utf-8")
    with pytest.raises(InputError, match=r"talk.txt: no recording .* put the recording beside it"):
        split(aligner, Job("talk.txt", source))


def test_a_truncated_recording_is_not_aligned_to_what_is_left(aligner: CTCAligner, speech: Any, folder: Path) -> None:
    job = dataclasses.replace(write_job(folder, speech, " ".join(WORDS)), seconds=30.0)
    (segment,) = split(aligner, job)
    waveform = aligner.prepare(job, segment)["waveform"]
    assert len(waveform) >= 29 * 16_000  # so that the words are not drawn to what is left
    assert not waveform[3 * 16_000 :].any()


def test_an_utterance_beyond_the_recording_keeps_its_text_and_gets_no_word_times(
    aligner: CTCAligner, model: Any, speech: Any, folder: Path
) -> None:
    chat = write_chat(("and so my fellow americans", 300, 2500), ("ask not", 9000, 9500))
    document = align(aligner, model, write_job(folder, speech, chat, ".cha"))
    assert [word.timing for word in document.utterances[1].words] == [Timing.NONE] * 2
    assert (document.utterances[1].start, document.utterances[1].end) == (9.0, 9.5)
    assert "recording ends at 3.000 s" in document.warnings[0]


def test_an_utterance_ends_where_the_next_begins_unless_they_overlap() -> None:
    before = [Utterance("a", (Word("a"),), None, 0.0, 1.0), Utterance("b", (Word("b"),), None, 1.0, 2.0)]
    after = [
        Utterance("a", (Word("a", 0.1, 1.2, timing=Timing.ALIGNED),), None, 0.1, 1.2),
        Utterance("b", (Word("b", 1.1, 1.9, timing=Timing.ALIGNED),), None, 1.1, 1.9),
    ]
    assert keep_apart(before, after)[0].words[0].end == 1.1
    missing = Utterance("gone", (Word("gone"),), missing=True)
    assert keep_apart([before[0], missing, *before[1:]], [after[0], missing, *after[1:]])[0].end == 1.1
    overlapping = [before[0], dataclasses.replace(before[1], start=0.9)]
    assert keep_apart(overlapping, after) == after


def save_small(folder: Path, kind: str, *, normalize: bool = True) -> Path:
    torch.manual_seed(3)
    model: Any = Wav2Vec2ForCTC(Wav2Vec2Config(**SMALL)) if kind == "wav2vec2" else HubertForCTC(HubertConfig(**SMALL))
    model.save_pretrained(folder)
    (folder / "vocab.json").write_bytes((EMBEDDED / "vocab.json").read_bytes())
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": normalize}))
    return folder


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_any_ctc_model_aligns(kind: str, folder: Path, speech: Any) -> None:
    engine = CTCAligner(str(save_small(folder / "model", kind)))
    engine.setup()
    model = engine.load()
    with torch.inference_mode():
        engine.verify(engine.infer(model, [engine.example()])[0])
    words = list_words(align(engine, model, write_job(folder, np.tile(speech, 8), " ".join(WORDS * 8))))
    assert [word.text for word in words] == WORDS * 8
    assert_in_order(words, 24.0)


@pytest.mark.parametrize("normalize", [True, False])
def test_loudness_does_not_matter_to_a_model_that_wants_it_normalised(
    normalize: bool, folder: Path, speech: Any
) -> None:
    engine = CTCAligner(str(save_small(folder, "wav2vec2", normalize=normalize)))
    engine.setup()
    model = engine.load()
    with torch.inference_mode():
        outputs = engine.infer(model, [{"waveform": torch.from_numpy(speech) * gain} for gain in (1.0, 0.1)])
    loud, quiet = (output["log_probs"] for output in outputs)
    assert torch.allclose(loud, quiet, atol=1e-3) is normalize


def test_a_model_whose_frames_are_not_as_long_as_it_says_is_refused(folder: Path) -> None:
    save_small(folder, "wav2vec2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "frame_seconds": 0.04}))
    engine = CTCAligner(str(folder))
    engine.setup()
    with pytest.raises(LoadError, match=r"99 frames for 2 s of audio, not 50; .*frame_seconds"), torch.inference_mode():
        engine.verify(engine.infer(engine.load(), [engine.example()])[0])


def test_the_fingerprint_tells_models_and_settings_apart(aligner: CTCAligner, folder: Path) -> None:
    engines = [CTCAligner(max_segment=5.0), CTCAligner(str(save_small(folder / "a", "wav2vec2")))]
    for engine in engines:
        engine.setup()
    prints = [json.dumps(complete("ctc", note_files(engine.fingerprint()))) for engine in (aligner, *engines)]
    assert len(set(prints)) == 3
    torch.manual_seed(4)
    retrained: Any = Wav2Vec2ForCTC(Wav2Vec2Config(**SMALL))
    retrained.save_pretrained(folder / "a")
    again = CTCAligner(str(folder / "a"))
    again.setup()
    assert json.dumps(complete("ctc", note_files(again.fingerprint()))) != prints[2]


def test_a_segment_of_no_seconds_is_refused() -> None:
    with pytest.raises(LoadError, match="max_segment must be a number of seconds above 0, not 0"):
        CTCAligner(max_segment=0)
