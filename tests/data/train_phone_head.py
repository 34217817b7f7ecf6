"""Trains the head that tells phones apart, on the unchanged encoder of engines/models/ctc-aligner-en.

    python tests/data/train_phone_head.py --spoken DIR [--recorded DIR] --output FILE

--spoken: what synthesize_english.py wrote for the voices awb and rms, with each phone's exact time. --recorded:
recordings of people, and text.json with the words of each ({NAME: "some words"} for NAME.wav); a head trained on the
voices says where their phones are, and a second one is trained on both. That of the model here heard 5 to 8 sentences
of each of the 125 speakers of speechocean762's training part, 54 of them children
(https://github.com/jimbozhang/speechocean762, free for commercial and other use). Speech is heard several times: faster
and slower, which makes other voices of it, with noise, in a room, through a telephone, and at another loudness. FILE
gets the model's weights and the head's.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import fftconvolve, lowpass_biquad, resample

from prefork.engines.alignment.viterbi import align_words
from prefork.engines.audio.reader import SAMPLE_RATE, probe, read_audio
from prefork.engines.ctc.aligner import EMBEDDED, WINDOW_SECONDS
from prefork.engines.ctc.checkpoint import Checkpoint, load_model, open_checkpoint
from prefork.engines.ctc.phone_head import PHONES, SILENCE, STEPS, PhoneHead
from prefork.engines.ctc.phone_times import PhoneClock, measure_words
from prefork.engines.ctc.pronunciations import FILE, Pronunciations
from prefork.engines.ctc.whisper_ctc import FRAME, WhisperCTC, WhisperCTCConfig, compute_log_mel

PHONE_DIM = 192
STEP = FRAME / SAMPLE_RATE / STEPS  # seconds
SIZE = round(WINDOW_SECONDS * SAMPLE_RATE)  # samples of a window
BATCH = 12  # windows
SPEEDS = (17, 18, 19, 20, 20, 20, 21, 22, 23, 24, 25, 26, 27)  # twentieths
NEAREST = 0.25  # mean probability of its phones below which a recorded sentence is left out

Samples = NDArray[np.float32]
Segments = list[tuple[str, float, float]]  # phone, start, end: seconds


@dataclass(frozen=True, slots=True)
class Speech:
    samples: Samples
    segments: Segments


@dataclass(frozen=True, slots=True)
class Example:
    """A window. features: (frames, size) of the encoder. mel: (bins, steps). targets: (steps, phones), the part of each
    step that is each phone's. All in half precision."""

    features: Tensor
    mel: Tensor
    targets: Tensor


def read_speech(path: Path) -> Samples:
    return read_audio(path, 0.0, probe(path).seconds)


def read_spoken(folder: Path) -> list[Speech]:
    return [
        Speech(read_speech(folder / f"{name}.wav"), [tuple(segment) for segment in spoken["segments"]])
        for voice in ("awb", "rms")
        for name, spoken in json.loads((folder / f"{voice}.json").read_text(encoding="utf-8")).items()
    ]


# What is heard


def make_noise(rng: random.Random) -> Samples:
    """White to pink, a window of it, of unit loudness."""
    white = np.random.default_rng(rng.getrandbits(32)).standard_normal(SIZE)
    spectrum = np.fft.rfft(white)
    coloured = np.fft.irfft(spectrum / (np.arange(len(spectrum)) + 50.0) ** rng.uniform(0, 1), SIZE)
    noise: Samples = (coloured / coloured.std()).astype(np.float32)
    return noise


def make_room(rng: random.Random) -> Samples:
    """An impulse response: the sound itself, and noise that decays by 60 dB in 0.1 to 0.5 s."""
    count = int(SAMPLE_RATE * rng.uniform(0.1, 0.5))
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(count)
    response = noise * np.exp(-6.9 * np.arange(count) / count) * rng.uniform(0.02, 0.12)
    response[:40] = 0.0
    response[0] = 1.0
    return response.astype(np.float32)


