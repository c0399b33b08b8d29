"""Text files as token ids: reading UTF-8, finding document boundaries, counting a vocabulary, encoding.

Everything streams in blocks of BLOCK bytes, so 100 MB of text needs a few tens of megabytes of memory. No torch, no ray, no pandas.

    cut, found_by = split_documents(path); text = read_text(path, 0, cut)
    tokenizer = make_tokenizer("char", text); ids = read_ids(tokenizer, read_text(path, 0, cut))
"""

import codecs
import io
import mmap
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from models.home import expanded
from models.tokenizer import BYTES, END_OF_TEXT, UNKNOWN, Tokenizer, read_file, train_bpe

BLOCK = 1 << 22  # bytes read at a time
LONG = 1 << 15  # characters from which a document is encoded in pieces
PIECES_AT_ONCE = 1 << 10
_SENTINEL = "\U0010ffff"  # a Unicode noncharacter: stands for the whole end-of-text marker while characters are looked up
_N_CODES = 0x110000  # code points in Unicode
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# Ways to cut a file into documents, best first: (what we call it, where one document ends and the next begins).
_BOUNDARIES = (
    ("the <|endoftext|> markers", re.compile(rb"<\|endoftext\|>")),
    ("blank lines", re.compile(rb"\n[ \t]*\r?\n")),
    ("line ends", re.compile(rb"\n")),
)


def check_text_file(path: Path) -> int:
    """Return the size of a text file in bytes; raise ValueError with one clear sentence for what cannot be a corpus."""
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give one UTF-8 text file.")
        with path.open("rb") as file:
            head = file.read(BLOCK)
            size = file.seek(0, io.SEEK_END)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; give the path of a UTF-8 text file.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); give a regular file that you may read.") from error
    if not head.strip():
        raise ValueError(f"{path} is empty; give a file with text in it.")
    if head.startswith(_UTF16_MARKS):
        raise ValueError(f"{path} is UTF-16, not UTF-8; convert it with: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE")
    if b"\0" in head:
        raise ValueError(f"{path} is a binary file (it holds zero bytes); give plain UTF-8 text.")
    return size


def split_documents(path: Path) -> tuple[int, str]:
    """Where to cut a file near 90 % of its bytes, at a document boundary where it has any there, and the words for how that was found.

    The cut is the boundary nearest to the wanted place within five percent of the file to either side; without one, the next finer
    kind is tried, and at last any character will do. The boundary itself belongs to the training part.
    """
    size = check_text_file(path)
    wanted, reach = int(size * 0.9), int(size * 0.05)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, pattern in _BOUNDARIES:
            ends = (match.end() for match in pattern.finditer(data, max(0, wanted - reach), min(size, wanted + reach)))
            cut = min(ends, key=lambda end: abs(end - wanted), default=0)
            if 0 < cut < size:
                return cut, name
        while wanted > 0 and data[wanted] & 0xC0 == 0x80:  # inside a UTF-8 character: step back to its first byte
            wanted -= 1
    return wanted, "a character, for want of lines"


def read_text(path: Path, begin: int, end: int) -> Iterator[str]:
    """Yield the text of bytes [begin, end) in parts that cut no end-of-text mark; line ends become "\\n", a byte-order mark is dropped.

    Raises ValueError, naming the byte, where the text is not UTF-8.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    rest, at = "", begin
    with path.open("rb") as file:
        file.seek(begin)
        while at < end:
            block = file.read(min(BLOCK, end - at))
            if not block:
                raise ValueError(f"{path} became shorter while it was read; leave the file alone and run again.")
            try:
                text = decoder.decode(block, at + len(block) >= end)
            except UnicodeDecodeError as error:
                place = at + error.start  # a few bytes off where a character straddles two blocks
                raise ValueError(
                    f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} near position {place:,}); "
                    "if it is Latin-1, convert it with: iconv -f LATIN1 -t UTF-8 FILE > NEW_FILE"
                ) from error
            text = rest + (text[1:] if at == 0 and text.startswith("\ufeff") else text)
            at += len(block)
            whole = text if at >= end else text[: len(text) - _open_marker(text)]
            rest = text[len(whole) :]
            yield whole


def _open_marker(text: str) -> int:
    """Length of the longest end of `text` that could be the beginning of an end-of-text marker."""
    return next((n for n in range(len(END_OF_TEXT) - 1, 0, -1) if text.endswith(END_OF_TEXT[:n])), 0)


def make_tokenizer(name: str, training_text: Iterable[str]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names: `char` and `bpe:SIZE` learned from the training text, `bytes`, or a tokenizer.json.

    Raises:
        ValueError: the text is too short for so many tokens, or the file cannot be used.
    """
    if name == "char":
        seen = np.zeros(_N_CODES, dtype=bool)
        for text in training_text:
            seen[_codes(text)] = True
        seen[ord(_SENTINEL)] = False
        return Tokenizer((END_OF_TEXT, UNKNOWN, *map(chr, np.flatnonzero(seen))))
    if not name.startswith("bpe:"):
        return train_bpe((), BYTES) if name == "bytes" else read_file(expanded(name, "data.tokenizer"))
    size = int(name.removeprefix("bpe:"))
    found = train_bpe((piece for piece in _pieces(training_text, True) if piece != END_OF_TEXT), size)
    if found.size < size:
        raise ValueError(f"data.tokenizer={name} asks for {size:,} tokens and the training text yields {found.size:,}; ask for so many")
    return found


def read_ids(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Yield the token ids of a text that comes in parts, wherever they are cut, as the narrowest type that holds the vocabulary.

    Raises:
        ValueError: there are more characters than two bytes count.
    """
    if tokenizer.characters:
        table = _lookup_table(tokenizer)
        yield from (table[_codes(text)] for text in texts)
        return
    pieces = _pieces(texts, tokenizer.end_id is not None)
    while batch := list(islice(pieces, PIECES_AT_ONCE)):
        ids = [
            [tokenizer.end_id] if piece == END_OF_TEXT else found for piece, found in zip(batch, tokenizer.encode_parts(batch), strict=True)
        ]
        yield np.array(list(chain.from_iterable(ids)), np.min_scalar_type(tokenizer.size - 1))


def _codes(text: str) -> np.ndarray:
    """Code points of a string as uint32, the end-of-text marker as one code."""
    return np.frombuffer(text.replace(END_OF_TEXT, _SENTINEL).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _lookup_table(tokenizer: Tokenizer) -> np.ndarray:
    """Token id of every code point."""
    if tokenizer.size > 65_536:
        raise ValueError(f"the text has {tokenizer.size:,} different characters; at most 65,536 fit a token id.")
    table = np.full(_N_CODES, tokenizer.unknown_id, dtype=np.min_scalar_type(tokenizer.size - 1))
    for token, character in enumerate(tokenizer.characters[2:], start=2):
        table[ord(character)] = token
    table[ord(_SENTINEL)] = tokenizer.end_id
    return table


def _pieces(texts: Iterable[str], at_marks: bool) -> Iterator[str]:
    """Documents and the marks between them; a long document is cut at line ends, at places that depend on its text alone."""
    rest = ""
    for text in texts:
        *documents, rest = (rest + text).split(END_OF_TEXT) if at_marks else [rest + text]
        for document in documents:
            yield from _cut_long(document)
            yield END_OF_TEXT
        *cut, rest = _cut_long(rest)
        yield from cut
    yield rest


def _cut_long(document: str) -> Iterator[str]:
    while len(document) >= 2 * LONG:
        at = document.find("\n", LONG, 2 * LONG) + 1 or 2 * LONG
        yield document[:at]
        document = document[at:]
    yield document
