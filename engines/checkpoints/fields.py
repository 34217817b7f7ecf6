"""Fields: what a model's files say of it, checked before a library builds anything of that size or type. Pure.

What a field has to be follows from what it is by default in transformers' own configuration of that model, and from
the bounds below: a value that is none of its kind would be met by whoever multiplies with it, far from the file.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

_LONGEST = 60  # characters of a value that are shown
_MOST = 2**31 - 1
_MOST_ITEMS = 100_000  # of a list


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field has to be. kind: of its value, or of each value in a list; least, most: of numbers. required: null,
    which otherwise stands for nothing, is none of them."""

    kind: type
    least: float = -math.inf
    most: float = math.inf
    is_list: bool = False
    required: bool = False

    def allows(self, value: Any) -> bool:
        if self.is_list:
            return isinstance(value, list) and len(value) <= _MOST_ITEMS and all(map(self._allows_one, value))
        return self._allows_one(value)

    def _allows_one(self, value: Any) -> bool:
        if self.kind in (bool, str, dict):
            return isinstance(value, self.kind)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else (int, float)):
            return False
        return self.least <= value <= self.most and abs(value) <= sys.float_info.max  # false for NaN

    def describe(self) -> str:
        """
        >>> Rule(int, 1, 9).describe(), Rule(float).describe(), Rule(int, 0, is_list=True).describe()
        ('a whole number from 1 to 9', 'a number', 'a list, each a whole number of at least 0')
        """
        names = {bool: "true or false", str: "a text", dict: "a table", int: "a whole number", float: "a number"}
        text = names[self.kind]
        if math.isfinite(self.most):
            text += f" from {self.least:.12g} to {self.most:.12g}"
        elif math.isfinite(self.least):
            text += f" of at least {self.least:.12g}"
        return f"a list, each {text}" if self.is_list else text


_EITHER = re.compile(r"^(bos|eos|decoder_start)_token_id$")  # a number or a list of them, and not used here
_SIZE = re.compile(
    r"(vocab_size|hidden_size|d_model|layers|heads|intermediate_size|ffn_dim|head_dim|_positions|conv_dim|conv_stride"
    r"|conv_kernel|kernel_size|num_mel_bins)$"
)
_BOUNDS = (  # by name: what is larger is no model that anybody has, and building it would take all memory
    (re.compile(r"layers$"), 1000),
    (re.compile(r"heads$"), 10_000),
    (re.compile(r"(mel_bins|feature_size)$"), 1024),
    (re.compile(r"(size|dim|d_model|positions|kernel|stride|groups|embeddings)$"), 10_000_000),
)
# What prefork reads of config.json itself; transformers' configurations do not have all of these.
OWN = {
    "vocab_size": Rule(int, 1, 10_000_000),
    "model_type": Rule(str),
    "inputs_to_logits_ratio": Rule(int, 1, 160_000),
    "frame_seconds": Rule(float, 1e-4, 10.0),
    "start_offset_seconds": Rule(float, -10.0, 10.0),
    "end_offset_seconds": Rule(float, -10.0, 10.0),
    "sampling_rate": Rule(int, 1, 1_000_000),
}
EXTRACTOR = {
    "feature_extractor_type": Rule(str),
    "sampling_rate": Rule(int, 1, 1_000_000),
    "feature_size": Rule(int, 1, 1024),
    "num_mel_bins": Rule(int, 1, 1024),
    "hop_length": Rule(int, 1, 160_000),
    "stride": Rule(int, 1, 1000),
    "n_fft": Rule(int, 1, 1_000_000),
    "win_length": Rule(int, 1, 1_000_000),
    "chunk_length": Rule(int, 1, 3600),
    "n_samples": Rule(int, 1, 60_000_000),
    "nb_max_frames": Rule(int, 1, 1_000_000),
    "padding_value": Rule(float),
    "do_normalize": Rule(bool),
    "return_attention_mask": Rule(bool),
}


def make_rules(defaults: Mapping[str, Any]) -> dict[str, Rule]:
    """For the fields of a configuration, from what each is by default."""
    rules = {}
    for name, value in defaults.items():
        items = list(value) if isinstance(value, list | tuple) else [value]
        kinds = {type(item) for item in items}
        if len(kinds) != 1 or not kinds <= {bool, int, float, str, dict} or _EITHER.search(name):
            continue  # nothing follows from it
        kind = kinds.pop()
        is_size = kind is int and _SIZE.search(name) is not None
        rules[name] = Rule(kind, *_bound(name, kind), is_list=isinstance(value, list | tuple), required=is_size)
    for name, own in OWN.items():
        known = rules.setdefault(name, own)
        if known.kind is own.kind:
            rules[name] = replace(own, required=known.required)
    return rules


def _bound(name: str, kind: type) -> tuple[float, float]:
    if kind is not int:
        return -math.inf, math.inf
    most = next((bound for pattern, bound in _BOUNDS if pattern.search(name)), _MOST)
    return 1 if _SIZE.search(name) and "adapter" not in name else -1, most


def find_wrong(settings: Mapping[str, Any], rules: Mapping[str, Rule]) -> str:
    """The first field that is not what it has to be, with its value; empty if there is none.

    >>> find_wrong({"vocab_size": 1e308}, {"vocab_size": Rule(int, 1, 100)})
    'vocab_size is 1e+308; it has to be a whole number from 1 to 100'
    """
    for name, rule in rules.items():
        value = settings.get(name)
        is_missing = value is None and not (rule.required and name in settings)
        if not is_missing and not rule.allows(value):
            return f"{name} is {show(value)}; it has to be {rule.describe()}"
    return ""


def find_wrong_token(tokens: Iterable[tuple[Any, Any]], size: int) -> str:
    """Of a vocabulary: the first token whose number is none of the model's outputs; empty if there is none."""
    rule = Rule(int, 0, size - 1)
    wrong = next(((token, number) for token, number in tokens if not rule.allows(number)), None)
    return "" if wrong is None else f"{show(wrong[0])} is {show(wrong[1])}; it has to be {rule.describe()}"


def show(value: Any) -> str:
    """A value of a file, on one line, cut where it is long; what is nested too deeply to be shown by its type."""
    try:
        text = "null" if value is None else repr(value)
    except (RecursionError, ValueError):  # ValueError: of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
