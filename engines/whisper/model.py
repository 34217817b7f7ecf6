"""A Whisper checkpoint and what recognition and alignment share of it: features, prompts, cross-attention.

Only the checkpoint's alignment heads are ever looked at: attention of all heads and layers of a large model would be
a gigabyte for 30 s.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

from prefork.engines.audio.log_mel import DYNAMIC_RANGE, HOP, N_FFT, make_mel_tables
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.checkpoints.model_folder import FILES, ModelFolder, shorten
from prefork.engines.checkpoints.quantization import quantize_linears
from prefork.engines.text.languages import get_short_code
from prefork.engines.whisper.timing import time_words, weigh_head

if TYPE_CHECKING:
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

__all__ = [
    "FRAME",
    "AttentionTap",
    "WhisperCheckpoint",
    "attend",
    "compose_prompt",
    "compute_features",
    "count_whisper_weights",
    "doubt_heads",
    "encode",
    "find_language",
    "identify",
    "load_whisper",
    "open_whisper",
    "time_words",
]

FRAME = 2 * HOP / SAMPLE_RATE  # seconds of one of the encoder's frames: its second convolution halves
_ROWS = 64  # of logits at a time: those of 448 tokens at once would be 93 MB
_FILES = (
    *FILES,
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_REMEDY = (
    "give a folder with a Whisper model's config.json, preprocessor_config.json, tokenizer and safetensors weights "
    "with --model PATH"
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
    tokenizer: Any  # WhisperTokenizer
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
        return round(-float(getattr(self.config, "start_offset_seconds", 0.0)) / FRAME)

    @property
    def most_tokens(self) -> int:
        """How many tokens the decoder can have before it, prompt included: 448."""
        return int(self.config.max_target_positions)


def open_whisper(name: str) -> WhisperCheckpoint:
    """Reads everything but the weights. name: a folder, or a hub id, which is fetched if it is not here yet.

    Raises LoadError if it cannot be had, or is not a Whisper model.
    """
    source = ModelFolder.find(name, _FILES, _REMEDY)
    config = source.read_config()
    if not isinstance(config, WhisperConfig):
        engine = "ctc" if type(config) in MODEL_FOR_CTC_MAPPING else None
        source.refuse(f"a {config.model_type} model is not a Whisper model", engine=engine)
    source.check_weights()
    source.read_extractor_settings()
    settings = {**config.to_dict(), **source.read_json("generation_config.json")}
    tokenizer = _load_tokenizer(source)
    sot = _find_token(source, config, tokenizer, "<|startoftranscript|>")
    no_timestamps = _find_token(source, config, tokenizer, "<|notimestamps|>")
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


def load_whisper(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> WhisperForConditionalGeneration:
    """The model for inference, with every weight; that of the output is the embedding's. dtype: one of DTYPES. Raises
    LoadError."""
    model: Any = checkpoint.source.load(WhisperForConditionalGeneration, dtype, _quantize)
    return model  # type: ignore[no-any-return]


def count_whisper_weights(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> int:
    """Bytes that the model will take once `load_whisper` has it in this dtype. Raises LoadError."""
    kind: Any = WhisperForConditionalGeneration
    return checkpoint.source.count_weights(kind._from_config, checkpoint.config, dtype, _quantize)


def identify(checkpoint: WhisperCheckpoint) -> dict[str, str]:
    """What tells this model from others: the hub's commit, or a digest of the folder's files."""
    return checkpoint.source.identify()


def _quantize(model: nn.Module) -> None:
    """All linear layers but the output: its weight is the embedding's, and is there in float32 anyway."""
    inner: Any = model.model
    quantize_linears(inner)


