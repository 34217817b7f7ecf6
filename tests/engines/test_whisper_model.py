"""A Whisper checkpoint's files, features and attention: real weights, and small models made here."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from prefork.engines.audio.reader import read_audio
from prefork.engines.base import LoadError
from prefork.engines.checkpoints.model_folder import DTYPES, INCLUDED
from prefork.engines.ctc.aligner import EMBEDDED
from prefork.engines.ctc.checkpoint import open_checkpoint
from prefork.engines.whisper.attention import attend
from prefork.engines.whisper.checkpoint import WhisperCheckpoint, compose_prompt, find_language, open_whisper
from prefork.engines.whisper.decoding import WindowDecoder
from prefork.engines.whisper.model import (
    compute_features,
    count_context,
    count_frames,
    count_whisper_weights,
    encode,
    load_whisper,
)
from prefork.engines.whisper.network import TokenCache, WhisperNetwork
from prefork.engines.whisper.network import WhisperConfig as OurConfig
from prefork.engines.whisper.timing import (
    TokenSpan,
    find_edges,
    leave_pauses,
    list_pauses,
    merge_punctuation,
    split_words,
    time_words,
)
from prefork.fingerprint import complete, note_files
from prefork.platform_matrix.systems import SYSTEM
from prefork.weights.arena import Arena

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TINY = SHARED / "models" / "whisper-tiny.en"
SPEECH = SHARED / "data" / "jfk.flac"
TEXT = " And so my fellow Americans, ask not what your country can do for you"

pytestmark = [
    pytest.mark.dependencies,
    pytest.mark.skipif(not TINY.is_dir(), reason="needs ../shared/models/whisper-tiny.en"),
]


@pytest.fixture(scope="module")
def checkpoint() -> WhisperCheckpoint:
    return open_whisper(str(TINY))


@pytest.fixture(scope="module")
def model(checkpoint: WhisperCheckpoint) -> Any:
    return load_whisper(checkpoint)


@pytest.fixture(scope="module")
def waveform() -> torch.Tensor:
    return torch.from_numpy(read_audio(SPEECH, 0.0, 8.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The checkpoint without its weights, and these linked."""
    for file in TINY.iterdir():
        if file.suffix == ".safetensors":
            (tmp_path / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def spell(checkpoint: WhisperCheckpoint, text: str) -> list[int]:
    return checkpoint.tokenizer.encode(text)


def test_the_checkpoint_says_what_its_tokens_and_heads_are(checkpoint: WhisperCheckpoint) -> None:
    assert (checkpoint.sot, checkpoint.eot, checkpoint.no_timestamps) == (50257, 50256, 50362)
    assert checkpoint.timestamp_begin == 50363 and checkpoint.no_speech == 50361
    assert not checkpoint.multilingual and checkpoint.transcribe is None and not checkpoint.languages
    assert checkpoint.alignment_heads[:2] == ((1, 0), (2, 0)) and not checkpoint.derived_heads
    assert 1 in checkpoint.suppress_tokens and checkpoint.begin_suppress_tokens == (220, 50256)
    assert compose_prompt(checkpoint) == [50257, 50362]
    assert find_language(checkpoint, "eng") == "en" and find_language(checkpoint, "deu") is None


@pytest.mark.parametrize("samples", [0, 3_200, 100_001, 480_000, 600_000])
def test_features_are_those_of_transformers_bit_for_bit(
    checkpoint: WhisperCheckpoint, waveform: torch.Tensor, samples: int
) -> None:
    audio = waveform.repeat(5)[:samples]
    extractor: Any = WhisperFeatureExtractor()  # type: ignore[no-untyped-call]
    expected = extractor(audio.numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0]
    found = compute_features(checkpoint, audio)
    assert torch.equal(found, expected[:, : found.shape[1]])
    assert found.shape[1] == 2 * count_context(checkpoint, count_frames(checkpoint, samples))


def test_silence_follows_the_sound_and_steps_are_few(checkpoint: WhisperCheckpoint) -> None:
    contexts = [count_context(checkpoint, frames) for frames in range(1, 1501)]
    assert all(1500 >= context >= min(1500, frames + 100) for frames, context in enumerate(contexts, 1))
    assert contexts == sorted(contexts) and set(contexts) == set(range(750, 1501, 125))


@torch.inference_mode()
def test_windows_of_different_lengths_are_encoded_and_attended_to_as_if_alone(
    checkpoint: WhisperCheckpoint, model: Any, waveform: torch.Tensor
) -> None:
    features = [
        compute_features(checkpoint, waveform.repeat(3)[:samples]) for samples in (260_000, 30_000, 270_000, 200_000)
    ]
    states = encode(model, features)
    tokens = torch.tensor([[*compose_prompt(checkpoint), *spell(checkpoint, TEXT)]] * len(states))
    hidden, _ = model.decoder(tokens, model.decoder.remember(states), TokenCache())
    for row, own in enumerate(features):
        [alone] = encode(model, [own])
        assert torch.allclose(states[row], alone, atol=1e-4)
        expected, _ = model.decoder(tokens[:1], model.decoder.remember([alone]), TokenCache())
        assert torch.allclose(hidden[row], expected[0], atol=1e-3)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' model, with the same weights."""
    model: Any = WhisperForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.inference_mode()
def test_encoder_decoder_and_attention_are_those_of_transformers(
    checkpoint: WhisperCheckpoint, model: Any, theirs: Any, waveform: torch.Tensor
) -> None:
    """Over all tokens at once, and token by token with a cache that has to be made longer."""
    features = compute_features(checkpoint, waveform)
    features = F.pad(features, (0, 3000 - features.shape[1]), value=float(features.min()))  # theirs takes 30 s alone
    [states] = encode(model, [features])
    expected_states = theirs.model.encoder(features[None]).last_hidden_state
    assert torch.allclose(states[None], expected_states, atol=2e-3)
    tokens = torch.tensor([[*compose_prompt(checkpoint), *spell(checkpoint, TEXT * 5)]])
    assert tokens.shape[1] > 64
    expected = theirs(encoder_outputs=(states[None],), decoder_input_ids=tokens, output_attentions=True)
    sound = model.decoder.remember([states])
    layers = range(checkpoint.config.decoder_layers)
    hidden, queries = model.decoder(tokens, sound, TokenCache(), layers)
    assert torch.allclose(model.decoder.project(hidden), expected.logits, atol=5e-3)
    cache = TokenCache()
    steps = [model.decoder(token.view(1, 1), sound, cache)[0] for token in tokens[0]]
    assert torch.allclose(torch.cat(steps, dim=1), hidden, atol=1e-3)
    for layer in layers:
        products = queries[layer] @ sound.layers[layer].keys.transpose(-1, -2) / 64**0.5
        assert torch.allclose(products.softmax(-1), expected.cross_attentions[layer], atol=1e-4)


def test_tokens_after_others_come_one_at_a_time(checkpoint: WhisperCheckpoint, model: Any) -> None:
    sound = model.decoder.remember([torch.zeros(10, 384)])
    cache = TokenCache()
    model.decoder(torch.tensor([[checkpoint.sot]]), sound, cache)
    with pytest.raises(ValueError, match="2 tokens at once, after the 1"):
        model.decoder(torch.tensor([[5, 6]]), sound, cache)


@torch.inference_mode()
def test_words_of_a_text_are_found_in_real_speech(
    checkpoint: WhisperCheckpoint, model: Any, waveform: torch.Tensor
) -> None:
    states = encode(model, [compute_features(checkpoint, waveform)])
    tokens = spell(checkpoint, TEXT)
    [(attention, log_probs)] = attend(
        WindowDecoder(model, states), checkpoint, [[*compose_prompt(checkpoint), *tokens]], [400]
    )
    assert attention.shape == (len(tokens) + 2, 400) and log_probs.shape == (len(tokens) + 1,)
    words = time_words(checkpoint, tokens, attention, log_probs, 10.0, 18.0)
    assert [word.text for word in words] == TEXT.split()
    starts = [word.start or 0 for word in words]
    assert starts == sorted(starts) and starts[0] >= 10 and (words[-1].end or 0) <= 18
    # The CTC aligner has them at 1.27, 5.61 and 6.89 s.
    assert [starts[3], starts[8], starts[12]] == pytest.approx([11.27, 15.61, 16.89], abs=0.25)
    assert all(word.score and 0 < word.score <= 1 for word in words)


@torch.inference_mode()
def test_likelihoods_are_those_of_the_models_logits(
    checkpoint: WhisperCheckpoint, model: Any, theirs: Any, waveform: torch.Tensor
) -> None:
    states = encode(model, [compute_features(checkpoint, waveform)])
    tokens = [*compose_prompt(checkpoint), *spell(checkpoint, TEXT * 6)]  # more than are scored at a time
    [(_, log_probs)] = attend(WindowDecoder(model, states), checkpoint, [tokens], [400])
    logits = theirs(encoder_outputs=(states[0][None],), decoder_input_ids=torch.tensor([tokens])).logits[0, :-1]
    expected = logits[1:, : checkpoint.eot].log_softmax(-1).gather(1, torch.tensor(tokens[2:])[:, None])[:, 0]
    assert torch.allclose(log_probs[1:], expected, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_large_the_weights_will_be_is_known_and_the_output_is_the_embedding(
    checkpoint: WhisperCheckpoint, dtype: str
) -> None:
    model: Any = load_whisper(checkpoint, dtype)
    assert model.decoder.proj_out is None
    size = Arena.pack({"model": model}).size
    assert size <= count_whisper_weights(checkpoint, dtype) <= 1.05 * size


def test_a_checkpoint_without_alignment_heads_gets_those_of_its_later_layers(folder: Path) -> None:
    change(folder / "generation_config.json", alignment_heads=None)
    checkpoint = open_whisper(str(folder))
    assert checkpoint.derived_heads
    assert checkpoint.alignment_heads == tuple((layer, head) for layer in (2, 3) for head in range(6))
    names = [note_files(one.source.list_files()) for one in (checkpoint, open_whisper(str(TINY)))]
    assert complete("whisper", names[0]) != complete("whisper", names[1])


@pytest.mark.parametrize(
    ("heads", "reason"),
    [([[4, 0]], "head 0 of layer 4 .* 4 layers of 6 heads"), ([1, 2], "are not pairs of a layer and a head")],
)
def test_alignment_heads_that_the_model_does_not_have_are_refused(folder: Path, heads: Any, reason: str) -> None:
    change(folder / "generation_config.json", alignment_heads=heads)
    with pytest.raises(LoadError, match=reason):
        open_whisper(str(folder))


def test_a_ctc_model_is_sent_to_the_ctc_engine_and_whisper_to_whispers(folder: Path) -> None:
    with pytest.raises(LoadError, match=r"a whisper-ctc model is not a Whisper model; use it with --engine ctc, or "):
        open_whisper(str(EMBEDDED))
    for name in (str(folder), "tiny.en"):
        with pytest.raises(LoadError, match=r"a whisper model is not a CTC model; use it with --engine whisper, or "):
            open_checkpoint(name)


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        ("tokenizer.json", "it has no tokenizer"),
        ("model.safetensors", "it has no safetensors weights"),
        ("processor_config.json", "it has no preprocessor_config.json"),
        ("config.json", "it has no config.json"),
    ],
)
def test_a_folder_without_one_of_its_files_is_refused_by_name(folder: Path, remove: str, reason: str) -> None:
    (folder / remove).unlink()
    with pytest.raises(LoadError, match=reason) as caught:
        open_whisper(str(folder))
    assert str(caught.value).startswith(str(folder)) and str(caught.value).endswith("with --model PATH")


