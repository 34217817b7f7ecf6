"""Segments of unequal length through CTC models together: each gets what it gets alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.ctc import recent_emissions
from prefork.engines.ctc.aligner import EMBEDDED, CTCAligner
from prefork.engines.ctc.padding import Padding, choose_padding, compute_logits
from prefork.engines.ctc.recovery import CTCRecovery
from prefork.engines.text import formats

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SAMPLES = [47_999, 16_000, 32_100, 32_100, 1_600]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 32,
    "pad_token_id": 0,
}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
MODELS: dict[str, tuple[str, dict[str, Any], Padding]] = {
    "wav2vec2-layer": ("Wav2Vec2", {**CONVOLUTIONS, "feat_extract_norm": "layer"}, Padding.MASKED),
    "wav2vec2-stable": (
        "Wav2Vec2",
        {**CONVOLUTIONS, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        Padding.MASKED,
    ),
    "wav2vec2-group": ("Wav2Vec2", {**CONVOLUTIONS, "feat_extract_norm": "group"}, Padding.ENCODED),
    "wav2vec2-adapter": ("Wav2Vec2", {**CONVOLUTIONS, "add_adapter": True}, Padding.NEVER),
    "hubert-layer": ("Hubert", {**CONVOLUTIONS, "feat_extract_norm": "layer"}, Padding.MASKED),
    "hubert-group": ("Hubert", {**CONVOLUTIONS, "feat_extract_norm": "group"}, Padding.ENCODED),
    "hubert-batch-norm": ("Hubert", {**CONVOLUTIONS, "conv_pos_batch_norm": True}, Padding.NEVER),
    "wavlm-layer": ("WavLM", {**CONVOLUTIONS, "feat_extract_norm": "layer"}, Padding.MASKED),
    "wavlm-group": ("WavLM", {**CONVOLUTIONS, "feat_extract_norm": "group"}, Padding.ENCODED),
    "unispeech-layer": ("UniSpeech", {**CONVOLUTIONS, "feat_extract_norm": "layer"}, Padding.MASKED),
    "unispeech-sat-group": ("UniSpeechSat", {**CONVOLUTIONS, "feat_extract_norm": "group"}, Padding.ENCODED),
    "data2vec": ("Data2VecAudio", CONVOLUTIONS, Padding.NEVER),
    "wav2vec2-bert": ("Wav2Vec2Bert", {"feature_projection_input_dim": 160}, Padding.MASKED),
}


def build(name: str) -> Any:
    kind, settings, _ = MODELS[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **settings)
    model = getattr(transformers, f"{kind}ForCTC")(config).eval()
    model.lm_head.weight.data.mul_(40)  # log-probabilities that are as far apart as a trained model's
    return model


def open_small(folder: Path, name: str, dtype: str = "float32") -> tuple[CTCAligner, Any]:
    build(name).save_pretrained(folder)
    (folder / "vocab.json").write_bytes((EMBEDDED / "vocab.json").read_bytes())
    settings: dict[str, Any] = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000}
    if name == "wav2vec2-bert":
        settings |= {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": 80, "num_mel_bins": 80}
        settings |= {"stride": 2, "padding_value": 0.0}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    engine = CTCAligner(str(folder), dtype=dtype)
    engine.setup()
    return engine, engine.load()


def open_embedded(dtype: str = "float32") -> tuple[CTCAligner, Any]:
    engine = CTCAligner(dtype=dtype)
    engine.setup()
    model = engine.load()
    model.batch_invariant = False  # so that nothing is recalled
    return engine, model


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    return load_file(EMBEDDED / "check.safetensors")["waveform"]


@pytest.fixture(scope="module")
def segments() -> list[tuple[Job, Segment, Tensors]]:
    """Of every second recording, the first two."""
    data = SHARED / "data" / "speech"
    if not data.is_dir():
        pytest.skip("needs ../shared/data/speech, recordings with transcripts")
    engine = CTCAligner()
    engine.setup()
    found = []
    for source in sorted(data.glob("*.cha"))[::2]:
        job = Job(source.name, source, source.with_suffix(".flac"))
        for segment in engine.split(job, formats.read(source))[:2]:
            found.append((job, segment, engine.prepare(job, segment)))
    return found


@torch.inference_mode()
def infer(engine: CTCAligner, model: Any, batch: Sequence[Tensors], size: int) -> list[torch.Tensor]:
    groups = [batch[first : first + size] for first in range(0, len(batch), size)]
    return [output["log_probs"] for group in groups for output in engine.infer(model, group)]


@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_unequal_lengths_gives_what_it_gives_alone(name: str, speech: torch.Tensor, tmp_path: Path) -> None:
    engine, model = open_small(tmp_path, name)
    assert choose_padding(model.config) is MODELS[name][2]
    batch = [{"waveform": speech[:samples]} for samples in SAMPLES]
    alone, together = infer(engine, model, batch, 1), infer(engine, model, batch, len(batch))
    assert [len(rows) for rows in together] == [len(rows) for rows in alone]
    assert alone[0].std() > 0.5
    assert max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=True)) < 2e-4


@pytest.mark.parametrize("name", ["wav2vec2-group", "hubert-batch-norm", "data2vec"])
def test_models_that_see_padding_would_give_something_else_with_a_mask(name: str, speech: torch.Tensor) -> None:
    model = build(name)
    inputs = [speech[:samples] for samples in SAMPLES[:2]]
    with torch.inference_mode():
        alone = compute_logits(model, inputs[1:], Padding.MASKED)[0]
        masked = compute_logits(model, inputs, Padding.MASKED)[1]
        right = compute_logits(model, inputs, MODELS[name][2])[1]
    assert (masked - alone).abs().max() > 0.01 > (right - alone).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_embedded_model_gives_the_same_bits_whoever_shares_the_batch(dtype: str, segments: Any) -> None:
    engine, model = open_embedded(dtype)
    # Without the instructions for them, bfloat16 and int8 are computed ten times as slowly.
    samples = 48_000 if dtype == "float32" else 24_000
    batch = [{"waveform": t["waveform"][: (place + 1) * samples]} for place, (_, _, t) in enumerate(segments[:4])]
    alone, together = infer(engine, model, batch, 1), infer(engine, model, batch, 4)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["wav2vec2-layer", "wav2vec2-group"])
def test_words_have_the_same_times_whoever_shares_the_batch(
    name: str, dtype: str, segments: Any, tmp_path: Path
) -> None:
    engine, model = open_small(tmp_path, name, dtype)
    batch = [tensors for _, _, tensors in segments]
    found = []
    for size in (1, 7):
        outputs = infer(engine, model, batch, size)
        pieces = [
            engine.finish(job, segment, {"log_probs": log_probs})
            for (job, segment, _), log_probs in zip(segments, outputs, strict=True)
        ]
        found.append([(w.text, w.start, w.end) for piece in pieces for words in piece.words for w in words])
    assert found[0] == found[1] and len(found[0]) > 100


def test_a_long_waveform_takes_no_more_at_once_than_the_batch_has_waveforms(speech: torch.Tensor) -> None:
    engine, model = open_embedded()
    batch = [{"waveform": speech.repeat(11)[: 33 * 16_000]}, {"waveform": speech[:20_000]}]
    alone = infer(engine, model, batch, 1)
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_values"])), with_kwargs=True
    )
    together = infer(engine, model, batch, 2)
    hook.remove()
    assert rows == [2, 2, 1]  # four windows and the short one
    assert [len(log_probs) for log_probs in together] == [33 * 50, 63]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_recovery_takes_batches_too(speech: torch.Tensor) -> None:
    engine = CTCRecovery()
    engine.setup()
    model = engine.load()
    batch = [{"waveform": speech}, {"waveform": speech[:30_000]}]
    with torch.inference_mode():
        together = engine.infer(model, batch)
        alone = [engine.infer(model, [tensors])[0] for tensors in batch]
    assert all(torch.equal(a["log_probs"], b["log_probs"]) for a, b in zip(together, alone, strict=True))


def test_inputs_of_one_length_go_together_without_a_mask_in_any_model(speech: torch.Tensor) -> None:
    model = build("data2vec")
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_values"])), with_kwargs=True)
    with torch.inference_mode():
        logits = compute_logits(model, [speech[:samples] for samples in SAMPLES], Padding.NEVER)
    assert sorted(rows) == [1, 1, 1, 2]
    assert [len(frames) for frames in logits] == [149, 49, 100, 100, 4]


def test_what_was_heard_lately_is_recalled_up_to_a_limit(speech: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CTCAligner(dtype="float32")
    engine.setup()
    model = engine.load()
    heard: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: heard.append(len(kwargs["input_values"])), with_kwargs=True)
    batch = [{"waveform": speech[: 16_000 * seconds]} for seconds in (1, 2, 3)]
    fresh = infer(engine, model, [*batch, batch[0]], 4)
    assert heard == [3]
    recalled = infer(engine, model, batch, 1)
    assert heard == [3] and all(torch.equal(one, other) for one, other in zip(fresh[:3], recalled, strict=True))
    assert torch.equal(fresh[0], fresh[3])
    outputs = [engine.infer(model, [tensors])[0] for tensors in batch[1:]]
    monkeypatch.setattr(recent_emissions, "MOST_BYTES", sum(t.nbytes for output in outputs for t in output.values()))
    infer(engine, model, [{"waveform": speech[:8_000]}], 1)  # the new one and the newest of the others stay
    infer(engine, model, batch[2:], 1)
    assert heard == [3, 1]
    infer(engine, model, batch[:1], 1)
    assert heard == [3, 1, 1]
