"""What is no CTC model is refused with one message that names it, the reason and the remedy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertForCTC, WhisperConfig

from prefork.engines.base import LoadError
from prefork.engines.ctc.aligner import EMBEDDED, CTCAligner
from prefork.engines.ctc.checkpoint import DTYPES, count_weights, load_model, open_checkpoint
from prefork.platform_matrix.systems import SYSTEM
from prefork.weights.arena import Arena

pytestmark = pytest.mark.dependencies

Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model, to be damaged."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def change_json(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, **values}), encoding="utf-8")

    return change


def replace_file(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def remove_file(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5_000_000])


FAULTS: dict[str, tuple[Change, str]] = {
    "no config": (remove_file("config.json"), "it has no config.json"),
    "broken config": (replace_file("config.json", "{"), r"config.json cannot be read"),
    "unknown architecture": (
        change_json("config.json", model_type="novel"),
        r"transformers \S+ cannot read its config.json",
    ),
    "not CTC": (lambda folder: WhisperConfig().save_pretrained(folder), "a whisper model is not a CTC model"),
    "no weights": (remove_file("model.safetensors"), r"it has no safetensors weights \(none\)"),
    "pickled weights": (pickle_weights, "only pickled ones, which can run code"),
    "cut weights": (cut_weights, "its weights cannot be loaded"),
    "a weight missing": (
        change_weights(lambda weights: weights.pop("head.classifier.weight")),
        r"1 missing \(head.classifier.weight\)",
    ),
    "fewer layers than weights": (
        change_json("config.json", encoder_layers=3),
        r"15 unexpected \(encoder.layers.3",
    ),
    "another width": (change_json("config.json", head_dim=128), "its weights"),
    "no vocabulary": (remove_file("vocab.json"), "it has no vocabulary"),
    "broken vocabulary": (replace_file("vocab.json", "[1"), "vocab.json cannot be read"),
    "vocabulary of another model": (
        change_json("vocab.json", ж=32),
        r"vocab\.json: 'ж' is 32; .* from 0 to 31, for config\.json has 32 outputs",
    ),
    "a vocabulary for each language": (
        replace_file("vocab.json", '{"deu": {"A": 1}, "eng": {"A": 1}}'),
        r"one vocabulary per language \(deu, eng",
    ),
    "syllables": (replace_file("vocab.json", '{"<pad>": 0, "ka": 1, "to": 2}'), "no single letters"),
    "no frontend": (remove_file("preprocessor_config.json"), "it has no preprocessor_config.json"),
    "telephone": (change_json("preprocessor_config.json", sampling_rate=8000), "it expects audio at 8000 Hz"),
    "no frame rate": (change_json("config.json", frame_seconds=0.02001), "set frame_seconds in its config.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_ctc_model_is_refused_by_name(fault: str, folder: Path) -> None:
    change, reason = FAULTS[fault]
    change(folder)
    engine = CTCAligner(str(folder))
    with pytest.raises(LoadError, match=reason) as caught:
        engine.setup()
        engine.load()
    message = str(caught.value)
    assert message.startswith(str(folder)) and message.endswith("with --model PATH") and "\n" not in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./nowhere", "there is no such folder;"),
        ("/nowhere/to/be/found", "there is no such folder;"),
        ("what is this?", "there is no such folder, and what is this? is not a valid hub id"),
        ("somebody/something", "there is no such folder, and the hub cannot be reached"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match=re.escape(reason)) as caught:
        open_checkpoint(name)
    assert str(caught.value).startswith(name) and "--model PATH" in str(caught.value)


@pytest.mark.skipif(SYSTEM.network_spoils_forks, reason="another process asks the hub, and finds nothing replaced")
def test_a_model_fetched_from_the_hub_is_used_without_a_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "hub" / "models--somebody--something"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123abcd" * 5)
    shutil.copytree(folder, cache / "snapshots" / ("0123abcd" * 5))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    engine = CTCAligner("somebody/something")
    engine.setup()
    assert engine.fingerprint()["model"] == {"id": "somebody/something", "commit": "0123abcd" * 5}
    assert next(engine.load().parameters()).dtype == torch.float32


def test_a_weight_that_only_training_needs_may_be_missing_or_left_over(folder: Path) -> None:
    change_weights(lambda weights: weights.update({"quantizer.codevectors": torch.zeros(2)}))(folder)
    load_model(open_checkpoint(str(folder)))


def test_weights_that_cannot_be_read_cannot_be_counted(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    cut_weights(folder)
    with pytest.raises(LoadError, match="its weights cannot be loaded"):
        count_weights(checkpoint)


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_large_the_weights_will_be_is_known_before_they_are_loaded(folder: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(str(folder))
    size = Arena.pack({"model": load_model(checkpoint, dtype)}).size
    assert size <= count_weights(checkpoint, dtype) <= 1.05 * size


def test_a_vocabulary_can_be_read_from_a_tokenizer(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    (folder / "vocab.json").unlink()
    assert open_checkpoint(str(folder)).vocabulary == open_checkpoint(str(EMBEDDED)).vocabulary


def test_the_embedded_vocabulary_is_letters_apostrophe_blank_and_separator() -> None:
    vocabulary = open_checkpoint(str(EMBEDDED)).vocabulary
    assert "".join(sorted(vocabulary.columns)) == "'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert (vocabulary.blank, vocabulary.separator) == (0, 4)


def test_a_model_that_takes_features_gets_those_of_its_extractor(folder: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config: Any = Wav2Vec2BertConfig(**sizes, vocab_size=32, feature_projection_input_dim=160)  # type: ignore[arg-type]
    model: Any = Wav2Vec2BertForCTC(config)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    settings = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": 80, "num_mel_bins": 80}
    settings |= {"stride": 2, "sampling_rate": 16_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    engine = CTCAligner(str(folder))
    engine.setup()
    loaded = engine.load()
    with torch.inference_mode():
        engine.verify(engine.infer(loaded, [engine.example()])[0])
        (output,) = engine.infer(loaded, [{"waveform": torch.randn(32_000)}])
    assert output["log_probs"].shape[1] == 32 and abs(len(output["log_probs"]) - 100) <= 2
