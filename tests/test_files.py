"""A file is whole or not there, whatever goes wrong on the way; downloads and questions to a network end in time."""

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from handmade import refusal

from headstart.errors import CheckpointError
from headstart.files import download, reachable, sha256, write_atomically


def writer(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Writing


def test_a_file_and_the_folders_above_it_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "runs" / "one" / "a.bin", writer(b"whole"))
    assert content_of(tmp_path / "runs" / "one") == {"a.bin": b"whole"}


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"something longer")
    write_atomically(tmp_path / "a.bin", writer(b"new"))
    assert content_of(tmp_path) == {"a.bin": b"new"}


def test_readers_see_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    seen: list[bytes] = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"n")
        seen.append(target.read_bytes())
        temporary.write_bytes(b"new")

    write_atomically(target, write)
    assert (seen, target.read_bytes()) == ([b"old"], b"new")


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "denied")])
@pytest.mark.parametrize("before", [{}, {"a.bin": b"old"}], ids=["new", "replaced"])
def test_trouble_with_the_disk_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, trouble: OSError, before: dict[str, bytes]
) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise trouble

    error = refusal(CheckpointError, lambda: write_atomically(tmp_path / "a.bin", write))
    assert str(tmp_path / "a.bin") in error.arrived
    assert str(trouble.strerror) in error.arrived
    assert error.__cause__ is trouble
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("trouble", [ValueError("not JSON"), KeyboardInterrupt()])
def test_any_other_trouble_passes_through_and_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, trouble: BaseException
) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise trouble

    with pytest.raises(type(trouble)) as caught:
        write_atomically(tmp_path / "a.bin", write)
    assert caught.value is trouble
    assert content_of(tmp_path) == {"a.bin": b"old"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_trouble_on_the_last_steps_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    assert (
        "Input/output error"
        in refusal(CheckpointError, lambda: write_atomically(tmp_path / "a.bin", writer(b"new"))).arrived
    )
    assert content_of(tmp_path) == {"a.bin": b"old"}


def test_content_is_on_the_disk_before_it_takes_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(handle: int) -> None:
        happened.append("flush folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "flush file")
        fsync(handle)

    def seen_replace(source: Path, target: Path) -> None:
        happened.append("move")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    write_atomically(tmp_path / "a.bin", writer(b"new"))
    assert happened == ["flush file", "move", "flush folder"]


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of processes are POSIX's")
    (tmp_path / "a.bin").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file of this process may grow further
    try:
        error = refusal(CheckpointError, lambda: write_atomically(tmp_path / "a.bin", writer(b"x" * 2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in error.arrived
    assert content_of(tmp_path) == {"a.bin": b"old"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert (
            "ermission"
            in refusal(CheckpointError, lambda: write_atomically(tmp_path / "a.bin", writer(b"new"))).arrived
        )
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", fail)
    assert (
        os.strerror(errno.EROFS)
        in refusal(CheckpointError, lambda: write_atomically(tmp_path / "a.bin", writer(b"new"))).arrived
    )
    assert content_of(tmp_path) == {}


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"a file")
    error = refusal(CheckpointError, lambda: write_atomically(tmp_path / "runs" / "a.bin", writer(b"new")))
    assert str(tmp_path / "runs" / "a.bin") in error.arrived
    assert content_of(tmp_path) == {"runs": b"a file"}


def test_a_target_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    refusal(CheckpointError, lambda: write_atomically(tmp_path / "a.bin", writer(b"new")))
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert list((tmp_path / "a.bin").iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_that_any_new_file_has(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a.bin", writer(b"new"))
        (tmp_path / "usual.bin").write_bytes(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "usual.bin").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / "a.bin").chmod(mode)
    write_atomically(tmp_path / "a.bin", writer(b"new"))
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == mode
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def test_nobody_else_can_read_a_private_file_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / "a.bin").chmod(0o600)
    modes: list[int] = []
    write_atomically(tmp_path / "a.bin", lambda temporary: modes.append(stat.S_IMODE(temporary.stat().st_mode)))
    assert modes == [0o600]


def test_the_mask_of_the_process_is_never_touched_since_other_threads_make_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(mask: int) -> int:
        pytest.fail(f"umask({mask})")

    monkeypatch.setattr(os, "umask", touched)
    write_atomically(tmp_path / "a.bin", writer(b"new"))


def test_several_threads_may_write_the_same_file_and_one_of_them_wins_whole(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [
        threading.Thread(target=write_atomically, args=(tmp_path / "a.bin", writer(content))) for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(content_of(tmp_path)) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() in contents


def test_a_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a.bin") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# The network

WEIGHTS = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers as told by the path, and holds its silence until it is closed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Answers(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        if kind in ("404", "403", "500"):
            self.send_error(int(kind))
        elif kind == "moved":
            self.send_response(301)
            self.send_header("Location", "/whole")
            self.end_headers()
        elif kind == "nonsense":
            self.wfile.write(b"what?\r\n\r\n")
        elif kind == "silent":
            self.server.closing.wait(20)
        else:
            self.send(kind)

    def send(self, kind: str) -> None:
        """Send the weights, or as much of them as the kind tells."""
        self.send_response(200)
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif kind != "unmeasured":
            self.send_header("Content-Length", str(len(WEIGHTS)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = WEIGHTS[: len(WEIGHTS) // 2]
        bodies = {"whole": WEIGHTS, "unmeasured": WEIGHTS, "chunked": b"fffff\r\n" + half}
        self.wfile.write(bodies.get(kind, half))
        self.wfile.flush()
        if kind == "stalled":
            self.server.closing.wait(20)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def unused_address() -> str:
    """Give an address of this computer at which nobody answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        return f"http://127.0.0.1:{closed.server_port}/whole"


@pytest.mark.parametrize("path", ["whole", "moved", "unmeasured"])
@pytest.mark.parametrize("digest", ["", DIGEST[:8], DIGEST])
def test_a_download_arrives_whole(tmp_path: Path, server: Server, path: str, digest: str) -> None:
    download(server.url(path), tmp_path / "cache" / "w.pth", digest_prefix=digest)
    assert content_of(tmp_path / "cache") == {"w.pth": WEIGHTS}


@pytest.mark.parametrize("before", [{}, {"w.pth": b"old"}], ids=["new", "replaced"])
def test_what_has_another_digest_is_refused(tmp_path: Path, server: Server, before: dict[str, bytes]) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    error = refusal(
        CheckpointError, lambda: download(server.url("whole"), tmp_path / "w.pth", digest_prefix="0123abcd")
    )
    assert DIGEST[:12] in error.arrived
    assert "0123abcd" in error.needed
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("404", "404"),
        ("500", "500"),
        ("nonsense", "what?"),
        ("cut", f"{len(WEIGHTS) // 2} of {len(WEIGHTS)} bytes"),
        ("chunked", ""),
    ],
)
def test_a_download_that_fails_names_the_address_and_leaves_nothing(
    tmp_path: Path, server: Server, path: str, reason: str
) -> None:
    (tmp_path / "w.pth").write_bytes(b"old")
    error = refusal(CheckpointError, lambda: download(server.url(path), tmp_path / "w.pth"))
    assert server.url(path) in error.arrived
    assert reason in error.arrived
    assert "space" not in error.todo
    assert content_of(tmp_path) == {"w.pth": b"old"}


@pytest.mark.parametrize("path", ["silent", "stalled"])
def test_a_download_does_not_wait_for_a_server_that_falls_silent(tmp_path: Path, server: Server, path: str) -> None:
    begin = time.monotonic()
    error = refusal(CheckpointError, lambda: download(server.url(path), tmp_path / "w.pth", timeout_seconds=0.2))
    assert time.monotonic() - begin < 5
    assert "timed out" in error.arrived
    assert content_of(tmp_path) == {}


def test_a_download_from_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    address = unused_address()
    assert address in refusal(CheckpointError, lambda: download(address, tmp_path / "w.pth")).arrived
    assert content_of(tmp_path) == {}


def test_a_download_to_a_place_that_cannot_be_written_to_blames_the_place(tmp_path: Path, server: Server) -> None:
    (tmp_path / "w.pth").mkdir()
    error = refusal(CheckpointError, lambda: download(server.url("whole"), tmp_path / "w.pth"))
    assert str(tmp_path / "w.pth") in error.arrived
    assert error.todo.startswith("Choose another path")


@pytest.mark.parametrize("path", ["whole", "moved", "403", "404", "500"])
def test_any_answer_says_that_there_is_a_network(server: Server, path: str) -> None:
    assert reachable(server.url(path)) is None


def test_silence_is_no_answer_and_is_not_waited_for(server: Server) -> None:
    begin = time.monotonic()
    assert "timed out" in (reachable(server.url("silent"), timeout_seconds=0.2) or "")
    assert time.monotonic() - begin < 5


def test_nobody_there_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert "refused" in (reachable(unused_address()) or "")


def test_an_answer_that_is_not_http_is_told_as_it_is(server: Server) -> None:
    assert "what?" in (reachable(server.url("nonsense")) or "")


def test_a_reason_is_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object, **__: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("urllib.request.urlopen", cut)
    assert reachable("http://127.0.0.1/") == "ConnectionResetError"


def test_a_file_address_is_answered_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(WEIGHTS)
    assert reachable((tmp_path / "w.pth").as_uri()) is None
    assert reachable((tmp_path / "missing.pth").as_uri())
    download((tmp_path / "w.pth").as_uri(), tmp_path / "copy.pth", digest_prefix=DIGEST)
    assert sha256(tmp_path / "copy.pth") == DIGEST
