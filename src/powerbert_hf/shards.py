# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Many files in, as many out: each process answers its share of them, and a second run what is missing."""

import glob
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import get_cpu_distributed_information

from .files import InUse, write_json
from .predict import FilePredictor
from .rows import ENDINGS, dataset_reader

logger = logging.getLogger(__name__)

# Where the rows go that have no answer, beside the answers; and what the answers are to.
REJECTED, SOURCES = "rejected", ".sources"


@dataclass(frozen=True)
class Shard:
    """A file of the input, and where its answers go.

    Args:
        source: of rows.
        target: of answers.
        rejected: of rows without an answer.
    """

    source: Path
    target: Path
    rejected: Path

    @property
    def _record(self) -> Path:
        return self.target.parent / SOURCES / f"{self.target.name}.json"

    def note_source(self) -> None:
        """Leave a note of what the answers are to, before they have their name."""
        self._record.parent.mkdir(exist_ok=True)
        write_json(self._record, self._source)

    def check_source(self) -> None:
        """Make sure that answers that are there are to this file, wherever it was then.

        Raises:
            ValueError: where they are to another one of this name, or it has changed.
        """
        if not self.target.exists() or not self._record.is_file():
            return
        noted = json.loads(self._record.read_text(encoding="utf-8"))
        if {**noted, "source": None} != {**self._source, "source": None}:
            raise ValueError(
                f"{self.target} must hold answers to {self.source}, got those to {noted['source']} as it was then; "
                "choose another `--output`, or remove them."
            )

    @property
    def _source(self) -> dict[str, Any]:
        found = self.source.stat()
        return {"source": str(self.source.resolve()), "bytes": found.st_size, "modified": found.st_mtime_ns}


def find_shards(inputs: Sequence[str], output: str | Path) -> list[Shard]:
    """The files that are meant, in one order for all processes.

    Args:
        inputs: files, folders of them, or patterns such as `rows/*.parquet`.
        output: the folder of the answers.

    Returns:
        For csv and tsv files answers in csv, for others in jsonl, under the names of the files.

    Raises:
        ValueError: for a file that cannot be read, where there is none, or where two would be answered in one.
    """
    sources: list[Path] = []
    for given in inputs:
        if Path(given).is_dir():
            files = [path for path in Path(given).iterdir() if path.is_file()]
            found = [path for path in files if path.suffix.lstrip(".").lower() in ENDINGS]
            if others := sorted(set(files) - set(found)):
                logger.warning(
                    "%s of %s files in %s are no rows to read: %s", len(others), len(files), given, others[0]
                )
        elif Path(given).exists() or not glob.has_magic(given):
            found = [Path(given)]
        else:
            # Answers are no questions, where a pattern covers them too.
            answers = Path(output).resolve()
            found = [path for path in map(Path, glob.glob(given, recursive=True)) if path.is_file()]
            found = [path for path in found if not path.resolve().is_relative_to(answers)]
        if not found:
            raise ValueError(f"`--input` must name files to read, got none in {given}; check the path.")
        for path in found:
            dataset_reader(path, lines=True)
        sources += sorted(found)
    targets: dict[Path, Path] = {}
    for source in dict.fromkeys(sources):
        target = Path(output) / f"{source.stem}{'.csv' if source.suffix.lower() in ('.csv', '.tsv') else '.jsonl'}"
        if target in targets:
            raise ValueError(
                f"Each file needs a name of its own for its answers, got {targets[target]} and {source}; rename one."
            )
        targets[target] = source
    return [Shard(source, target, target.parent / REJECTED / target.name) for target, source in targets.items()]


def predict_shards(
    shards: Sequence[Shard], make_predictor: Callable[[], FilePredictor], say: Callable[[str], None] = logger.info
) -> None:
    """Answer those of this process's shards that have no answers yet.

    Process r of n, as a launcher such as torchrun or accelerate numbers them, on one machine or on several, takes
    every n-th shard from the r-th on. Without a launcher it takes all; another process that does the same at the same
    time is given way.

    Args:
        shards: from [`find_shards`], of all processes.
        make_predictor: loads the model, if there is something to do.
        say: told of each shard that is done.

    Raises:
        ValueError: where answers are there to another file of the same name; in the end, where a shard could not be
            read; the others are answered by then.
        OSError: where answers cannot be written.
    """
    for shard in shards:
        shard.check_source()
    place = get_cpu_distributed_information()
    mine = shards[place.rank :: place.world_size]
    missing = [shard for shard in mine if not shard.target.exists()]
    if len(missing) < len(mine):
        say(f"{len(mine) - len(missing)} of {len(mine)} files are answered already")
    failed: dict[Path, str] = {}
    left = 0
    predictor = make_predictor() if missing else None
    if predictor is not None:
        # One choice for all shards, and so for all processes.
        predictor.choose_columns(shard.source for shard in shards)
    for number, shard in enumerate(missing, start=1):
        # Another process may have answered it meanwhile.
        if predictor is None or shard.target.exists():
            continue
        shard.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shard.note_source()
            done = predictor.answer(shard.source, shard.target, shard.rejected)
        except InUse:
            left += 1
            say(f"{shard.source} is left to the process that is at it")
        except ValueError as error:
            failed[shard.source] = str(error)
            say(f"{shard.source} is left out: {error}")
        else:
            aside = f", {done.rejected:,} rejected" if done.rejected else ""
            say(f"{shard.source}: {done.rows:,} rows answered{aside} ({number} of {len(missing)})")
    _wait_for_all(place.world_size)
    if failed:
        first = next(iter(failed))
        raise ValueError(
            f"{len(failed)} of {len(mine)} files could not be answered, such as {failed[first]} Then run the same "
            "command again: it does what is missing."
        )


def _wait_for_all(processes: int) -> None:
    """A launcher ends all processes when one has failed: none that failed leaves before the others are done."""
    if processes > 1 and "MASTER_ADDR" in os.environ:
        PartialState(cpu=True, timeout=timedelta(days=30)).wait_for_everyone()
