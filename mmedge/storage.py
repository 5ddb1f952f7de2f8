"""Files that are never half written: atomic writes, locks, content hashes, and JSON lines whose errors name the broken line.

Knows nothing of tasks, students or bundles. A reader of any file written here finds either the old content or the new. Lines end
with `\n` and names in hashes have `/` on every platform, so that Windows writes what Linux writes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MmedgeError

Json = dict[str, Any]
_ALIGNED = 64  # bytes
LOCK_SECONDS = 0.2  # seconds to wait for a lock; long enough for a process that is just being refused


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync_file(path: Path) -> None:
    with open(path, "rb" if os.name == "posix" else "rb+") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened on Windows, whose file systems log renames themselves
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed, on failure removed.

    Raises:
        MmedgeError: The file cannot be written, for example because the disk is full, or something other than a file has its name.
    """
    refuse_special_file(path)
    temporary = _temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path`, whole, when the block succeeds.

    An existing folder at `path` is moved aside first and removed last, so that a kill between the two renames leaves
    the new content under its temporary name and never a mixture.
    """
    temporary = _temporary_beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync_file(file)
        if path.exists():
            old = _temporary_beside(path)
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary names that a killed writer left directly inside `folder`."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith(".") and entry.name.endswith(".tmp"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, shared: bool = False, name: str = ".lock") -> Iterator[None]:
    """Hold the lock of a folder while the block runs. The operating system releases it when the process ends, however it ends.

    Args:
        folder: The folder; it is made.
        shared: Let others who also say so hold it at the same time; they exclude only those who do not.
        name: The lock's file within the folder.

    Raises:
        MmedgeError: Another process holds the lock, or the folder cannot be written.
    """
    import sqlite3

    from filelock import ReadWriteLock, Timeout

    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = ReadWriteLock(path, is_singleton=False)
        (lock.acquire_read if shared else lock.acquire_write)(timeout=LOCK_SECONDS)
    except Timeout:
        raise MmedgeError(f"another process is using {folder}", "wait until it has finished, or choose another folder") from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    except (sqlite3.Error, ValueError) as error:  # the lock is an SQLite file
        raise MmedgeError(f"cannot lock {path}: {error}", f"remove {path} and run the same command again") from None
    try:
        yield
    finally:
        lock.release()
        lock.close()


def refuse_special_file(path: Path) -> None:
    """Refuse to write to a device, a pipe or a socket, which a rename would replace by a file.

    Raises:
        MmedgeError: The path is one of these.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # a missing or unreadable path is for the writer to find
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise MmedgeError(f"{path} is a device or a pipe, not a file", "name a file")


def cannot_write(path: Path, error: OSError) -> MmedgeError:
    """Return the error for a failed write, with what to do for the usual causes."""
    hint = {
        errno.ENOSPC: "free some disk space and run the same command again; finished work is kept",
        errno.EACCES: "choose a folder that you may write to, or close the program that has the file open",
        errno.EROFS: "the file system is read-only; choose another folder",
    }.get(error.errno or 0, "check the path and run the same command again")
    return MmedgeError(f"cannot write {path}: {error.strerror or error}", hint)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        MmedgeError: The file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MmedgeError(f"no such file: {path}", "check the path") from None
    except UnicodeDecodeError as error:
        raise MmedgeError(f"{path} is not valid UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise MmedgeError(f"cannot read {path}: {error.strerror or error}", "check the path and its permissions") from None


def require_file(path: Path, field: str) -> Path:
    """Return the path of a file that a recipe names.

    Args:
        path: The file.
        field: What the recipe calls it, such as `task.train_file`.

    Raises:
        MmedgeError: The file does not exist; the message names the field.
    """
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "no such file"
        from_here = "" if path.is_absolute() else f"; it is relative to the folder that you are in, {Path.cwd()}"
        raise MmedgeError(f"{field}: {what}: {path}", f"check the path{from_here}")
    return path


def in_json(value: object, most: int) -> str:
    """Return a value as JSON spells it, cut off after some characters; what JSON cannot hold, as Python does."""
    try:
        found = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        found = repr(value)
    return found[:most]


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        MmedgeError: The file is missing or not valid JSON; the message names line and column.
    """
    hint = "fix the file, or make it again"
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise MmedgeError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}", hint) from None
    except RecursionError:
        raise MmedgeError(f"{path}: JSON nested too deeply", hint) from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise MmedgeError(f"{path}: a number with too many digits", hint) from None


def iterate_jsonl(path: Path) -> Iterator[tuple[int, Json]]:
    """Yield (line number from 1, object) for every non-empty line of a JSON-lines file.

    Raises:
        MmedgeError: The file is missing, or a line is not a JSON object; the message is `file:line: …`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, parse_json_line(line, path, number)


_SURROGATE = re.compile("[\ud800-\udfff]")


class _DoubleKey(ValueError):
    """A key of a JSON object occurs twice."""


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found: Json = {}
    for key, value in pairs:
        if key in found:
            raise _DoubleKey(key)
        found[key] = value
    return found


def parse_json_line(line: str, path: Path | str, number: int, *, strict: bool = False) -> Json:
    """Parse one line of a JSON-lines file into an object; errors name `path:number`.

    Args:
        line: The line.
        path: The file, for errors.
        number: The line's number, for errors.
        strict: Refuse what readers take differently: keys that occur twice, and halves of characters (lone surrogates).
    """
    hint = 'each line must be one complete object, such as {"question": "…"}'
    try:
        value = json.loads(line, object_pairs_hook=_unique if strict else None)
    except json.JSONDecodeError as error:
        said = f"not a complete JSON object: {error.msg} (column {error.colno})"
        raise MmedgeError(f"{path}:{number}: {said}", f"{hint}; was the file cut off?") from None
    except RecursionError:
        raise MmedgeError(f"{path}:{number}: JSON nested too deeply", hint) from None
    except _DoubleKey as error:
        raise MmedgeError(f"{path}:{number}: the key {error.args[0]!r:.60} occurs twice", "write each key once") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise MmedgeError(f"{path}:{number}: a number with too many digits", hint) from None
    if not isinstance(value, dict):
        raise MmedgeError(f"{path}:{number}: expected a JSON object, found {in_json(value, 40)}", hint)
    if strict and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise MmedgeError(f"{path}:{number}: half of a character (a lone surrogate)", "write characters whole")
    return value


class Journal:
    """The finished steps of a long computation in a file, so that it continues after it was killed.

    Each step is one line, flushed when it is finished. Steps under another key, and a last line that was cut off, are dropped.
    One process at a time has a journal open.

    Args:
        path: The file; its folder is made.
        key: Hash of everything that the steps depend on.

    Raises:
        MmedgeError: The file cannot be written, or another process writes it.
    """

    def __init__(self, path: Path, key: str) -> None:
        from filelock import FileLock, Timeout

        self._path = path
        self._steps: dict[str, Any] = {}
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.is_file() else []
            if lines and lines[0] == key:
                for line in lines[1:]:
                    try:
                        step = json.loads(line)
                        self._steps[step["name"]] = step["value"]
                    except (json.JSONDecodeError, KeyError, TypeError):
                        continue
            whole = "".join(self._line(name, value) for name, value in self._steps.items())
            write_text(path, f"{key}\n{whole}")
            self._file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 (closed by `close`)
        except Timeout:
            hint = "wait until it has finished, or write somewhere else"
            raise MmedgeError(f"another process is writing {path}", hint) from None
        except OSError as error:
            self._lock.release()
            raise cannot_write(path, error) from None

    @staticmethod
    def _line(name: str, value: Any) -> str:
        return json.dumps({"name": name, "value": value}, ensure_ascii=False) + "\n"

    def __len__(self) -> int:
        return len(self._steps)

    def get(self, name: str) -> Any:
        """Return what a finished step gave, or None."""
        return self._steps.get(name)

    def put(self, name: str, value: Any) -> None:
        """Note that a step is finished."""
        try:
            self._file.write(self._line(name, value))
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._steps[name] = value

    def close(self) -> None:
        """Close the file and keep it."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._lock.is_locked:
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                Path(self._lock.lock_file).unlink()
            self._lock.release()

    def remove(self) -> None:
        """Close the file and remove it: the work is finished and its result written."""
        self.close()
        self._path.unlink(missing_ok=True)


def text_field(record: Json, name: str, path: Path | str, number: int) -> str:
    """Return a non-empty text field of a JSON-lines record; errors name `path:number`."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if name not in record else f"must be non-empty text, found {in_json(value, 40)}"
        raise MmedgeError(f"{path}:{number}: field {name!r} {found}")
    return value


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise MmedgeError(f"no such file: {path}", "check the path") from None
    except OSError as error:
        raise MmedgeError(f"cannot read {path}: {error.strerror or error}", "check the path and its permissions") from None
    return digest.hexdigest()


def read_hashed(path: Path, size: int) -> tuple[NDArray[np.uint8], str]:
    """Return the first bytes of a file in memory of this process's own, aligned to 64 bytes, and their SHA-256.

    Args:
        path: The file.
        size: How many bytes; fewer are returned where the file has fewer.
    """
    room = np.empty(size + _ALIGNED, dtype=np.uint8)
    start, done, digest = -room.ctypes.data % _ALIGNED, 0, hashlib.sha256()
    found = room[start : start + size]
    with open(path, "rb", buffering=0) as file:
        while done < size and (count := file.readinto(found[done : done + (1 << 20)].data)):
            digest.update(found[done : done + count].data)
            done += count
    return found[:done], digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return a JSON-able value as text, always the same for the same value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def hash_files(folder: Path, besides: str) -> dict[str, Json]:
    """Return hash and size of every file under a folder by its relative name, except the file `besides` that will list them."""
    return {
        file.relative_to(folder).as_posix(): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != besides
    }


def check_files(folder: Path, files: dict[str, Any], besides: str, held: Sequence[str] = ()) -> dict[str, NDArray[np.uint8]]:
    """Compare a folder with what `hash_files` returned.

    Args:
        folder: The folder.
        files: What was returned.
        besides: The file that lists them.
        held: Names of files to be read into memory.

    Returns:
        What these hold: the very bytes that were compared, whatever happens to the files.

    Raises:
        MmedgeError: A file is missing, was added, or differs from its hash; the message names it.
    """
    contents: dict[str, NDArray[np.uint8]] = {}
    for name, stated in files.items():
        path = folder / name
        if not path.is_file():
            what = "is not a regular file" if os.path.lexists(path) else "is missing"
            raise MmedgeError(f"{path} {what}", f"copy the whole folder {folder.name} again, or export again")
        right = path.stat().st_size == stated["bytes"]
        if right and name in held:
            contents[name], digest = read_hashed(path, stated["bytes"])
            right = digest == stated["sha256"]
        if not right or (name not in held and sha256_file(path) != stated["sha256"]):
            raise MmedgeError(
                f"{path} is damaged: its hash differs from the one in {besides}", f"copy {folder.name} again, or export again"
            )
    added = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    if unexpected := [name for name in added if name not in files and name != besides]:
        raise MmedgeError(f"{folder / unexpected[0]} does not belong to {folder.name}", "remove it, or export again")
    return contents


def folder_size(path: Path) -> int:
    """Return the size in bytes of one file, or of all files under a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
