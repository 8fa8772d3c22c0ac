"""Files that are whole or not there, and downloads that fail within seconds.

What is inside a file is not this room's business.
"""

import contextlib
import csv
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from headstart.errors import CheckpointError, ConfigError

_HEADERS = {"User-Agent": "headstart"}
_LOCKED: set[Path] = set()  # by fits of this process


def as_path(path: str | Path) -> Path:
    """Take a path from the user: `~` is the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody is called so: then it is a name like any other
        return Path(path)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that, whatever happens, `path` holds the whole new content or what it held before.

    The content goes to a temporary file in the same folder, is flushed to the disk, takes the target's name in one
    move, and the folder is flushed too.

    Args:
        path: the target; missing folders above it are made.
        write: called with the temporary path, writes the content there.

    Raises:
        CheckpointError: the folder cannot be written to or the disk is full; free space or choose another folder.

    Example:
        >>> target = Path("notes.txt")
        >>> write_atomically(target, lambda temporary: temporary.write_text("whole"))
        >>> target.read_text()
        'whole'
    """
    # The name is nobody else's: other threads and processes may write the same target.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o7777 if path.is_file() else None
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode | 0o600))
        mode = temporary.stat().st_mode & 0o7777 if mode is None else mode
        write(temporary)
        _flush(temporary)
        temporary.chmod(mode)  # safetensors puts a file of its own there, which nobody else may read
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error}",
            "the path of a file, in a folder that can be written to, with enough free space",
            f"{_cure(error)}, then save again. What was there before is untouched.",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone by its new name, or never made
            temporary.unlink()


def files_in(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Give the files of a folder whose whole names fit a pattern, hidden ones too; none where there is no folder."""
    there = folder.iterdir() if folder.is_dir() else ()
    return [file for file in there if pattern.fullmatch(file.name) and file.is_file()]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all, in UTF-8 with lines that end in a line feed.

    Args:
        path: the file.
        header: the columns' names.
        rows: the values, a row at a time. A file name that is no valid text goes through as the bytes it is.

    Raises:
        CheckpointError: the file cannot be written; choose another folder.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])

    write_atomically(path, write)


def demand_writable(folder: Path, who: str) -> None:
    """Refuse a folder that could neither be written to nor be made, before there is anything to write.

    Raises:
        ConfigError: it, or the nearest folder above it that exists, is a file or cannot be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"{there}, which " + ("cannot be written to" if there.is_dir() else "is a file"),
            f"a folder, for {folder} to be made or filled",
            f"Give {who} another path.",
        )


def free_space(folder: Path) -> int:
    """Give the free bytes of the disk that a folder is on, or will be on."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def demand_space(folder: Path, size: int, what: str) -> None:
    """Refuse a disk that is already too full for a file that will be written to it.

    Args:
        folder: where it will be written.
        size: of the file, in bytes, at the least.
        what: what the message calls it.

    Raises:
        CheckpointError: there is less space than that.
    """
    free = free_space(folder)
    if free < size:
        raise CheckpointError(
            f"{folder}, on a disk with {free / 1e6:.1f} MB free",
            f"at least {size / 1e6:.1f} MB for {what}",
            "Free some space or choose another folder.",
        )


def _flush(path: Path) -> None:
    """Wait until what was written to a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handles for folders; its rename is flushed with the file.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cure(error: OSError) -> str:
    wrong_path = error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL)
    return "Choose another path" if wrong_path else "Free some space or choose another folder"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Hold a lock, a file with the number of the process that holds it.

    The system lets go of it when the process ends, however it ends. On Windows, which has other locks, nothing is
    locked.

    Yields:
        None, or the number of the process that holds it already.

    Raises:
        CheckpointError: the file cannot be made.
    """
    path = path.absolute()
    if path in _LOCKED:  # the system's locks are between processes, not inside one
        yield os.getpid()
        return
    new = [folder for folder in path.parents if not folder.exists()]
    handle = _lock(path)
    if handle is None:
        yield int(path.read_text() or 0)
        return
    _LOCKED.add(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield None
    finally:
        _LOCKED.discard(path)
        if os.name == "nt":  # which removes no file that is open
            os.close(handle)
        with contextlib.suppress(OSError):  # it may be gone with its folder
            path.unlink()
        if os.name != "nt":  # only now, or another process would lock what is about to go
            os.close(handle)
        with contextlib.suppress(OSError):  # something else is in them now
            for folder in new:
                folder.rmdir()


def _lock(path: Path) -> int | None:
    """Open and lock a file, or give None when another process holds its lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            if not _locks(handle):
                os.close(handle)
                return None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
                return handle
            os.close(handle)  # whoever held it has removed it in between
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be made: {error}",
            "a folder that can be written to",
            f"{_cure(error)}, then start again.",
        ) from error


def _locks(handle: int) -> bool:
    """Lock an open file for this process, where the system can; say whether no other one has."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network folders know no locks: there everybody may train.
            return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def sha256(path: Path) -> str:
    """Give the SHA-256 digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reachable(url: str, timeout_seconds: float = 5.0) -> str | None:
    """Say why a web address cannot be reached, or None when it answers.

    Any answer counts, also "forbidden" or "moved": the question is only whether there is a network.

    Args:
        url: an http(s) or file address; only its head is asked for.
        timeout_seconds: how long to wait for a connection and for an answer, each.
    """
    request = urllib.request.Request(url, method="HEAD", headers=_HEADERS)
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds):
            return None
    except urllib.error.HTTPError as answer:
        answer.close()
        return None
    except (OSError, HTTPException) as error:
        return _reason(error)


def download(url: str, path: Path, timeout_seconds: float = 10.0, digest_prefix: str = "") -> None:
    """Fetch a file, whole and checked, or leave nothing behind.

    Args:
        url: where it is.
        path: where it goes.
        timeout_seconds: the longest silence of the other side that is put up with.
        digest_prefix: the beginning of the file's SHA-256 in hexadecimal; empty checks nothing but the length.

    Raises:
        CheckpointError: the network failed, the disk is full, or what arrived is not the file the digest belongs to.
            Try again, or fetch the file another way.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for piece in _pieces(url, timeout_seconds):
                file.write(piece)
        if not (arrived := sha256(temporary)).startswith(digest_prefix):
            raise CheckpointError(
                f"{url} with SHA-256 {arrived[:12]}…",
                f"the file whose SHA-256 begins with {digest_prefix}",
                "Download it again; if that does not help, fetch it another way and pass its path.",
            )

    write_atomically(path, write)


def _pieces(url: str, timeout_seconds: float) -> Iterator[bytes]:
    """Fetch what is at an address, piece by piece, to its end; what goes wrong is the network's, not the disk's."""
    arrived = 0
    try:
        request = urllib.request.Request(url, headers=_HEADERS)
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            promised = getattr(answer, "length", None)  # bytes, where a web server has told them
            while piece := answer.read(1 << 20):
                arrived += len(piece)
                yield piece
    except (OSError, HTTPException) as error:
        raise _unfetched(url, _reason(error)) from error
    if promised is not None and arrived < promised:  # urllib takes a lost connection for the end
        raise _unfetched(url, f"the connection was lost after {arrived} of {promised} bytes")


def _unfetched(url: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{url}: {reason}",
        "an answer with the whole file",
        "Check the network and try again, or fetch the file another way and pass its path.",
    )


def _reason(error: Exception) -> str:
    """Say in a few words what a network did wrong."""
    if isinstance(error, urllib.error.HTTPError):
        with error:  # it is an open answer as well
            return str(error)
    return str(getattr(error, "reason", error)) or type(error).__name__
