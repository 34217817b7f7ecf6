"""Whisper's tokens: texts to numbers and back, with the tokenizers library alone; transformers takes a second to
import, and adds nothing that is needed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer


class WhisperTokenizer:
    """special: the tokens that are no text, by name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.special: Mapping[str, int] = {
            token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._tokenizer.add_special_tokens(list(self.special))  # in many folders, timestamps are not said to be special
        self._tokenizer.encode_special_tokens = True  # what looks like one in a text is text

    @classmethod
    def read(cls, folder: Path) -> WhisperTokenizer:
        """The tokenizer of a model's folder. Raises what the libraries raise."""
        from tokenizers import Tokenizer

        if (file := folder / "tokenizer.json").is_file():
            return cls(Tokenizer.from_file(str(file)))
        from prefork.engines.checkpoints.model_folder import import_transformers

        kind = import_transformers().WhisperTokenizer  # makes one of vocab.json and merges.txt
        return cls(kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False).backend_tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, special tokens by their names; characters that are not whole are U+FFFD."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)
