"""The TinyStories download against a real local server: resume, truncation, wrong checksum, no Range support, no network."""

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from study.data import corpus as data
from study.data import tinystories as download
from study.data.tinystories import DownloadError, RemoteFile, fetch
from study.spec import DataConfig

STORY = "Once there was a fox.\nIt was kind.\n<|endoftext|>\n"
TEXT = "".join(STORY.replace("fox", f"fox number {i}") for i in range(4000)).encode()
FILE = RemoteFile("train.txt", len(TEXT), hashlib.sha256(TEXT).hexdigest())
VAL_TEXT = TEXT[: len(TEXT) // 10]
VAL = RemoteFile("valid.txt", len(VAL_TEXT), hashlib.sha256(VAL_TEXT).hexdigest())


@dataclass
class Server:
    """What the local server shall do, and what it was asked."""

    files: dict[str, bytes]
    ranges: bool = True  # does it support Range?
    break_after: int = 0  # breaks each answer off after so many bytes; 0 never
    errors: list[int] = field(default_factory=list)  # statuses to answer first
    asked: list[str] = field(default_factory=list)  # "name range" of every request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server({FILE.name: TEXT, VAL.name: VAL_TEXT})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.rsplit("/", 1)[1], self.headers.get("Range", "")
            state.asked.append(f"{name} {wanted}")
            if state.errors:
                return self.send_error(state.errors.pop(0))
            if name not in state.files or f"/datasets/roneneldan/TinyStories/resolve/{download.REVISION}/" not in self.path:
                return self.send_error(404)
            body, begin = state.files[name], 0
            if state.ranges and wanted:
                first, last = wanted.removeprefix("bytes=").split("-")
                begin, end = int(first), min(int(last) + 1, len(body))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(body)}")
                body = body[begin:end]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.break_after] if state.break_after else body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{http.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BLOCK", 10_000)
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def quiet(name: str, done: int, total: int) -> None:
    """No progress shown."""


def test_a_file_is_fetched_checked_and_not_fetched_again(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch(FILE, tmp_path, lambda *step: seen.append(step))
    assert path.read_bytes() == TEXT
    assert seen[-1] == (FILE.name, len(TEXT), len(TEXT))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert fetch(FILE, tmp_path, quiet) == path
    assert len(server.asked) == 1
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "train.txt.part").write_bytes(TEXT[:50_001])
    assert fetch(FILE, tmp_path, quiet).read_bytes() == TEXT
    assert server.asked == [f"train.txt bytes=50001-{len(TEXT) - 1}"]


def test_a_server_that_breaks_off_is_asked_for_the_rest(server: Server, tmp_path: Path) -> None:
    server.break_after = len(TEXT) // 3 + 1
    assert fetch(FILE, tmp_path, quiet).read_bytes() == TEXT
    assert [asked.split("=")[1].split("-")[0] for asked in server.asked] == ["0", str(server.break_after), str(2 * server.break_after)]


def test_a_server_that_always_breaks_off_ends_in_a_message_and_the_next_run_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server.break_after = 1000
    with pytest.raises(DownloadError, match=r"4,000 of [\d,]+ bytes arrived in 4 attempts"):
        fetch(FILE, tmp_path, quiet)
    assert (tmp_path / "train.txt.part").read_bytes() == TEXT[:4000]
    server.break_after = 0
    assert fetch(FILE, tmp_path, quiet).read_bytes() == TEXT
    assert server.asked[-1].startswith("train.txt bytes=4000-")


def test_a_server_without_range_support_is_read_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "train.txt.part").write_bytes(b"x" * 5000)
    assert fetch(FILE, tmp_path, quiet).read_bytes() == TEXT


