"""Texts of the Hugging Face hub, through its own library against a real local server: whole files, a beginning, cache, offline, faults."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from study import run
from study.data import corpus as data
from study.data.sources import TINYSTORIES, hub_name, split_by_name
from study.spec import DataConfig

COMMIT = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
STORY = "Once there was a fox.\nIt was kind.\n<|endoftext|>\n"
TEXT = "".join(STORY.replace("fox", f"fox number {i}") for i in range(1000))
VAL = TEXT[: len(TEXT) // 10]


@dataclass
class Hub:
    """What the local server holds by data set, and what it was asked."""

    files: dict[str, dict[str, bytes]]
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    status: int = 0
    """answered to all requests, if not 0"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    names = ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt", "TinyStories-train.txt")
    state = Hub({"roneneldan/TinyStories": dict(zip(names, (TEXT.encode(), VAL.encode(), b"the first version"), strict=True))})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            state.tokens.append(self.headers.get("Authorization", ""))
            parts = self.path.strip("/").split("/")
            dataset = "/".join(parts[parts.index("datasets") + 1 :][:2])
            if state.status or dataset not in state.files:
                return self.send_error(state.status or 404)
            files = state.files[dataset]
            if parts[0] == "api":
                siblings = [{"rfilename": name} for name in files]
                return self.answer(json.dumps({"id": dataset, "sha": COMMIT, "siblings": siblings}).encode())
            name = "/".join(parts[5:])
            return self.answer(files[name]) if parts[4] == COMMIT and name in files else self.send_error(404)

        do_HEAD = do_GET

        def answer(self, body: bytes) -> None:
            begin, end = 0, len(body)
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                begin, end = int(first), min(int(last or end) + 1, end)
            self.send_response(206 if wanted else 200)
            headers = {"ETag": f'"{len(body)}-{hash(body)}"', "X-Repo-Commit": COMMIT, "Content-Length": str(end - begin)}
            for key, value in (headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(body)}"}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[begin:end])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def decoded(corpus: data.Corpus, part: str = "train") -> str:
    assert corpus.tokenizer is not None
    return corpus.tokenizer.decode(getattr(corpus, part))


def test_tinystories_are_its_second_version_with_the_published_split_and_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    corpus = data.prepare(DataConfig(name="tinystories"), tmp_path / "cache")
    assert (decoded(corpus), decoded(corpus, "val")) == (TEXT, VAL)
    assert "roneneldan/TinyStories" in corpus.source
    assert COMMIT[:8] in corpus.source
    n_asked = len(hub.asked)
    data.prepare(DataConfig(name="tinystories"), tmp_path / "cache")
    assert len(hub.asked) == n_asked
    data.prepare(DataConfig(name="tinystories"), tmp_path / "another cache of ours")  # the hub's own cache has the files
    assert not [asked for asked in hub.asked[n_asked:] if asked.startswith("GET") and asked.endswith(".txt")]


def test_the_identity_of_tinystories_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert data.data_identity(DataConfig(name="tinystories")) == {"name": "tinystories", "revision": COMMIT, "train_bytes": None}
    assert TINYSTORIES.startswith(f"hub:roneneldan/TinyStories@{COMMIT}/")


def test_a_beginning_costs_only_its_bytes_and_ends_with_a_whole_story(hub: Hub, tmp_path: Path) -> None:
    config = DataConfig(name="tinystories", train_bytes=20_000)
    text = decoded(data.prepare(config, tmp_path / "cache"))
    assert TEXT.startswith(text)
    assert text.endswith("<|endoftext|>")
    assert 20_000 - len(STORY) - 20 < len(text) <= 20_000
    assert any(asked.endswith("train.txt bytes=0-19999") for asked in hub.asked)
    data.prepare(DataConfig(name="tinystories"), tmp_path / "cache")
    n_asked = len(hub.asked)
    assert decoded(data.prepare(config, tmp_path / "third")) == text  # cut from the whole file, which is there now
    assert not any("bytes=" in asked for asked in hub.asked[n_asked:])
    with pytest.raises(ValueError, match=r"train_bytes=9,999,999 must lie between 1,000 and the [\d,]+ bytes"):
        data.prepare(DataConfig(name="tinystories", train_bytes=9_999_999), tmp_path / "cache")