def fill_window(waiting: list[Speech], rng: random.Random) -> tuple[Samples, Tensor]:
    """Takes as much of the speech, from its end on, as a window holds. Its samples and targets."""
    window = np.zeros(SIZE, np.float32)
    segments: Segments = []
    at = rng.uniform(0.0, 0.6)
    while waiting:
        speed = rng.choice(SPEEDS)
        samples = resample(torch.from_numpy(waiting[-1].samples.copy()), speed, 20).numpy()
        if at + len(samples) / SAMPLE_RATE > WINDOW_SECONDS:
            break
        speech = waiting.pop()
        first = int(at * SAMPLE_RATE)
        window[first : first + len(samples)] += samples * rng.uniform(0.6, 1.4)
        segments += [(name, at + start * 20 / speed, at + end * 20 / speed) for name, start, end in speech.segments]
        at += len(samples) / SAMPLE_RATE + (rng.uniform(0.0, 0.5) if rng.random() < 0.7 else 0.0)
    if waiting and not segments:
        waiting.pop()  # longer than a window
    return disturb(window, rng), list_targets(segments)


def disturb(window: Samples, rng: random.Random) -> Samples:
    if rng.random() < 0.3:
        window = fftconvolve(torch.from_numpy(window), torch.from_numpy(make_room(rng))).numpy()[:SIZE]
    loud = window[np.abs(window) > 0.01]
    loudness = float(np.sqrt((loud**2).mean())) if loud.size else 0.01
    if rng.random() < 0.85:
        window = window + make_noise(rng) * loudness * 10 ** (-rng.uniform(8, 45) / 20)
    if rng.random() < 0.15:
        window = lowpass_biquad(torch.from_numpy(window), SAMPLE_RATE, rng.uniform(2800, 6000)).numpy()
    peak = 10 ** (-rng.uniform(1, 35) / 20)
    return (window * (peak / max(1e-6, float(np.abs(window).max())))).astype(np.float32)


def list_targets(segments: Segments) -> Tensor:
    columns = {name: 1 + column for column, name in enumerate(PHONES)} | {"": SILENCE}
    targets = torch.zeros(round(WINDOW_SECONDS / STEP), 1 + len(PHONES))
    for name, start, end in segments:
        first, last = int(start / STEP), min(len(targets) - 1, int(end / STEP - 1e-9))
        for step in range(first, last + 1):
            targets[step, columns[name]] += max(0.0, min(end / STEP, step + 1) - max(start / STEP, step))
    targets[:, SILENCE] += (1 - targets.sum(1)).clamp(min=0)
    return targets / targets.sum(1, keepdim=True)


