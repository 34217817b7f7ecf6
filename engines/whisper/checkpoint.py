"""A Whisper checkpoint on disk: what its files say about it, or one clear reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefork.engines.audio.log_mel import HOP
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.audio.speech_regions import LONGEST
from prefork.engines.checkpoints.fields import Rule
from prefork.engines.checkpoints.hub import shorten
from prefork.engines.checkpoints.model_folder import FILES, ModelFolder, is_ctc
from prefork.engines.text.languages import get_short_code
from prefork.engines.whisper.network import WhisperConfig
from prefork.engines.whisper.tokenizer import WhisperTokenizer

FRAME = 2 * HOP / SAMPLE_RATE  # seconds of one of the encoder's frames: its second convolution halves
_FILES = (
    *FILES,
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_REMEDY = (
    "take --model tiny.en, which is included (English, the smallest), or give a folder with a Whisper model's "
    "config.json, preprocessor_config.json, tokenizer and safetensors weights with --model PATH"
)
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclass(frozen=True, slots=True)
class WhisperCheckpoint:
    """A Whisper model's folder and what stands in it beside the weights.

    alignment_heads: (layer, head) of the decoder's cross-attention; derived_heads: the checkpoint does not say which,
    these are all of the later half of the layers. languages: Whisper's code to its token, empty if English-only.
    Further fields are tokens: suppress_tokens are never to be written, begin_suppress_tokens not at the beginning,
    timestamp_begin is that of 0.00 s; no_speech and transcribe are None if there is none of it.
    """

    source: ModelFolder
    config: WhisperConfig
    tokenizer: WhisperTokenizer
    alignment_heads: tuple[tuple[int, int], ...]
    derived_heads: bool
    multilingual: bool
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    languages: Mapping[str, int]
    timestamp_begin: int
    no_timestamps: int
    sot: int
    eot: int
    no_speech: int | None
    transcribe: int | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def folder(self) -> Path:
        return self.source.path

    @property
    def frames(self) -> int:
        """The encoder's frames of a window: 1500, of 20 ms."""
        return int(self.config.max_source_positions)

    @property
    def seconds(self) -> float:
        """The length of a window: 30 s."""
        return self.frames * FRAME

    @property
    def lag(self) -> int:
        """Frames that its attention is late, as config.json's start_offset_seconds says; 0 where it does not."""
        return round(-self.config.start_offset_seconds / FRAME)

    @property
    def most_tokens(self) -> int:
        """How many tokens the decoder can have before it, prompt included: 448."""
        return int(self.config.max_target_positions)


def open_whisper(name: str) -> WhisperCheckpoint:
    """Reads everything but the weights. name: a folder, an included model, or a hub id, which is fetched if it is not
    here yet.

    Raises LoadError if it cannot be had, or is not a Whisper model.
    """
    source = ModelFolder.find(name, _FILES, _REMEDY)
    config = source.read_config(WhisperConfig)
    if not isinstance(config, WhisperConfig):
        engine = "ctc" if is_ctc(config) else None
        source.refuse(f"a {config.model_type} model is not a Whisper model", engine=engine)
    if (seconds := config.max_source_positions * FRAME) < LONGEST:  # the end of a segment would not be heard
        source.refuse(f"it hears {seconds:g} s at once (max_source_positions), and segments have up to {LONGEST:g} s")
    source.check_weights()
    source.read_extractor_settings()
    generation = source.read_json("generation_config.json")
    source.check_fields("generation_config.json", generation, _make_generation_rules(config))
    settings = {**source.read_json("config.json"), **generation}
    source.check_fields("config.json", settings, _make_generation_rules(config))
    tokenizer = _load_tokenizer(source)
    sot = _find_token(source, config, tokenizer, "<|startoftranscript|>")
    no_timestamps = _find_token(source, config, tokenizer, "<|notimestamps|>")
    if no_timestamps + 1 >= config.vocab_size:
        source.refuse(f"it has no timestamps: they begin at token {no_timestamps + 1}, of {config.vocab_size} tokens")
    multilingual = bool(settings.get("is_multilingual", no_timestamps > 50_362))  # English-only tokenizers end there
    heads = _read_heads(source, config, settings)
    return WhisperCheckpoint(
        source=source,
        config=config,
        tokenizer=tokenizer,
        alignment_heads=heads or _derive_heads(config),
        derived_heads=not heads,
        multilingual=multilingual,
        suppress_tokens=tuple(settings.get("suppress_tokens") or ()),
        begin_suppress_tokens=tuple(settings.get("begin_suppress_tokens") or ()),
        languages=_list_languages(tokenizer) if multilingual else {},
        timestamp_begin=no_timestamps + 1,
        no_timestamps=no_timestamps,
        sot=sot,
        eot=_find_token(source, config, tokenizer, "<|endoftext|>"),
        no_speech=_look_up(tokenizer, "<|nospeech|>", "<|nocaptions|>"),
        transcribe=_look_up(tokenizer, "<|transcribe|>") if multilingual else None,
    )


