# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are either whole or not there: written under another name, which a later try overwrites."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write, which gets its name, and is on the disk, once all is written.

    Args:
        path: its name; a file that has it is replaced.
    """
    partial = _partial(path)
    try:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name, its files on the disk, once all is in it.

    Args:
        folder: its name, which nothing but an empty folder may have.
    """
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_free(folder: Path) -> None:
    """Make sure that a folder can be written, before the work that fills it is done.

    Args:
        folder: its name.

    Raises:
        ValueError: where something has this name already, but for an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something else; choose another `--output-dir`, or empty it.")


def check_new(path: Path, overwrite: bool = False) -> None:
    """Make sure that a file can be written, before the work that fills it is done.

    Args:
        path: its name.
        overwrite: a file that has it may be replaced.

    Raises:
        ValueError: where something has this name, or where there is no folder for it.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"{path} is there already; choose another output, or pass `--overwrite`.")
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