def test_parquet_files_of_a_data_set_are_read_by_column_and_keep_their_revision(hub: Hub, tmp_path: Path) -> None:
    for part, count in (("train", 400), ("validation", 40), ("test", 40)):
        path = tmp_path / "part.parquet"
        pq.write_table(pa.table({"story": [f"{part} story {i}" for i in range(count)], "id": list(range(count))}), path)
        hub.files.setdefault("me/tales", {})[f"data/{part}-00000-of-00001.parquet"] = path.read_bytes()
    corpus = data.prepare(DataConfig(name="hub:me/tales:story"), tmp_path / "cache")
    assert decoded(corpus).startswith("train story 0<|endoftext|>train story 1<|endoftext|>")
    assert decoded(corpus, "val").count("<|endoftext|>") == 40
    assert "test" not in decoded(corpus)
    key = data.data_identity(DataConfig(name="hub:me/tales:story"), tmp_path / "cache")
    assert (key["revision"], key["column"]) == (COMMIT, "story")
    hub.status = 503  # the note of the first use is enough
    assert data.data_identity(DataConfig(name="hub:me/tales:story"), tmp_path / "cache") == key
    hub.status = 0
    with pytest.raises(ValueError, match=r"no text in the column 'text'; it has story, id: name one with --data.column"):
        data.prepare(DataConfig(name="hub:me/tales"), tmp_path / "cache")


def test_the_token_of_the_environment_is_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_mine")
    data.prepare(DataConfig(name="tinystories"), tmp_path / "cache")
    assert "Bearer hf_of_mine" in hub.tokens


def test_what_the_hub_refuses_is_said_in_one_sentence_with_the_ways_on(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"me/nothing could not be fetched .*404.*HF_ENDPOINT=.*HF_TOKEN=.*--data.path FILE") as caught:
        data.prepare(DataConfig(name="hub:me/nothing"), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"has no \.txt.* that begins with 'elsewhere'; it has TinyStories"):
        data.prepare(DataConfig(name="hub:roneneldan/TinyStories/elsewhere"), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"names no data set of the hub; write hub:OWNER/DATASET"):
        hub_name("hub:nothing")


def test_without_a_network_the_command_says_one_sentence_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("SCALING_STUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run.main(["smoke", "--data.name", "hub:me/tales", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--data.name stories" in said


def test_offline_mode_uses_what_the_cache_has(hub: Hub, tmp_path: Path) -> None:
    data.prepare(DataConfig(name="tinystories"), tmp_path / "cache")
    n_asked = len(hub.asked)
    code = (
        "import sys; from pathlib import Path; from study.data.corpus import prepare; from study.spec import DataConfig; "
        "print(len(prepare(DataConfig(name=sys.argv[2]), Path(sys.argv[1])).train))"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    (tmp_path / "fresh").mkdir()
    notes = tmp_path / "fresh" / "hub"
    notes.symlink_to(tmp_path / "cache" / "hub")
    known, unknown = (
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "fresh"), name], env=offline, capture_output=True, text=True, check=False
        )
        for name in ("tinystories", "hub:me/tales")
    )
    assert int(known.stdout) == len(TEXT.replace("<|endoftext|>", "#"))
    assert "could not be fetched" in unknown.stderr
    assert len(hub.asked) == n_asked


def test_files_are_split_by_whole_words_of_their_names() -> None:
    assert split_by_name(["a/train-0.parquet", "a/train-1.parquet", "a/validation-0.parquet", "a/test-0.parquet"]) == (
        ["a/train-0.parquet", "a/train-1.parquet"],
        ["a/validation-0.parquet"],
    )
    assert split_by_name(["developer.txt", "trainer.txt", "testament.txt"]) == (["developer.txt", "trainer.txt", "testament.txt"], [])
    assert split_by_name(["one.txt", "valid.txt"]) == (["one.txt"], ["valid.txt"])
    assert split_by_name(["test.txt"]) == (["test.txt"], [])
