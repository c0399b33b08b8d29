"""Text to token ids and back: characters, or whatever a tokenizer.json of the `tokenizers` library says (bytes and byte pairs among them).

A value that can be stored beside weights and sent to workers; no torch.

    tokenizer = Tokenizer(characters=(END_OF_TEXT, UNKNOWN, "a", "b")); tokenizer.decode(tokenizer.encode("abba"))
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
BYTES = 258
"""Size of a vocabulary of bytes: the two marks above and all bytes."""


@dataclass(frozen=True)
class Tokenizer:
    """One of the two is given."""

    characters: tuple[str, ...] = ()
    """character of each id, the end-of-text mark first, then the unknown character"""
    json: str = ""
    """a tokenizer.json"""

    @classmethod
    def load(cls, text: str) -> "Tokenizer":
        """What `dump` wrote."""
        return cls(tuple(json.loads(text))) if text.startswith("[") else cls(json=text)

    def dump(self) -> str:
        """As text: the list of characters, or the tokenizer.json."""
        return json.dumps(self.characters) if self.characters else self.json

    @cached_property
    def library(self) -> tokenizers.Tokenizer:
        """As the library's own object."""
        if self.json:
            return tokenizers.Tokenizer.from_str(self.json)
        found = tokenizers.Tokenizer(WordLevel(self._ids, unk_token=UNKNOWN))
        found.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        found.decoder = decoders.Fuse()
        found.add_special_tokens([END_OF_TEXT])
        return found

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters)}

    @property
    def size(self) -> int:
        """Number of token ids."""
        return len(self.characters) or self.library.get_vocab_size()

    @cached_property
    def end_id(self) -> int | None:
        """The token between two documents, if there is one."""
        return self.library.token_to_id(END_OF_TEXT)

    @cached_property
    def unknown_id(self) -> int | None:
        """The token for what the vocabulary lacks, if there is one."""
        return self.library.token_to_id(getattr(self.library.model, "unk_token", None) or UNKNOWN)

    def encode(self, text: str) -> list[int]:
        """Token ids; an end-of-text mark is one token where the vocabulary has it."""
        if self.end_id is None:
            return self.encode_parts([text])[0]
        first, *others = self.encode_parts(text.split(END_OF_TEXT))
        return first + [token for part in others for token in (self.end_id, *part)]

    def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts without end-of-text marks."""
        if self.characters:
            return [[self._ids.get(character, 1) for character in part] for part in parts]
        return [found.ids for found in self.library.encode_batch_fast(parts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], marks: bool = True) -> str:
        """The text of token ids, end-of-text and unknown marks in words or left out."""
        if not self.characters:
            return self.library.decode([int(i) for i in ids], skip_special_tokens=not marks)
        return "".join(self.characters[i] for i in ids if marks or i > 1)

    def count_bytes(self, ids: Iterable[int]) -> int:
        """UTF-8 bytes of the text that the ids spell, marks not counted."""
        return len(self.decode(ids, marks=False).encode())


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte pairs (Sennrich et al. 2016, on bytes as GPT-2) learned from texts; without merges it reads bytes. Equal texts give equal ones.

    Args:
        texts: training text without end-of-text marks.
        size: vocabulary, marks included; a short text gives fewer.
    """
    found = tokenizers.Tokenizer(BPE(unk_token=UNKNOWN))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        texts, BpeTrainer(vocab_size=size, special_tokens=[END_OF_TEXT, UNKNOWN], initial_alphabet=alphabet, show_progress=False)
    )
    return Tokenizer(json=found.to_str())


def read_file(path: Path) -> Tokenizer:
    """A tokenizer from its file.

    Raises:
        ValueError: it is missing or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"data.tokenizer={path} is no tokenizer.json ({error}); give char, bytes, bpe:SIZE or such a file") from error
    return Tokenizer(json=text)