def test_a_broken_or_foreign_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(LoadError, match="its tokenizer cannot be loaded"):
        open_whisper(str(folder))


def test_a_model_with_a_weight_missing_is_not_made_up(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config: Any = WhisperConfig(**sizes, **heads)  # type: ignore[arg-type]
    small: Any = WhisperForConditionalGeneration(config)
    small.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copyfile(TINY / name, tmp_path / name)
    checkpoint = open_whisper(str(tmp_path))
    assert load_whisper(checkpoint).encoder.conv2.weight.shape == (16, 16, 3)
    change(tmp_path / "config.json", decoder_layers=3)
    with pytest.raises(LoadError, match="missing"):
        load_whisper(open_whisper(str(tmp_path)))


def test_the_path_through_a_matrix_is_the_best_there_is() -> None:
    """Beside dynamic programming cell by cell."""
    weights = np.random.default_rng(5).standard_normal((9, 31))
    best = np.full(weights.shape, -np.inf)
    for row in range(9):
        for frame in range(31):
            before = [best[i, j] for i, j in ((row - 1, frame - 1), (row - 1, frame), (row, frame - 1)) if i >= 0 <= j]
            best[row, frame] = weights[row, frame] + max(before, default=0.0)
    edges = find_edges(weights)
    assert edges[0] == 0 and (np.diff(edges) >= 0).all()
    ends = [*(max(edges[i], edges[i + 1] - 1) for i in range(8)), 30]
    ways = []  # a row ends before the next one begins, or in the same frame
    for choice in range(2**8):
        over = [ends[i] + ((choice >> i & 1) if ends[i] < edges[i + 1] else 0) for i in range(8)] + [30]
        ways.append(sum(weights[i, edges[i] : over[i] + 1].sum() for i in range(9)))
    assert max(ways) == pytest.approx(best[-1, -1])


def test_the_longest_text_takes_less_than_a_tenth_of_a_second() -> None:
    weights = np.random.default_rng(5).standard_normal((448, 1500))
    begin = time.process_time()
    find_edges(weights)
    assert time.process_time() - begin < 0.1


def test_words_are_taken_out_of_pauses() -> None:
    quiet = np.zeros(100, bool)
    quiet[:12], quiet[40:60], quiet[80:83] = True, True, True  # the last is too short
    pauses = list_pauses(quiet)
    assert pauses == [(0, 12), (40, 60)]
    spans = leave_pauses([TokenSpan(0, 42, 0.5), TokenSpan(42, 81, 0.5), TokenSpan(81, 99, 0.5)], pauses)
    assert [(span.start, span.end) for span in spans] == [(12, 40), (60, 81), (81, 99)]
    inside = leave_pauses([TokenSpan(43, 50, 0.5)], [(40, 60)])
    assert [(span.start, span.end) for span in inside] == [(43, 50)]  # nothing is left of it outside


def test_texts_are_split_into_words_as_their_languages_are(checkpoint: WhisperCheckpoint) -> None:
    def split(text: str, language: str | None = None) -> list[str]:
        tokens = spell(checkpoint, text)
        groups = merge_punctuation(split_words(checkpoint, tokens, language))
        assert [token for _, group in groups for token in group] == tokens
        return [word for word, _ in groups]

    assert split(' He said: "Well, (yes) 5%!"') == [" He", " said:", ' "Well,', " (yes)", ' 5%!"']
    assert split(" naïve 你好 Straße.") == [" naïve", " 你好", " Straße."]
    assert split("今天很好。", "zh") == ["今", "天", "很", "好。"]
    assert split("") == []


def test_the_included_model_is_the_checkpoint_in_int8(checkpoint: WhisperCheckpoint, model: Any) -> None:
    included = open_whisper("tiny.en")
    assert included.name == "tiny.en" and included.alignment_heads == checkpoint.alignment_heads
    assert included.tokenizer.encode(TEXT) == checkpoint.tokenizer.encode(TEXT)
    whole, small = dict(model.named_parameters()), dict(load_whisper(included).named_parameters())
    assert whole.keys() == small.keys()
    for name, parameter in whole.items():
        error = (small[name] - parameter).abs().amax() / parameter.abs().amax()
        assert error < 1 / 200, name  # half a step of 127, or what float16 rounds
    assert sum(file.stat().st_size for file in INCLUDED["tiny.en"].iterdir()) < 45e6


def test_the_included_models_name_is_a_folders_where_there_is_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "tiny.en").symlink_to(folder)
    monkeypatch.chdir(here)
    assert open_whisper("tiny.en").folder == Path("tiny.en")
    (folder / "config.json").unlink()  # a folder of outputs
    assert open_whisper("tiny.en").folder == INCLUDED["tiny.en"]


