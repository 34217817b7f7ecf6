"""Models of the sizes that are used, with random weights: how long they take, and how much memory, does not depend on
what the weights are."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

from prefork.engines.base import Job
from tests.gpu.machine import TORCH

_ROOT = Path(__file__).resolve().parents[2]
_LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
# Of openai/whisper-large-v3.
_HEADS = [[7, 0], [10, 17], [12, 18], [13, 12], [16, 1], [17, 14], [19, 11], [21, 4], [24, 1], [25, 6]]
TEXT = "it was not yet time and the boy looked from the hand to her"  # said in five seconds

WAV2VEC2 = {  # 315 M
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
TINY = {  # 39 M, of openai/whisper-tiny.en
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "vocab_size": 51_864,
}
TURBO = {  # 0.81 G, of openai/whisper-large-v3-turbo
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 4,
    "encoder_attention_heads": 20,
    "decoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "vocab_size": 51_866,
}


def make_wav2vec2(folder: Path, sizes: dict[str, int]) -> Path:
    """A folder with a CTC model in bfloat16."""
    return _make("make_wav2vec2_here", folder, sizes)


def make_whisper(folder: Path, sizes: dict[str, int]) -> Path:
    """A folder with a Whisper model in bfloat16, whose tokens are bytes."""
    return _make("make_whisper_here", folder, sizes)


def _make(function: str, folder: Path, sizes: dict[str, int]) -> Path:
    """In a process of its own, that may use the GPU: a CPU takes a minute for so many random numbers."""
    code = f"from tests.gpu.models import {function}; {function}({str(folder)!r}, {sizes!r})"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def make_wav2vec2_here(folder: str, sizes: dict[str, int]) -> None:
    import json

    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    like: dict[str, Any] = {
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "vocab_size": len(_LETTERS),
    }
    _save(Wav2Vec2ForCTC, Wav2Vec2Config(**{**like, **sizes}, pad_token_id=0), folder)
    extractor: Any = Wav2Vec2FeatureExtractor()  # type: ignore[no-untyped-call]
    extractor.save_pretrained(folder)
    Path(folder, "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(_LETTERS)}))


def make_whisper_here(folder: str, sizes: dict[str, int]) -> None:
    import json

    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>"]
    letters = sorted(ByteLevel.alphabet())
    added = {str(len(letters) + place): _describe_token(token) for place, token in enumerate(special)}
    tokens = {token: place for place, token in enumerate([*letters, *special])}
    end = tokens["<|endoftext|>"]
    same = ("pad_token_id", "bos_token_id", "eos_token_id")
    starts: dict[str, Any] = {"decoder_start_token_id": tokens["<|startoftranscript|>"], **dict.fromkeys(same, end)}
    _save(WhisperForConditionalGeneration, WhisperConfig(**{**starts, **sizes}), folder)
    files = {
        "vocab.json": tokens,
        "tokenizer_config.json": {"tokenizer_class": "WhisperTokenizer", "added_tokens_decoder": added},
        "generation_config.json": {**starts, "is_multilingual": False, "alignment_heads": _choose_heads(sizes)},
    }
    extractor: Any = WhisperFeatureExtractor(feature_size=sizes["num_mel_bins"])  # type: ignore[no-untyped-call]
    extractor.save_pretrained(folder)
    Path(folder, "merges.txt").write_text("#version: 0.2\n")
    for name, content in files.items():
        Path(folder, name).write_text(json.dumps(content))


def _describe_token(token: str) -> dict[str, Any]:
    flags = ("lstrip", "rstrip", "normalized", "single_word")
    return {"content": token, "special": True, **dict.fromkeys(flags, False)}


def _choose_heads(sizes: dict[str, int]) -> list[list[int]]:
    layers, heads = sizes["decoder_layers"], sizes["decoder_attention_heads"]
    return [pair for pair in _HEADS if pair[0] < layers and pair[1] < heads] or [[layers - 1, 0]]


def _save(kind: Any, config: Any, folder: str) -> None:
    import torch

    torch.manual_seed(0)
    with torch.device(TORCH):
        model = kind(config)
    model.to(torch.bfloat16).cpu().save_pretrained(folder)


def make_jobs(folder: Path, count: int, seconds: float) -> list[Job]:
    """Noise, a few recordings of it again and again, each with a transcript."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"noise{number}.wav" for number in range(8)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        samples = np.random.default_rng(number).normal(0, 3000, round(seconds * 16_000)).astype(np.int16)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        path.with_suffix(".txt").write_text(f"{TEXT}\n")
    chosen = [paths[number % len(paths)] for number in range(count)]
    return [Job(f"{n:05} {path.stem}", path.with_suffix(".txt"), path, (), seconds) for n, path in enumerate(chosen)]