def _load_tokenizer(source: ModelFolder) -> Any:
    kind: Any = WhisperTokenizer
    if not (source.path / "tokenizer.json").is_file() and not (source.path / "merges.txt").is_file():
        source.refuse("it has no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    try:
        return kind.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  the tokenizers library raises bare Exceptions
        source.refuse(f"its tokenizer cannot be loaded ({shorten(error)})", error)


def _look_up(tokenizer: Any, *names: str) -> int | None:
    added = tokenizer.get_added_vocab()
    return next((added[name] for name in names if name in added), None)


def _find_token(source: ModelFolder, config: WhisperConfig, tokenizer: Any, name: str) -> int:
    token = _look_up(tokenizer, name)
    if token is None:
        source.refuse(f"its tokenizer has no {name}")
    if token >= config.vocab_size:
        source.refuse(f"its tokenizer does not fit config.json: {name} is {token} of {config.vocab_size} tokens")
    return token


def _list_languages(tokenizer: Any) -> dict[str, int]:
    found = ((_LANGUAGE.fullmatch(text), token) for text, token in tokenizer.get_added_vocab().items())
    return dict(sorted((match[1], token) for match, token in found if match))


def _read_heads(source: ModelFolder, config: WhisperConfig, settings: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    heads = settings.get("alignment_heads") or ()
    try:
        pairs = tuple(sorted({(int(layer), int(head)) for layer, head in heads}))
    except (TypeError, ValueError) as error:
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
        "half of its decoder, and may be off"
    ]


def compose_prompt(
    checkpoint: WhisperCheckpoint, language: str | None = None, *, timestamps: bool = False
) -> list[int]:
    """The tokens before the text. language: one of checkpoint.languages; not needed by an English-only checkpoint."""
    prompt = [checkpoint.sot]
    if checkpoint.multilingual and checkpoint.transcribe is not None:
        prompt += [checkpoint.languages[language or "en"], checkpoint.transcribe]
    return prompt if timestamps else [*prompt, checkpoint.no_timestamps]


@functools.cache
def _make_tables(bins: int) -> dict[str, Tensor]:
    return make_mel_tables(bins, SAMPLE_RATE)


def compute_features(checkpoint: WhisperCheckpoint, waveform: Tensor) -> Tensor:
    """The log-mel spectrogram of a window, (mel bins, 3000) float32, bit for bit that of WhisperFeatureExtractor.

    waveform: (samples,) at 16 kHz; silence is appended up to 30 s, and what is beyond is left out.
    """
    tables = _make_tables(int(checkpoint.config.num_mel_bins))
    filters, window = (tables[name].to(waveform.device) for name in ("filters", "window"))
    samples = checkpoint.frames * 2 * HOP
    waveform = F.pad(waveform.float()[:samples], (0, max(0, samples - len(waveform))))
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True)[..., :-1]
    mel = (filters @ (spectrum.abs() ** 2).contiguous()).clamp(min=1e-10).log10()
    features: Tensor = (torch.maximum(mel, mel.max() - DYNAMIC_RANGE) + 4.0) / 4.0
    return features


def encode(model: WhisperForConditionalGeneration, features: Tensor) -> Tensor:
    """What the decoder looks at. features: (batch, mel bins, 3000), or of one window without `batch`.

    (batch, 1500, d_model), in the type that the model computes in, where its weights are.
    """
    encoder: Any = model.model.encoder
    features = features if features.ndim == 3 else features[None]
    weight: Tensor = encoder.conv1.weight
    states: Tensor = encoder(features.to(weight.device, weight.dtype)).last_hidden_state
    return states


