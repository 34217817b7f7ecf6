"""Whisper folders as others write them: small random models are computed as transformers computes them, or refused by
the name of what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel

from prefork.engines.base import LoadError
from prefork.engines.checkpoints.model_folder import INCLUDED
from prefork.engines.whisper.asr import WhisperASR
from prefork.engines.whisper.checkpoint import open_whisper
from prefork.engines.whisper.model import encode, load_whisper
from prefork.engines.whisper.network import TokenCache

pytestmark = pytest.mark.dependencies

SIZES = {
    "vocab_size": 51864,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "init_std": 0.3,
}
WEIGHT = "model.encoder.layers.0.fc1.weight"
EMBEDDING, OUTPUT = "model.decoder.embed_tokens.weight", "proj_out.weight"

Tensors = dict[str, torch.Tensor]


def write_model(folder: Path, kind: Any = WhisperForConditionalGeneration, shard: str = "1GB", **values: Any) -> Path:
    torch.manual_seed(0)
    kind(WhisperConfig(**{**SIZES, **values})).save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copyfile(INCLUDED["tiny.en"] / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.mark.parametrize(
    "values",
    [
        {"scale_embedding": True},  # which transformers has, and multiplies with nothing
        {"tie_word_embeddings": False},
        {"activation_function": "silu", "num_mel_bins": 128},
        {"decoder_attention_heads": 4, "decoder_layers": 1, "encoder_layers": 3},
        {"kind": WhisperModel},
        {"shard": "2MB"},
    ],
    ids=str,
)
@torch.inference_mode()
def test_what_transformers_writes_is_computed_as_it_computes_it(values: dict[str, Any], tmp_path: Path) -> None:
    folder = write_model(tmp_path, **values)
    assert values.get("shard") is None or len(list(folder.glob("model-*.safetensors"))) > 1
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    ours = load_whisper(open_whisper(str(folder)))
    features, tokens = torch.randn(2, theirs.config.num_mel_bins, 3000), torch.randint(50000, (2, 9))
    states = encode(ours, list(features))
    expected = theirs.eval()(input_features=features, decoder_input_ids=tokens)
    assert torch.allclose(torch.stack(states), expected.encoder_last_hidden_state, atol=1e-4)
    hidden, _ = ours.decoder(tokens, ours.decoder.remember(states), TokenCache())
    assert torch.allclose(ours.decoder.project(hidden), expected.logits, atol=1e-3)


def change(folder: Path, edit: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    try:
        save_file({**tensors, **edit(tensors)}, file)
    except KeyError as error:
        pytest.skip(f"this safetensors cannot write {error}")


def quantise(name: str, scale: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    def edit(tensors: Tensors) -> Tensors:
        scales = tensors[name].abs().flatten(1).amax(1) / 127
        rows = (tensors[name].flatten(1) / scales[:, None]).round().to(torch.int8).view(tensors[name].shape)
        return {name: rows, f"{name}_scale": scale(scales)}

    return edit


@pytest.mark.parametrize("name", [WEIGHT, "model.encoder.conv1.weight", EMBEDDING])
def test_any_weight_may_be_int8_with_a_scale_for_each_row(folder: Path, whole: Path, name: str) -> None:
    change(folder, quantise(name, lambda scales: scales))
    for found, expected in zip(
        *(load_whisper(open_whisper(str(one))).parameters() for one in (folder, whole)), strict=True
    ):
        assert (found - expected).abs().amax() <= expected.abs().amax() / 200


BAD_SCALE = r"fc1\.weight_scale is not a number of at least 0 for each row"
BROKEN: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "scales of too few rows": (quantise(WEIGHT, lambda scales: scales[:5]), BAD_SCALE),
    "one scale": (quantise(WEIGHT, lambda scales: scales[0].clone()), BAD_SCALE),
    "scales in a column": (quantise(WEIGHT, lambda scales: scales[:, None]), BAD_SCALE),
    "negative scales": (quantise(WEIGHT, lambda scales: -scales), BAD_SCALE),
    "scales that are no numbers": (quantise(WEIGHT, lambda scales: scales * torch.nan), BAD_SCALE),
    "scales without int8": (lambda tensors: {f"{WEIGHT}_scale": torch.ones(24)}, "1 unexpected .*fc1.weight_scale"),
    "another integer": (lambda tensors: {WEIGHT: tensors[WEIGHT].to(torch.uint8)}, "fc1.weight is uint8"),
    "complex": (lambda tensors: {WEIGHT: tensors[WEIGHT].to(torch.complex64)}, "fc1.weight is complex64"),
    "twice": (lambda tensors: {WEIGHT.removeprefix("model."): tensors[WEIGHT] * 2}, "fc1.weight is there twice"),
    "another output": (lambda tensors: {OUTPUT: tensors[EMBEDDING] * 2}, "proj_out.weight differs from .*tie_word"),
    "an output of another size": (lambda tensors: {OUTPUT: torch.ones(3)}, "proj_out.weight differs from"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_cannot_be_meant_are_refused_by_name(folder: Path, case: str) -> None:
    edit, reason = BROKEN[case]
    change(folder, edit)
    with pytest.raises(LoadError, match=reason) as caught:
        load_whisper(open_whisper(str(folder)))
    assert str(caught.value).startswith(str(folder)) and str(caught.value).endswith("with --model PATH")


def test_an_output_that_is_the_embedding_once_more_is_the_embedding(folder: Path) -> None:
    change(folder, lambda tensors: {OUTPUT: tensors[EMBEDDING].clone()})
    assert load_whisper(open_whisper(str(folder))).decoder.proj_out is None


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model_2.safetensors"])
def test_only_weights_that_outputs_are_remembered_by_are_read(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(LoadError, match="it has no safetensors weights"):
        open_whisper(str(folder))


def test_shards_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, shard="2MB")
    first = min(folder.glob("model-*.safetensors"))
    shutil.copyfile(first, folder / "model-00001-of-00009.safetensors")
    with pytest.raises(LoadError, match=r"is there twice, the second time in model-00001-of-00009\.safetensors"):
        load_whisper(open_whisper(str(folder)))


def test_a_vocabulary_without_timestamps_is_refused(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": 50363}))
    with pytest.raises(LoadError, match="it has no timestamps: they begin at token 50363, of 50363"):
        open_whisper(str(folder))


def test_a_window_shorter_than_a_segment_is_refused(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_source_positions": 750}))
    with pytest.raises(LoadError, match=r"it hears 15 s at once \(max_source_positions\), .* have up to 28 s"):
        open_whisper(str(folder))


def test_what_looks_like_a_token_is_text_though_the_folder_does_not_say_that_it_is_special(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    last = settings["added_tokens"][-1]
    settings["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<|0.00|>", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    checkpoint = open_whisper(str(folder))
    tokens = checkpoint.tokenizer.encode(" <|0.00|> a <|en|>")
    assert max(tokens) < checkpoint.eot and checkpoint.tokenizer.decode(tokens) == " <|0.00|> a <|en|>"
    assert checkpoint.tokenizer.special["<|0.00|>"] == checkpoint.timestamp_begin


@torch.inference_mode()
def test_weights_that_are_no_numbers_are_named_when_the_example_runs(folder: Path) -> None:
    change(folder, lambda tensors: {WEIGHT: tensors[WEIGHT] * torch.nan})
    engine = WhisperASR(str(folder))
    engine.setup()
    [output] = engine.infer(engine.load(), [engine.example()])
    with pytest.raises(LoadError, match="its output in float32 is not finite; choose another with --model"):
        engine.verify(output)
