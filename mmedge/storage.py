"""Files that are never half there: atomic writes, content hashes, and JSON lines that name the line which is broken.

Knows nothing of tasks, students or bundles. A reader of any file written here finds either the old content or the new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError

Json = dict[str, Any]


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync_folder(folder: Path) -> None:
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
    refuse_no_file(path)
    temporary = _temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
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
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
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


def refuse_no_file(path: Path) -> None:
    """Refuse a target that is there and is no file: a rename would put a file in the place of a device or a pipe.

    Raises:
        MmedgeError: It is a device, a pipe or a socket.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # what is not there, or cannot be looked at, is for the writer to find
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise MmedgeError(f"{path} is a device or a pipe, not a file", "name a file")


def cannot_write(path: Path, error: OSError) -> MmedgeError:
    """Return the error for a failed write, with what to do for the usual causes."""
    hint = {
        28: "free some disk space and run the same command again; finished work is kept",
        13: "choose a folder that you may write to, with --out",
        30: "the file system is read-only; choose another folder with --out",
    }.get(error.errno or 0, "check the path and run the same command again")
    return MmedgeError(f"cannot write {path}: {error.strerror or error}", hint)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        MmedgeError: It is missing, a folder, unreadable or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MmedgeError(f"no such file: {path}", "check the path") from None
    except UnicodeDecodeError as error:
        raise MmedgeError(f"{path} is no UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise MmedgeError(f"cannot read {path}: {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        MmedgeError: It is missing or no valid JSON; the message names line and column.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise MmedgeError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise MmedgeError(f"{path}: JSON nested too deeply") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise MmedgeError(f"{path}: a number with too many digits") from None


def iterate_jsonl(path: Path) -> Iterator[tuple[int, Json]]:
    """Yield (line number from 1, object) for every non-empty line of a JSON-lines file.

    Raises:
        MmedgeError: The file is missing, or a line is no JSON object; the message is `file:line: …`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, parse_json_line(line, path, number)


def parse_json_line(line: str, path: Path | str, number: int) -> Json:
    """Parse one line of a JSON-lines file into an object; errors name `path:number`."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise MmedgeError(
            f"{path}:{number}: not a whole JSON object: {error.msg} (column {error.colno})",
            'each line must be one complete object, such as {"question": "…"}; was the file cut off?',
        ) from None
    except RecursionError:
        raise MmedgeError(f"{path}:{number}: JSON nested too deeply") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise MmedgeError(f"{path}:{number}: a number with too many digits") from None
    if not isinstance(value, dict):
        raise MmedgeError(f"{path}:{number}: expected a JSON object, found {type(value).__name__}")
    return value


class Journal:
    """A file of finished pieces of a longer piece of work, so that it continues when it was killed.

    Each piece is one line, flushed when it is finished. What belongs to another key, and a last line that was cut off, is
    dropped.

    Args:
        path: The file; its folder is made.
        key: Hash of everything that the pieces depend on.

    Raises:
        MmedgeError: It cannot be written.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._pieces: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.is_file() else []
            if lines and lines[0] == key:
                for line in lines[1:]:
                    try:
                        piece = json.loads(line)
                        self._pieces[piece["name"]] = piece["value"]
                    except (json.JSONDecodeError, KeyError, TypeError):
                        continue
            whole = "".join(self._line(name, value) for name, value in self._pieces.items())
            write_text(path, f"{key}\n{whole}")
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise cannot_write(path, error) from None

    @staticmethod
    def _line(name: str, value: Any) -> str:
        return json.dumps({"name": name, "value": value}, ensure_ascii=False) + "\n"

    def __len__(self) -> int:
        return len(self._pieces)

    def get(self, name: str) -> Any:
        """Return what a finished piece gave, or None."""
        return self._pieces.get(name)

    def put(self, name: str, value: Any) -> None:
        """Note that a piece is finished."""
        try:
            self._file.write(self._line(name, value))
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._pieces[name] = value

    def close(self) -> None:
        """Close the file and keep it."""
        with contextlib.suppress(OSError):
            self._file.close()

    def remove(self) -> None:
        """Close the file and remove it: the work is finished and its result written."""
        self.close()
        self._path.unlink(missing_ok=True)


def text_field(record: Json, name: str, path: Path | str, number: int) -> str:
    """Return a non-empty text field of a JSON-lines record; errors name `path:number`."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if name not in record else f"must be non-empty text, found {value!r:.40}"
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
        raise MmedgeError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return a JSON-able value as text, always the same for the same value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def hash_files(folder: Path, besides: str) -> dict[str, Json]:
    """Return hash and size of every file under a folder by its relative name, but for the file that will say them."""
    return {
        str(file.relative_to(folder)): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != besides
    }


def check_files(folder: Path, files: dict[str, Any], besides: str) -> None:
    """Compare a folder with what `hash_files` said.

    Raises:
        MmedgeError: A file is missing, was added, or differs from its hash; the message names it.
    """
    for name, stated in files.items():
        path = folder / name
        if not path.is_file():
            raise MmedgeError(f"{path} is missing", f"copy {folder.name} again, whole, or export again")
        if path.stat().st_size != stated["bytes"] or sha256_file(path) != stated["sha256"]:
            raise MmedgeError(
                f"{path} is damaged: its hash is not the one in {besides}", f"copy {folder.name} again, or export again"
            )
    added = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    if unexpected := [name for name in added if name not in files and name != besides]:
        raise MmedgeError(f"{folder / unexpected[0]} does not belong to {folder.name}", "remove it, or export again")


def folder_size(path: Path) -> int:
    """Return the bytes of all files under a folder, or of one file."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
