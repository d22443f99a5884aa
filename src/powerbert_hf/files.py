# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are either whole or not there: written under another name, which a later try overwrites."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

# How torch says that a file could not be written: an error of no family of its own.
_TORCH_WRITER = re.compile("PytorchStreamWriter|inline_container|file write failed")
# Where a folder is there already, the subfolder that is filled first.
_UNFINISHED = ".partial"


class InUse(ValueError):
    """Another process is writing this very file, or uses this folder."""


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Turn whatever a writer of files raises into one sentence.

    Args:
        what: is written; the sentence begins with it.

    Raises:
        OSError: in place of those that do not say where they come from, such as a full disk's.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _TORCH_WRITER.search(str(error)):
            raise
        if isinstance(error, OSError) and (error.errno is None or error.filename is not None):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(
            f"{what} cannot be written: {reason}; make room there, then the same command goes on, or choose another "
            "place."
        ) from error


def take(descriptor: int, what: str | Path) -> None:
    """Lock an open file or folder, where the system can; the lock ends with the process, however that ends.

    Args:
        descriptor: of the file or folder.
        what: its name, for the message.

    Raises:
        InUse: where another process has it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"One process at a time can write {what}, got a second one; wait for the other.") from None
    except OSError:
        # Some network file systems lock nothing.
        pass


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write, which gets its name, and is on the disk, once all is written.

    Args:
        path: its name; a file that has it is replaced.

    Raises:
        InUse: where another process is writing it.
        OSError: where it cannot be written.
    """
    partial = _partial(path)
    # Not truncated before it is locked: what another process is writing stays as it is.
    with writing(path), open(partial, "a", newline="", encoding="utf-8", errors="backslashreplace") as file:
        take(file.fileno(), path)
        # Between the two lines above another process may have finished this file and given it its name.
        if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            raise InUse(f"{path} has just been written by another process.")
        try:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name, its files on the disk, once all is in it.

    One that is there already, empty, stays the same, since it may be a mount or where somebody is: all that it gets is
    moved into it at the end, one after the other.

    Args:
        folder: its name, which nothing but an empty folder may have.
    """
    there = folder.is_dir()
    partial = folder / _UNFINISHED if there else _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with writing(folder):
            yield partial
            for path in partial.rglob("*"):
                if path.is_file():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
            if not there:
                partial.replace(folder)
            else:
                for path in list(partial.iterdir()):
                    path.replace(folder / path.name)
                partial.rmdir()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_free(folder: Path, option: str = "--output-dir") -> None:
    """Make sure that a folder can be written, before the work that fills it is done.

    Args:
        folder: its name.
        option: that named it.

    Raises:
        ValueError: where something has this name already, but for an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {_UNFINISHED}):
        raise ValueError(f"{folder} holds something else; choose another `{option}`, or empty it.")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{folder} cannot be written: {nearest} does not allow it; choose another `{option}`.")


def check_new(path: Path, overwrite: bool | None = False) -> None:
    """Make sure that a file can be written, before the work that fills it is done.

    Args:
        path: its name.
        overwrite: a file that has it may be replaced; `None` where there is no option that says so.

    Raises:
        ValueError: where something has this name, or where there is no folder for it.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        remedy = "pass `--overwrite`" if overwrite is False else "remove it"
        raise ValueError(f"{path} is there already; choose another output, or {remedy}.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} for the output; make it, or choose another.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either complete or not there.

    Args:
        path: where.
        content: what `json` can write.
    """
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")