@torch.inference_mode()
def encode(model: WhisperCTC, samples: Samples) -> tuple[Tensor, Tensor]:
    """(1, frames, size) features and (1, bins, steps) log-mel spectrogram, as the head gets them. samples: whole
    frames."""
    frames = torch.tensor([len(samples) // FRAME])
    mel = compute_log_mel(model.config, F.pad(torch.from_numpy(samples)[None], (0, FRAME)))
    return model.encoder(mel, frames + 1, frames), mel


def list_examples(model: WhisperCTC, speech: Sequence[Speech], rng: random.Random, times: int) -> Iterator[Example]:
    for _ in range(times):
        waiting = rng.sample(list(speech), len(speech))
        while waiting:
            window, targets = fill_window(waiting, rng)
            features, mel = encode(model, window)
            yield Example(features[0].half(), mel[0].half(), targets.half())


# The head


def run_head(head: PhoneHead, features: Tensor, mel: Tensor) -> Tensor:
    frames = torch.full((len(features),), features.shape[1])
    logits: Tensor = head(features, mel, frames + 1, frames)
    return logits


def train(config: WhisperCTCConfig, examples: Sequence[Example], epochs: int, rate: float = 2e-3) -> PhoneHead:
    torch.manual_seed(1)
    rng = random.Random(1)
    head = PhoneHead(config)
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.02)
    steps = epochs * -(-len(examples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        begin, total = time.monotonic(), 0.0
        order = rng.sample(list(examples), len(examples))
        for first in range(0, len(order), BATCH):
            some = order[first : first + BATCH]
            features, mel, targets = (
                torch.stack([getattr(one, part) for one in some]).float() for part in ("features", "mel", "targets")
            )
            features = F.dropout(features, 0.1)
            loss = -(targets * run_head(head, features, mel).log_softmax(-1)).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(some)
        print(f"epoch {epoch + 1}: loss {total / len(order):.3f}, {time.monotonic() - begin:.0f} s", flush=True)
    return head.eval()


@torch.inference_mode()
def measure_accuracy(head: PhoneHead, examples: Sequence[Example]) -> float:
    """The part of all steps whose phone is the one with the largest part of it."""
    right = [
        run_head(head, one.features[None].float(), one.mel[None].float())[0].argmax(-1) == one.targets.argmax(-1)
        for one in examples
    ]
    return float(torch.cat(right).float().mean())


# Recordings of people


@torch.inference_mode()
def listen(
    checkpoint: Checkpoint, model: WhisperCTC, head: PhoneHead, folder: Path, pronunciations: Pronunciations
) -> Iterator[Speech]:
    """The recordings, with their phones where the head hears them."""
    for name, text in json.loads((folder / "text.json").read_text(encoding="utf-8")).items():
        samples = read_speech(folder / f"{name}.wav")
        samples = samples[: len(samples) // FRAME * FRAME]
        if len(samples) > SIZE:
            continue
        features, mel = encode(model, samples)
        frames = torch.tensor([features.shape[1]])
        letters = model.head(features, frames)[0].log_softmax(-1)
        phones = run_head(head, features, mel)[0].log_softmax(-1)
        seconds = len(samples) / SAMPLE_RATE
        words = align_words(letters, text.split(), checkpoint.vocabulary, checkpoint.clock, 0.0, seconds)
        measured = measure_words(words, phones, PhoneClock(0.0, STEP), pronunciations, seconds)
        found = [phone for word in measured for phone in word.phones]
        if found and sum(phone.score for phone in found) / len(found) >= NEAREST:
            yield Speech(samples, [(phone.text, phone.start, phone.end) for phone in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoken", type=Path, required=True)
    parser.add_argument("--recorded", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = open_checkpoint(str(EMBEDDED))
    assert isinstance(checkpoint.config, WhisperCTCConfig)
    config = replace(checkpoint.config, phone_dim=PHONE_DIM)
    model: Any = load_model(checkpoint)
    pronunciations = Pronunciations.read(EMBEDDED / FILE)
    rng = random.Random(1)
    spoken = read_spoken(arguments.spoken)
    rng.shuffle(spoken)
    held_out, spoken = spoken[: len(spoken) // 20], spoken[len(spoken) // 20 :]
    check = list(list_examples(model, held_out, random.Random(2), 1))
    examples = list(list_examples(model, spoken, rng, 2))
    print(f"{len(examples)} windows of {len(spoken)} spoken sentences", flush=True)
    head = train(config, examples, arguments.epochs)
    print(f"{measure_accuracy(head, check):.1%} of steps right, sentences that were not trained on", flush=True)
    if arguments.recorded:
        recorded = list(listen(checkpoint, model, head, arguments.recorded, pronunciations))
        examples += list_examples(model, recorded, rng, 1)
        print(f"{len(examples)} windows with those of {len(recorded)} recorded sentences", flush=True)
        head = train(config, examples, arguments.epochs)
        print(f"{measure_accuracy(head, check):.1%} of steps right, sentences that were not trained on", flush=True)
    weights = {
        name: tensor
        for name, tensor in load_file(EMBEDDED / "model.safetensors").items()
        if not name.startswith("phones.")
    }
    weights |= {f"phones.{name}": tensor.detach().half().contiguous() for name, tensor in head.state_dict().items()}
    save_file(weights, arguments.output, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