def test_a_wrong_checksum_is_named_and_the_file_set_aside(server: Server, tmp_path: Path) -> None:
    server.files[FILE.name] = TEXT[:-1] + b"?"
    with pytest.raises(DownloadError, match="SHA-256") as caught:
        fetch(FILE, tmp_path, quiet)
    assert FILE.sha256 is not None
    assert FILE.sha256[:16] in str(caught.value)
    assert (tmp_path / "train.txt.wrong").exists()
    assert not (tmp_path / "train.txt").exists()
    server.files[FILE.name] = TEXT
    assert fetch(FILE, tmp_path, quiet).read_bytes() == TEXT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_s_longer_or_shorter_file_is_never_taken(
    server: Server, tmp_path: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server.ranges = ranges
    for wrong in (TEXT[:-100], *(() if ranges else (TEXT + b"more",))):  # with Range only the wanted bytes are asked for
        server.files[FILE.name] = wrong
        with pytest.raises(DownloadError):
            fetch(FILE, tmp_path, quiet)
        assert not (tmp_path / "train.txt").exists()


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server.errors = [503, 429]
    assert fetch(FILE, tmp_path, quiet).read_bytes() == TEXT
    assert len(server.asked) == 3
    del server.files[VAL.name]
    with pytest.raises(DownloadError, match="404"):
        fetch(VAL, tmp_path, quiet)
    assert len(server.asked) == 4


def test_a_file_put_there_by_hand_is_checked_and_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_bytes(TEXT)
    assert fetch(FILE, tmp_path, quiet).read_bytes() == TEXT
    assert server.asked == []
    (tmp_path / VAL.name).write_bytes(b"?" * len(VAL_TEXT))
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(VAL, tmp_path, quiet)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_prefix_costs_only_its_bytes_and_ends_with_a_whole_story(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    train, val = download.tinystories(tmp_path, 20_000, quiet, FILE, VAL)
    text = train.read_bytes()
    assert TEXT.startswith(text)
    assert text.endswith(b"<|endoftext|>")
    assert 20_000 - len(STORY) - 20 < len(text) <= 20_000
    assert val.read_bytes() == VAL_TEXT
    assert "train.txt bytes=0-19999" in server.asked
    assert (tmp_path / "train.txt.first-20000").stat().st_size == 20_000


def test_a_prefix_is_cut_from_the_whole_text_where_that_is_there(server: Server, tmp_path: Path) -> None:
    download.tinystories(tmp_path, None, quiet, FILE, VAL)
    asked = len(server.asked)
    assert TEXT.startswith(download.tinystories(tmp_path, 20_000, quiet, FILE, VAL)[0].read_bytes())
    assert len(server.asked) == asked


def test_two_threads_that_fetch_at_once_get_the_same_whole_file(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(FILE, tmp_path, quiet)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / FILE.name).read_bytes() == TEXT
    assert len(server.asked) == 1


def test_prepared_tinystories_name_their_licence_and_have_one_token_a_marker(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.tinystories, "__defaults__", (None, None, FILE, VAL))
    corpus = data.prepare(DataConfig(name="tinystories", train_bytes=30_000), tmp_path, quiet)
    assert "CDLA-Sharing-1.0" in corpus.source
    assert corpus.decode(corpus.train).encode() == TEXT[:30_000][: TEXT.rfind(b"<|endoftext|>", 0, 30_000) + 13]
    assert corpus.decode(corpus.val).encode() == VAL_TEXT.decode().encode()
    assert corpus.floor is None


@pytest.mark.parametrize("endpoint", ["https://no-such-host.invalid", "http://127.0.0.1:9", "http://198.51.100.1"])
def test_without_a_network_it_fails_within_a_second_and_names_four_ways_on(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    begin = time.perf_counter()
    with pytest.raises(DownloadError) as caught:
        data.prepare(DataConfig(name="tinystories"), tmp_path)
    assert time.perf_counter() - begin < 1.0
    for way in ("another machine", "HF_ENDPOINT=", "--data.path FILE", "--data.name stories"):
        assert way in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_bad_mirror_address_and_a_bad_prefix_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(DownloadError, match="is not a web address"):
        fetch(FILE, tmp_path, quiet)
    with pytest.raises(ValueError, match="train_bytes=10 must lie between"):
        download.tinystories(tmp_path, 10, quiet, FILE, VAL)


def test_a_disk_that_cannot_be_written_is_named_at_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "train.txt.part").symlink_to(tmp_path / "no such folder" / "file")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(FILE, tmp_path, quiet)
    assert len(server.asked) == 1


def test_the_bar_is_drawn_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    download.terminal_bar("file", 5_000_000, 10_000_000)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(download.sys.stderr, "isatty", lambda: True)
    download.terminal_bar("file", 10_000_000, 10_000_000)
    assert "10.0 of 10.0 MB" in capsys.readouterr().err