class AttentionTap:
    """What some heads of the decoder's cross-attention look at while the model runs, whichever way it attends.

    with AttentionTap(model, checkpoint.alignment_heads) as tap:
        model(...)
    tap.collect(frames)

    The queries and keys of these heads are kept as they leave their projections; the attention is computed of them
    afterwards. With a cache the keys come once and the queries token by token. One run of the model for each tap:
    without a cache, a second run would append its queries to those of the first.
    """

    def __init__(self, model: WhisperForConditionalGeneration, heads: Sequence[tuple[int, int]]) -> None:
        """heads: (layer, head) of the decoder."""
        self._heads = tuple(heads)
        self._attentions: dict[int, Any] = {
            layer: model.model.decoder.layers[layer].encoder_attn for layer in sorted({layer for layer, _ in heads})
        }
        self._queries: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in self._heads}
        self._keys: dict[tuple[int, int], Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> AttentionTap:
        for layer, attention in self._attentions.items():
            self._hooks.append(attention.q_proj.register_forward_hook(functools.partial(self._keep_queries, layer)))
            self._hooks.append(attention.k_proj.register_forward_hook(functools.partial(self._keep_keys, layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def collect(self, frames: int | None = None) -> Tensor:
        """(batch, heads, tokens, frames) float32: how each token's attention is shared out over the first `frames`,
        over all of them without it. Heads are in the order they were given."""
        return torch.stack([self._attend(pair, frames) for pair in self._heads], dim=1)

    def weigh(self, window: int = 0, tokens: int | None = None, frames: int | None = None) -> Tensor:
        """(tokens, frames) float32: how much more each token of a window looks at a frame than the others do, on the
        average of the heads. tokens, frames: the first ones, which alone are looked at; all without them. One head is
        in memory at a time: a checkpoint without alignment heads has hundreds of them."""
        rows = slice(window, window + 1)
        total = weigh_head(self._attend(self._heads[0], frames, rows, tokens))
        for pair in self._heads[1:]:
            total += weigh_head(self._attend(pair, frames, rows, tokens))
        return (total / len(self._heads))[0]

    def _attend(
        self, pair: tuple[int, int], frames: int | None, rows: slice = slice(None), tokens: int | None = None
    ) -> Tensor:
        if pair not in self._keys or not self._queries[pair]:
            raise ValueError("the model has not run from its first token on while its attention was tapped")
        queries = torch.cat([part[rows] for part in self._queries[pair]], dim=1)[:, :tokens].float()
        keys = self._keys[pair][rows, :frames].float()
        products: Tensor = queries @ keys.transpose(1, 2) * self._attentions[pair[0]].scaling
        return products.softmax(dim=-1)

    def _keep_queries(self, layer: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        for pair in self._list_heads(layer):
            self._queries[pair].append(self._cut(pair, output))

    def _keep_keys(self, layer: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        for pair in self._list_heads(layer):
            self._keys[pair] = self._cut(pair, output)

    def _list_heads(self, layer: int) -> list[tuple[int, int]]:
        return [pair for pair in self._heads if pair[0] == layer]

    def _cut(self, pair: tuple[int, int], projected: Tensor) -> Tensor:
        """(batch, n, d_model) to (batch, n, head_dim), of one head, in memory of its own."""
        size = self._attentions[pair[0]].head_dim
        return projected[..., pair[1] * size : (pair[1] + 1) * size].clone()


def attend(
    model: WhisperForConditionalGeneration,
    checkpoint: WhisperCheckpoint,
    encoder_states: Tensor,
    tokens: Sequence[Sequence[int]],
    frames: Sequence[int],
) -> list[tuple[Tensor, Tensor]]:
    """Where the alignment heads look when the decoder is given each window's tokens one after the other, and how likely
    each token is.

    encoder_states: (windows, 1500, d_model). tokens: of each window, prompt and text, no more than
    checkpoint.most_tokens. frames: of each window, those that are not padding. Returns of each window the attention as
    `AttentionTap.weigh` has it, (tokens, frames) float32, of which row i is from where token i + 1 is written, and the
    log-probabilities, (tokens - 1,) float32, of token 1 and so on: of a token of text among those of text, as
    openai/whisper's timing.py counts it, of any other among all.

    Shorter texts are filled up on the right, where nothing that the decoder is given tells on what was before it.
    """
    model_: Any = model
    longest = max(map(len, tokens))
    filled = [[*of_window, *[checkpoint.eot] * (longest - len(of_window))] for of_window in tokens]
    inputs = torch.tensor(filled, device=encoder_states.device)
    with AttentionTap(model, checkpoint.alignment_heads) as tap:
        hidden = model_.model.decoder(
            input_ids=inputs, encoder_hidden_states=encoder_states, use_cache=False
        ).last_hidden_state
    return [
        (
            tap.weigh(window, length, frames[window]),
            _score_text(model_.proj_out, checkpoint, hidden[window, :length], inputs[window, :length]),
        )
        for window, length in enumerate(map(len, tokens))
    ]


def _score_text(project: nn.Module, checkpoint: WhisperCheckpoint, hidden: Tensor, tokens: Tensor) -> Tensor:
    """(tokens - 1,) log-probabilities. hidden: (tokens, d_model), what the decoder makes of the tokens, (tokens,)."""
    scores = [
        _score(project(hidden[start : start + _ROWS]).float(), tokens[start + 1 : start + 1 + _ROWS], checkpoint)
        for start in range(0, len(tokens) - 1, _ROWS)
    ]
    return torch.cat(scores) if scores else hidden.new_zeros(0).float()


def _score(logits: Tensor, following: Tensor, checkpoint: WhisperCheckpoint) -> Tensor:
    """(rows,) log-probabilities of the tokens that follow. logits: (rows or more, vocabulary)."""
    logits = logits[: len(following)]
    chosen = logits.gather(1, following[:, None])[:, 0]
    text = logits[:, : checkpoint.eot].logsumexp(dim=-1)
    return chosen - torch.where(following < checkpoint.eot, text, logits.logsumexp(dim=-1))