def _make_generation_rules(config: WhisperConfig) -> dict[str, Rule]:
    token = Rule(int, -1, config.vocab_size - 1, is_list=True)
    return {"suppress_tokens": token, "begin_suppress_tokens": token, "is_multilingual": Rule(bool)}


def identify(checkpoint: WhisperCheckpoint) -> dict[str, str]:
    """Where the model comes from: the hub's id and commit; empty for another folder."""
    return checkpoint.source.identify()


def _load_tokenizer(source: ModelFolder) -> WhisperTokenizer:
    if not (source.path / "tokenizer.json").is_file() and not (source.path / "merges.txt").is_file():
        source.refuse("it has no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    try:
        return WhisperTokenizer.read(source.path)
    except Exception as error:  # noqa: BLE001  the tokenizers library raises bare Exceptions
        source.refuse(f"its tokenizer cannot be loaded ({shorten(error)})", error)


def _look_up(tokenizer: WhisperTokenizer, *names: str) -> int | None:
    return next((tokenizer.special[name] for name in names if name in tokenizer.special), None)


def _find_token(source: ModelFolder, config: WhisperConfig, tokenizer: WhisperTokenizer, name: str) -> int:
    token = _look_up(tokenizer, name)
    if token is None:
        source.refuse(f"its tokenizer has no {name}")
    if token >= config.vocab_size:
        source.refuse(f"its tokenizer does not fit config.json: {name} is {token} of {config.vocab_size} tokens")
    return token


def _list_languages(tokenizer: WhisperTokenizer) -> dict[str, int]:
    found = ((_LANGUAGE.fullmatch(text), token) for text, token in tokenizer.special.items())
    return dict(sorted((match[1], token) for match, token in found if match))


def _read_heads(source: ModelFolder, config: WhisperConfig, settings: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    heads = settings.get("alignment_heads") or ()
    try:
        pairs = tuple(sorted({(int(layer), int(head)) for layer, head in heads}))
    except (TypeError, ValueError, OverflowError) as error:
        source.refuse("generation_config.json's alignment_heads are not pairs of a layer and a head", error)
    layers, count = config.decoder_layers, config.decoder_attention_heads
    for layer, head in pairs:
        if not (0 <= layer < layers and 0 <= head < count):
            source.refuse(
                f"generation_config.json names head {head} of layer {layer} for alignment, "
                f"but the decoder has {layers} layers of {count} heads"
            )
    return pairs


def _derive_heads(config: WhisperConfig) -> tuple[tuple[int, int], ...]:
    """All heads of the later half of the layers, as openai/whisper does for a model of which no more is known."""
    layers = range(config.decoder_layers // 2, config.decoder_layers)
    return tuple((layer, head) for layer in layers for head in range(config.decoder_attention_heads))


def find_language(checkpoint: WhisperCheckpoint, language: str) -> str | None:
    """Whisper's code of a language given in ISO 639-1 or 639-3; None if the checkpoint does not know it."""
    known = checkpoint.languages if checkpoint.multilingual else {"en": 0}
    code = get_short_code(language)
    return next((name for name in (code, "jw" if code == "jv" else code) if name in known), None)


def doubt_heads(checkpoint: WhisperCheckpoint) -> list[str]:
    """What there is to say about word times if the checkpoint does not name the heads that they come from."""
    if not checkpoint.derived_heads:
        return []
    return [
        f"{checkpoint.name} names no alignment heads in its generation_config.json: word times come from the upper "
        "half of its decoder, and may be inaccurate"
    ]


def compose_prompt(
    checkpoint: WhisperCheckpoint, language: str | None = None, *, timestamps: bool = False
) -> list[int]:
    """The tokens before the text. language: one of checkpoint.languages; not needed by an English-only checkpoint."""
    prompt = [checkpoint.sot]
    if checkpoint.multilingual and checkpoint.transcribe is not None:
        prompt += [checkpoint.languages[language or "en"], checkpoint.transcribe]
    return prompt if timestamps else [*prompt, checkpoint.no_timestamps]
