"""Data preparation: splitting, vocabulary, cache, batches, and one clear sentence for each text that cannot be used."""

import gzip
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from study.data import batches
from study.data import corpus as data
from study.spec import DataConfig
from study.stories import generator as stories

SHARED = Path(os.environ.get("SCALING_STUDY_SHARED") or Path(__file__).parents[2] / "shared")
SAMPLE = SHARED / "data" / "tinystories_sample.txt"
FIRST_STARTS = [4334, 4098, 709, 8619, 9141, 1089, 4243, 478]
CHILD = (
    "import sys; from pathlib import Path; from study.data.corpus import prepare; from study.spec import DataConfig; "
    "print(prepare(DataConfig(train_chars=300_000, seed=5), Path(sys.argv[1])).sha256)"
)


def own(tmp_path: Path, text: str | bytes, name: str = "mine.txt") -> DataConfig:
    """A configuration for a text of one's own."""
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return DataConfig(path=str(path))


def lines(n: int, end: str = "\n") -> str:
    return "".join(f"line {i} says {i * i}{end}" for i in range(n))


def whole(corpus: data.Corpus) -> str:
    return corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.val)


# ---- stories ----


def test_the_prepared_stories_are_the_generated_ones_with_their_floor(tmp_path: Path) -> None:
    corpus = data.prepare(DataConfig(train_chars=50_000, seed=2), tmp_path)
    made = stories.build(50_000, 2)
    for tokens, part in ((corpus.train, made.train), (corpus.val, made.val)):
        assert tokens.dtype == np.uint8
        assert isinstance(tokens, np.memmap)
        assert "".join(story + "<|endoftext|>" for story in part).startswith(corpus.tokenizer.decode(tokens[:3000]))
        assert len(tokens) == sum(len(story) + 1 for story in part)
    assert (corpus.floor, corpus.floor_se) == (made.floor, made.floor_se)
    assert corpus.tokenizer.characters[:2] == ("<|endoftext|>", "<unk>")
    assert int(np.count_nonzero(corpus.val == 0)) == len(made.val)


# ---- own text ----


@pytest.mark.parametrize(
    ("end", "boundary"),
    [("\n<|endoftext|>", "the <|endoftext|> markers"), ("\n\n", "blank lines"), ("\n", "line ends"), (" ", "a character")],
)
def test_a_text_is_split_90_to_10_at_the_best_boundary_it_has(tmp_path: Path, end: str, boundary: str) -> None:
    text = lines(500, end)
    corpus = data.prepare(own(tmp_path, text), tmp_path / "cache")
    assert boundary in corpus.source
    assert whole(corpus) == text
    assert 0.85 <= len(corpus.train) / (len(corpus.train) + len(corpus.val)) <= 0.95
    if end != " ":
        assert corpus.tokenizer.decode(corpus.train).endswith(end)
    assert corpus.floor is None


def test_windows_line_ends_and_a_byte_order_mark_leave_no_trace(tmp_path: Path) -> None:
    plain = data.prepare(own(tmp_path, lines(300)), tmp_path / "cache")
    windows = data.prepare(own(tmp_path, b"\xef\xbb\xbf" + lines(300, "\r\n").encode(), "other.txt"), tmp_path / "cache")
    assert plain.tokenizer == windows.tokenizer
    assert whole(plain) == whole(windows)


def test_characters_unseen_in_training_become_one_unknown_id_and_are_counted(tmp_path: Path) -> None:
    corpus = data.prepare(own(tmp_path, "abc\n" * 300 + "aéüb\n" * 10), tmp_path / "cache")
    assert corpus.n_unknown == 20
    assert int(np.count_nonzero(corpus.val == 1)) == 20
    assert not np.any(corpus.train == 1)
    assert (corpus.tokenizer.encode("Zz"), corpus.tokenizer.decode([1])) == ([1, 1], "<unk>")


def test_more_than_256_characters_take_two_bytes_each(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(400)) * 20
    corpus = data.prepare(own(tmp_path, text), tmp_path / "cache")
    assert corpus.train.dtype == np.uint16
    assert whole(corpus) == text


