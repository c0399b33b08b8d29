"""Tokens other than characters, and texts that are not one plain file: byte pairs, bytes, a tokenizer.json, arrays, records, folders."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.config import Shape
from models.tokenizer import BYTES, Tokenizer, train_bpe
from study.data import batches
from study.data import corpus as data
from study.data import tokens as text_tokens
from study.plan.memory import check_memory
from study.spec import DataConfig, TrainConfig, Trial
from study.train.bundle import Bundle
from study.train.device import Execution
from tests.running import finished
from tests.test_data import whole

TEXT = "".join(f"The cat number {i} sat on the mat; naïve 🙂 said the dog.\n<|endoftext|>" for i in range(400))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(TEXT)
    return path


# ---- tokenizers ----


@pytest.mark.parametrize(
    ("tokenizer", "size"), [("char", 2 + len(set(TEXT.replace("<|endoftext|>", "")))), ("bytes", BYTES), ("bpe:300", 300)]
)
def test_every_tokenizer_gives_the_text_back_and_a_mark_is_one_token(own: Path, tmp_path: Path, tokenizer: str, size: int) -> None:
    corpus = data.prepare(DataConfig(path=str(own), tokenizer=tokenizer), tmp_path / "cache")
    assert whole(corpus) == TEXT
    assert corpus.vocab_size == size
    assert int(np.count_nonzero(corpus.train == corpus.tokenizer.end_id) + np.count_nonzero(corpus.val == corpus.tokenizer.end_id)) == 400
    assert corpus.n_unknown == 0
    assert corpus.train.max() < size
    if tokenizer == "bytes":
        assert len(corpus.train) + len(corpus.val) == len(TEXT.replace("<|endoftext|>", "#").encode())


def test_byte_pairs_are_learned_from_the_training_text_alone_and_alike_each_time(own: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(own), tokenizer="bpe:320")
    first, again = (data.prepare(config, tmp_path / name) for name in ("one", "two"))
    assert (first.sha256, first.tokenizer) == (again.sha256, again.tokenizer)
    cut = TEXT[: len(first.tokenizer.decode(first.train))]
    assert train_bpe(cut.split("<|endoftext|>"), 320) == first.tokenizer
    assert data.prepare(config, tmp_path / "one").tokenizer == first.tokenizer
    assert Tokenizer.load(first.tokenizer.dump()) == first.tokenizer


@pytest.mark.parametrize("tokenizer", ["char", "bpe:270"])
def test_where_blocks_and_long_documents_are_cut_depends_on_the_text_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    """Through characters, marks and line ends."""
    path, found = tmp_path / "long.txt", set()
    text = "añb€c🙂<|endoftext|>\nx<|end\n\n" * 30 + "a line of words, and another\n" * 40 + "x" * 500 + "<|endoftext|>" + "short\n" * 20
    path.write_text(text, newline="\r\n")
    monkeypatch.setattr(text_tokens, "LONG", 64)
    for size in (1, 2, 3, 7, 31, 64, 1 << 22):
        monkeypatch.setattr(text_tokens, "BLOCK", size)
        corpus = data.prepare(DataConfig(path=str(path), tokenizer=tokenizer), tmp_path / f"cache{size}")
        found.add(corpus.sha256)
        assert whole(corpus) == text
    assert len(found) == 1


def test_the_tokenizer_is_part_of_the_identity_and_characters_keep_theirs(own: Path, tmp_path: Path) -> None:
    trained = tmp_path / "mine.json"
    trained.write_text(train_bpe([TEXT], 290).json)
    names = ("char", "bytes", "bpe:300", "bpe:301", str(trained))
    keys = {data.data_key(DataConfig(path=str(own), tokenizer=name)) for name in names}
    assert len(keys) == len(names)
    assert data.data_identity(DataConfig(path=str(own))).keys() == {"name", "sha256"}
    moved = tmp_path / "moved.json"
    moved.write_text(trained.read_text())
    assert data.data_key(DataConfig(path=str(own), tokenizer=str(moved))) in keys
    assert data.prepare(DataConfig(path=str(own), tokenizer=str(trained)), tmp_path / "cache").vocab_size == 290


@pytest.mark.parametrize(
    ("tokenizer", "sentence"),
    [
        ("{}/letters.json", "does not fit the text"),
        ("{}/broken.json", "is no tokenizer.json"),
        ("{}/none.json", "is no tokenizer.json"),
        ("bpe:4000", r"asks for 4,000 tokens and the training text yields [\d,]+; ask for so many"),
        *((name, "is not one of char, bytes, bpe:SIZE") for name in ("words", "bpe:100", "bpe:many")),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_in_one_sentence(own: Path, tmp_path: Path, tokenizer: str, sentence: str) -> None:
    Tokenizer(("<|endoftext|>", "<unk>", "x", "y")).library.save(str(tmp_path / "letters.json"))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match=sentence) as caught:
        data.prepare(DataConfig(path=str(own), tokenizer=tokenizer.format(tmp_path)), tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_the_entropy_of_the_stories_is_the_same_however_they_are_cut(tmp_path: Path) -> None:
    characters, pairs = (data.prepare(DataConfig(train_chars=50_000, tokenizer=name), tmp_path) for name in ("char", "bpe:400"))
    assert pairs.floor * len(pairs.val) == pytest.approx(characters.floor * len(characters.val))
    assert len(pairs.val) < 0.6 * len(characters.val)


def test_bits_per_byte_count_the_bytes_of_the_windows_and_compare_across_tokenizers(tmp_path: Path) -> None:
    """An untrained model spreads its chance over V tokens: ln V nats each."""
    shape = Shape(n_layer=1, n_embd=16, n_head=1, block_size=32)
    for tokenizer in ("char", "bytes", "bpe:400"):
        corpus = data.prepare(DataConfig(train_chars=50_000, tokenizer=tokenizer), tmp_path)
        trial = Trial(shape, TrainConfig(n_steps=1, eval_windows=64), DataConfig(), 1)
        bundle = Bundle([trial], corpus.train, corpus.val, corpus.vocab_size, corpus.tokenizer, Execution(device="cpu", n_threads=1))
        row = bundle.advance()[0]
        _, targets = batches.evaluation_windows(corpus.val, 64, 32)
        n_bytes = sum(len(corpus.tokenizer.decode(t).replace("<|endoftext|>", "").encode()) for t in targets)
        assert row["val_bpb"] == pytest.approx(row["val_loss"] * targets.size / n_bytes / math.log(2), rel=1e-3)
        assert row["val_bpb"] == pytest.approx(math.log2(corpus.vocab_size) * targets.size / n_bytes, rel=0.02)


def test_memory_follows_the_vocabulary_before_the_text_is_read() -> None:
    from study.command import parse

    command = parse(["smoke", "--device", "cpu", "--dry-run"])
    characters, pairs = (
        Trial(command.study.model, command.study.train, DataConfig(tokenizer=name), 1) for name in ("char", "bpe:4000000000")
    )
    check_memory([characters], command.options)
    with pytest.raises(ValueError, match="needs about"):
        check_memory([pairs], command.options)


# ---- files ----


def test_records_packed_files_and_folders_are_one_text_in_a_stable_order(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    stories = [f"Story {i} of a fox and a crow, naïve.\n" for i in range(90)]
    (folder / "b.txt").write_text("".join(stories[:30]))
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories[30:50]) + "\n")
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"text": story}) + "\n" for story in stories[50:60]))
    pq.write_table(pa.table({"text": [*stories[60:70], None]}), folder / "e.parquet")
    with gzip.open(folder / "sub" / "f.txt.gz", "wt") as file:
        file.write("\ufeff" + "".join(stories[70:]))
    (folder / "notes.md").write_text("not read")
    corpus = data.prepare(DataConfig(path=str(folder)), tmp_path / "cache")
    text = whole(corpus)
    assert text.replace("<|endoftext|>", "") == "".join(stories)
    assert text.count("<|endoftext|>") == 2 + 40
    keys = [data.data_key(DataConfig(path=str(folder)))]
    for name, text in (("a.txt", stories[:30]), ("a.txt", stories[:29])):
        (folder / "b.txt").unlink(missing_ok=True)
        (folder / name).write_text("".join(text))
        keys.append(data.data_key(DataConfig(path=str(folder))))
    assert keys[0] == keys[1] != keys[2]  # by what the files hold, not by their names


def test_a_folder_with_a_published_split_keeps_it(tmp_path: Path) -> None:
    for name, text in (("train", "abc\n" * 300), ("valid", "cba\n" * 30)):
        (tmp_path / f"{name}.txt").write_text(text)
    corpus = data.prepare(DataConfig(path=str(tmp_path)), tmp_path / "cache")
    assert corpus.tokenizer.decode(corpus.val) == "cba\n" * 30


# ---- arrays ----


@pytest.mark.parametrize(("dtype", "vocab_size"), [(np.uint16, 500), (np.uint32, 500), (np.uint32, 100_000)])
def test_arrays_of_token_ids_are_read_where_they_lie(tmp_path: Path, dtype: type, vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(vocab_size, size=size).astype(dtype) for name, size in (("train", 3000), ("val", 300))}
    for name, array in arrays.items():
        array.tofile(tmp_path / f"{name}.bin")
    corpus = data.prepare(DataConfig(path=str(tmp_path), vocab_size=vocab_size), tmp_path / "cache")
    assert np.array_equal(corpus.train, arrays["train"])
    assert np.array_equal(corpus.val, arrays["val"])
    assert (corpus.vocab_size, corpus.tokenizer, corpus.path) == (vocab_size, None, tmp_path)
    assert not (tmp_path / "cache").exists()
    largest = int(max(array.max() for array in arrays.values()))
    with pytest.raises(ValueError, match=rf"\.bin holds the token id {largest:,}, outside of data.vocab-size={largest:,}; give at least"):
        data.prepare(DataConfig(path=str(tmp_path), vocab_size=largest))
    with pytest.raises(ValueError, match=r"give the size of their vocabulary too: --data\.vocab-size"):
        data.prepare(DataConfig(path=str(tmp_path)))


def test_arrays_train_without_texts_and_their_identity_is_their_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        rng.integers(300, size=3000).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    corpus = data.prepare(DataConfig(path=str(tmp_path), vocab_size=300))
    trial = Trial(Shape(1, 16, 1, 32), TrainConfig(n_steps=2, eval_interval=1, eval_windows=4), DataConfig(), 1)
    bundle = Bundle([trial], corpus.train, corpus.val, 300, corpus.tokenizer, Execution(device="cpu", n_threads=1))
    outcome = finished(bundle).finish()[0]
    assert (outcome.row["status"], outcome.row["val_bpb"], outcome.samples) == ("COMPLETED", None, [])
    key = data.data_key(DataConfig(path=str(tmp_path), vocab_size=300))
    assert key != data.data_key(DataConfig(path=str(tmp_path), vocab_size=301))
    tokens = np.fromfile(tmp_path / "val.bin", np.uint16)
    tokens[0] ^= 1
    tokens.tofile(tmp_path / "val.bin")
    assert data.data_key(DataConfig(path=str(tmp_path), vocab_size=300)) != key