def test_int8_weights_without_their_scales_are_refused(tmp_path: Path) -> None:
    for file in INCLUDED["tiny.en"].iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.encoder.layers.0.fc1.weight_scale"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"encoder.layers.0.fc1.weight is int8, and there is no .*weight_scale"):
        load_whisper(open_whisper(str(tmp_path)))


def test_a_model_that_cannot_be_reached_names_the_included_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LoadError, match=r"the hub cannot be reached.*take --model tiny.en, which is included"):
        open_whisper("openai/whisper-that-is-not-here")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("activation_function", "swiglu", "activation_function is 'swiglu'; it has to be one of gelu"),
        ("decoder_attention_heads", 5, "no model can be built .*384 cannot be shared out among 5 heads"),
    ],
)
def test_what_no_layer_can_be_made_of_is_refused(folder: Path, field: str, value: Any, reason: str) -> None:
    change(folder / "config.json", **{field: value})
    change(folder / "generation_config.json", alignment_heads=None)
    with pytest.raises(LoadError, match=reason):
        count_whisper_weights(open_whisper(str(folder)))


def test_free_memory_is_given_back_where_the_model_computes_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, whose place "meta" takes here, nothing is gained by it."""
    given_back: list[str] = []
    device = "cpu"
    monkeypatch.setattr(type(SYSTEM), "release_free_memory", lambda _: given_back.append(device))
    small: dict[str, Any] = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 16}
    small |= {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    network = WhisperNetwork(OurConfig(num_mel_bins=4, max_source_positions=16, max_target_positions=16, **small))
    for device in ("cpu", "meta"):
        network = network.to(device)
        network.decoder.remember(encode(network, [torch.zeros(4, 32, device=device)]))
    assert given_back == ["cpu"] * 3
