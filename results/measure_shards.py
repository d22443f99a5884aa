"""A million generated rows in 20 files through `powerbert predict` in two processes, undisturbed and thrice killed.

    powerbert demo && python results/measure_shards.py --model runs/demo/final

Writes `shards.json`: that both runs answer alike, row for row, rows a second, and peak memory, also of 5 and 20 files.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from powerbert_hf.benchmark import hardware
from powerbert_hf.demo import make_reviews

PROCESSES, KILLS, DIRTY = 2, 3, 1000


def make_rows(folder: Path, files: int, rows: int, seed: int = 0) -> None:
    """Files of rows with an id, a text of two sentences, and one row in a thousand that cannot be answered."""
    rng = np.random.default_rng(seed)
    sentences = [one for text, _ in make_reviews(5000, rng) for one in text.rstrip(" .").split(" . ")]
    folder.mkdir(parents=True)
    for number in range(files):
        chosen = rng.integers(len(sentences), size=(rows, 2))
        with open(folder / f"part-{number:02}.jsonl", "w", encoding="utf-8") as file:
            for row, (one, two) in enumerate(chosen):
                text = f"{sentences[one]} . {sentences[two]} ."
                if row % DIRTY == DIRTY // 2:
                    text = (None, " ", 200 * text)[row // DIRTY % 3]
                file.write(json.dumps({"id": number * rows + row, "text": text}) + "\n")


def start(model: Path, rows: Path, answers: Path, processes: int, log: Path) -> subprocess.Popen:
    """`powerbert predict` under torchrun."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "powerbert_hf.cli",
        "predict",
    ]
    options = [str(model), "--input", str(rows), "--output", str(answers), "--keep-columns", "id"]
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, *launch, *options],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def peak_megabytes() -> float:
    """Of the largest process that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def count(answers: Path) -> dict[str, int]:
    """Rows that are answered and rejected, after a look that each of the input is there once."""
    ids, rejected = [], 0
    for path in sorted(answers.glob("*.jsonl")):
        with open(path, encoding="utf-8") as file:
            found = [json.loads(line)["id"] for line in file]
        assert found == sorted(found), f"{path} is not in the input's order"
        ids += found
    for path in sorted((answers / "rejected").glob("*.jsonl")):
        with open(path, encoding="utf-8") as file:
            found = [json.loads(line)["id"] for line in file]
        rejected += len(found)
        ids += found
    assert sorted(ids) == list(range(len(ids))), "a row is missing, or there twice"
    return {"answered": len(ids) - rejected, "rejected": rejected}


def killed_run(model: Path, rows: Path, answers: Path, whole: float, log: Path) -> list[dict[str, float]]:
    """Kill all processes at once three times, at moments drawn over the time that an undisturbed run takes."""
    draw, kills = random.Random(0), []
    for _ in range(KILLS):
        process = start(model, rows, answers, PROCESSES, log)
        after = whole * draw.uniform(0.1, 0.4)
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # torchrun gives each of its workers a session of its own.
        subprocess.run(["pkill", "-KILL", "-f", str(answers.resolve())], check=False)
        kills.append({"after_seconds": after, "files_done": len(list(answers.glob("*.jsonl")))})
    assert start(model, rows, answers, PROCESSES, log).wait() == 0, log.read_text()
    return kills


def main(model: Path, work: Path, files: int, rows: int, output: Path) -> None:
    """Run all, and write what was found."""
    work = work.resolve()
    log = work / "log.txt"
    make_rows(work / "rows", files, rows)
    begun = time.monotonic()
    assert start(model, work / "rows", work / "undisturbed", PROCESSES, log).wait() == 0, log.read_text()
    whole = time.monotonic() - begun
    found = {
        "rows": files * rows,
        "files": files,
        "processes": PROCESSES,
        **count(work / "undisturbed"),
        "seconds": whole,
        "rows_per_second": files * rows / whole,
        "peak_megabytes": peak_megabytes(),
        "hardware": hardware(),
    }
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    found["kills"] = killed_run(model, work / "rows", work / "killed", whole, log)
    differing = [
        path.relative_to(work / "undisturbed")
        for path in (work / "undisturbed").rglob("*.jsonl")
        if path.read_bytes() != (work / "killed" / path.relative_to(work / "undisturbed")).read_bytes()
    ]
    assert not differing, f"answers differ in {differing}"
    found["equal"] = count(work / "killed") == count(work / "undisturbed")
    assert not list((work / "killed").rglob("*.partial"))
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def main_of_memory(model: Path, work: Path, rows: int, output: Path) -> None:
    """Peak memory of one process that answers a few files of this size, and four times as many."""
    found = json.loads(output.read_text(encoding="utf-8"))
    found["memory"] = []
    for files in (5, 20):
        make_rows(work / f"rows-{files}", files, rows)
        script = [sys.executable, __file__, "--memory-of", str(files), "--model", str(model), "--work", str(work)]
        told = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        found["memory"].append({"files": files, "rows": files * rows, "peak_megabytes": float(told)})
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/final"))
    parser.add_argument("--work", type=Path, default=Path("runs/shards"), help="a new folder for rows and answers")
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--rows", type=int, default=50_000, help="of a file")
    parser.add_argument("--output", type=Path, default=Path("results/shards.json"))
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        work, files = options.work, options.memory_of
        assert start(options.model, work / f"rows-{files}", work / f"answers-{files}", 1, work / "log.txt").wait() == 0
        print(peak_megabytes())
    else:
        main(options.model, options.work, options.files, options.rows, options.output)
        main_of_memory(options.model, options.work, options.rows // 10, options.output)