@pytest.mark.parametrize("tokenizer", ["char", "bytes"])
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a", b"", "is empty"),
        ("a", b" \n \n", "is empty"),
        ("a", b"text \x00\x01\x02 more", "binary file"),
        ("a", "ein Text".encode("utf-16"), "UTF-16"),
        ("a", "Größe und Maß\n".encode("latin-1") * 50, "not UTF-8.*LATIN1"),
        ("a", b"good text\n" * 200 + b"\xff\xfe bad", "not UTF-8"),
        ("a", b"a", "too short"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1 of .* has no text in the column 'text'; it has body: name one with --data.column"),
        ("a.jsonl", b"[1]\n", "it has no columns"),
        ("a.jsonl", b"{nonsense\n", "cannot be read as lines of JSON"),
        ("a.jsonl", b'{"text": ""}\n', "is empty"),
        ("a.parquet", b"nonsense", "cannot be read as Parquet"),
        ("a.txt.gz", b"nonsense", "cannot be read as UTF-8 text"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "\xff"}', mtime=0), "cannot be read as lines of JSON in UTF-8"),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)[:-6], "cannot be read as UTF-8 text"),
        ("nowhere.txt", None, "does not exist"),
        ("nowhere.gz", None, "does not exist"),
        ("", None, "is a folder without .txt"),
        ("x" * 300, None, "cannot be read"),
    ],
)
def test_a_text_that_cannot_be_used_gets_one_clear_sentence_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes | None, sentence: str, tokenizer: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        data.prepare(DataConfig(path=str(path), tokenizer=tokenizer), tmp_path / "cache")
    assert path.name.partition(".")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").glob("corpora/*")) == []


@pytest.mark.skipif(not SAMPLE.exists(), reason="the shared TinyStories sample is not on this machine")
def test_the_real_sample_with_its_wrongly_decoded_quotes_is_kept_letter_for_letter(tmp_path: Path) -> None:
    corpus = data.prepare(DataConfig(path=str(SAMPLE)), tmp_path)
    text = SAMPLE.read_text(encoding="utf-8")
    both = whole(corpus)
    assert len(both.replace("<unk>", "?")) == len(text)
    assert corpus.tokenizer.decode(corpus.train) == text[: len(corpus.train)]
    assert corpus.n_unknown == both.count("<unk>") < 20
    assert "â" in corpus.tokenizer.characters
    assert len(set(text)) == 75
    assert 60 < corpus.vocab_size <= 77


# ---- cache ----


def test_the_cache_is_used_and_its_key_is_the_content_not_the_name(tmp_path: Path) -> None:
    config = own(tmp_path, lines(300))
    assert data.find(config, tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()
    first = data.prepare(config, tmp_path / "cache")
    stamp = (first.path / "train.bin").stat().st_mtime_ns
    renamed = own(tmp_path, lines(300), "renamed.txt")
    for again in (data.find(renamed, tmp_path / "cache"), data.prepare(renamed, tmp_path / "cache")):
        assert again is not None
        assert (again.path, again.sha256) == (first.path, first.sha256)
        assert (again.path / "train.bin").stat().st_mtime_ns == stamp
    other = data.prepare(own(tmp_path, lines(301)), tmp_path / "cache")
    assert other.path != first.path
    assert other.sha256 != first.sha256


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train.bin", lambda content: content[:100]),
        ("val.bin", lambda content: content[:7] + bytes([content[7] ^ 1]) + content[8:]),
        ("val.bin", None),
        ("meta.json", lambda content: content.replace(b'"key": "', b'"key": "an')),
        ("meta.json", lambda content: b"[1, 2"),
    ],
    ids=["cut short", "a bit", "missing", "of other data", "no JSON"],
)
def test_a_damaged_cache_is_set_aside_and_made_anew(
    tmp_path: Path, file: str, damage: Callable[[bytes], bytes] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = own(tmp_path, lines(300))
    folder, sha256 = (found := data.prepare(config, tmp_path / "cache")).path, found.sha256
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage:
        (folder / file).write_bytes(damage(content))
    again = data.prepare(config, tmp_path / "cache")
    assert (again.path, again.sha256) == (folder, sha256)
    assert whole(again) == lines(300)
    assert len(list(folder.parent.glob("*.set-aside-*"))) == 1
    assert "set aside" in capsys.readouterr().err


def test_processes_that_prepare_at_once_agree_and_leave_no_scratch(tmp_path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {child.communicate(timeout=60)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(answers) == 1
    assert len(answers.pop()) == 64
    assert len(list((tmp_path / "corpora").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    config = own(tmp_path, lines(300))
    with pytest.raises(ValueError, match=r"cannot be written to .*SCALING_STUDY_CACHE"):
        data.prepare(config, Path(config.path) / "cache")


def test_what_a_killed_process_left_is_removed_after_hours_only(tmp_path: Path) -> None:
    config = own(tmp_path, lines(300))
    folder = data.prepare(config, tmp_path / "cache").path
    old, new = (folder.with_name(f".{folder.name}-{name}") for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
    os.utime(old, (time.time() - 7 * 3600,) * 2)
    (folder / "val.bin").unlink()
    data.prepare(config, tmp_path / "cache")
    assert (old.exists(), new.exists()) == (False, True)


# ---- identity ----


def test_identity_names_what_fixes_the_data_and_nothing_else(tmp_path: Path) -> None:
    config = own(tmp_path, lines(300))
    assert data.data_identity(config) == {"name": "text", "sha256": hashlib.sha256(lines(300).encode()).hexdigest()}
    of_stories = {"name": "stories", "generator": stories.VERSION, "train_chars": 5000, "seed": 1}
    assert data.data_identity(DataConfig(train_chars=5000, seed=1)) == of_stories
    others = (DataConfig(), DataConfig(seed=1), DataConfig(train_chars=5000), DataConfig(name="tinystories"))
    keys = {data.data_key(c) for c in (config, *others)}
    assert len(keys) == 5
    assert all(re.fullmatch("[0-9a-f]{16}", key) for key in keys)


# ---- batches ----


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    tokens = np.arange(10_000, dtype=np.uint16)
    (x, y), _, (again, _) = (batches.window(tokens, 3, step, 8, 64) for step in (17, 18, 17))
    assert np.array_equal(x, again)
    assert (x.shape, x.dtype) == ((8, 64), np.int64)
    assert np.array_equal(y, x + 1)
    # Philox4x64-10 is a published algorithm: these numbers hold on every machine and with every version of NumPy.
    assert x[:, 0].tolist() == FIRST_STARTS


def test_steps_and_seeds_give_different_batches_and_larger_batches_begin_alike() -> None:
    tokens = np.arange(50_000, dtype=np.uint16)
    starts = {tuple(batches.window(tokens, seed, step, 4, 16)[0][:, 0].tolist()) for seed in range(10) for step in range(50)}
    assert len(starts) == 500
    assert np.array_equal(batches.window(tokens, 1, 2, 4, 16)[0], batches.window(tokens, 1, 2, 8, 16)[0][:4])


def test_starts_cover_the_split_evenly_from_its_first_to_its_last_window() -> None:
    tokens = np.arange(74, dtype=np.uint8)  # ten possible starts for a block of 64
    starts = np.concatenate([batches.window(tokens, 0, step, 64, 64)[0][:, 0] for step in range(200)])
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10
    assert abs(counts - 1280).max() < 5 * np.sqrt(1280)


def test_a_batch_costs_no_more_from_a_longer_text() -> None:
    def seconds(n_tokens: int) -> float:
        tokens, times = np.zeros(n_tokens, dtype=np.uint8), []
        for step in range(400):
            begin = time.process_time()
            batches.window(tokens, 1, step, 8, 64)
            times.append(time.process_time() - begin)
        return sorted(times)[100]  # the lower quartile: other programs share the machine

    assert min(seconds(40_000_000) for _ in range(3)) < 3 * min(seconds(40_000) for _ in range(3))


def test_evaluation_windows_are_fixed_evenly_spaced_and_do_not_overlap() -> None:
    tokens = np.arange(10_001, dtype=np.uint16)
    x, y = batches.evaluation_windows(tokens, 100, 64)
    assert x.shape == (100, 64)
    assert np.array_equal(y, x + 1)
    assert (x[0, 0], y[-1, -1]) == (0, 10_000)
    gaps = np.diff(x[:, 0])
    assert gaps.min() >= 64
    assert gaps.max() - gaps.min() <= 1
    assert batches.eval_sha256(x, y) == batches.eval_sha256(*batches.evaluation_windows(tokens, 100, 64))
    assert batches.eval_sha256(x, y) != batches.eval_sha256(*batches.evaluation_windows(tokens, 99, 64))


def test_evaluation_takes_what_fits_of_a_short_split() -> None:
    tokens = np.arange(200, dtype=np.uint8)
    assert batches.evaluation_windows(tokens, 100, 64)[0][:, 0].tolist() == [0, 67, 135]
    assert batches.evaluation_windows(tokens[:65], 100, 64)[0].shape == (1, 64)


def test_a_split_shorter_than_one_block_is_refused_in_a_sentence() -> None:
    for cut, arguments in ((batches.window, (0, 0, 8)), (batches.evaluation_windows, (8,))):
        with pytest.raises(ValueError, match="too short for block_size=64: a split has 64 characters and needs 65"):
            cut(np.zeros(64, np.uint8), *arguments, 64)


def test_the_first_tokens_are_a_prefix_and_too_many_are_refused() -> None:
    tokens = np.arange(100, dtype=np.uint8)
    assert batches.first_tokens(tokens, 10).tolist() == list(range(10))
    assert len(batches.first_tokens(tokens, 0)) == 100
    with pytest.raises(ValueError, match="unique_tokens=101"):
        batches.first_tokens(tokens, 101)


# ---- speed ----


@pytest.mark.slow
def test_a_hundred_megabytes_are_encoded_within_five_seconds_and_a_gigabyte(tmp_path: Path) -> None:
    source = "".join(stories.build(1_000_000, 0, 1000).train) + " naïve café\n"
    with (tmp_path / "large.txt").open("w", encoding="utf-8") as file:
        for _ in range(100_000_000 // len(source) + 1):
            file.write(source)
    code = (
        "import resource, sys, time; from pathlib import Path; from study.data.corpus import prepare; from study.spec import DataConfig; "
        "begin = time.perf_counter(); prepare(DataConfig(path=sys.argv[1]), Path(sys.argv[2])); "
        "print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.txt"), str(tmp_path / "cache")]
    seconds, memory = map(float, subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split())
    print(f"{seconds:.2f} s, {memory / 2**20:.0f} MiB")
    assert seconds <= 5
    assert memory <= 2**30
