"""What goes wrong where jobs are long: each of these goes on, or stops with one clear sentence. `make faults`.

The summary of what was done and seen goes to the file that `FAULTS_OUTPUT` names.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from conftest import Host
from test_kill import assert_same_run
from test_predict import HARD, NAMES, texts_of

pytestmark = pytest.mark.slow
SEEN = {}
WHOLE = ["command.json", "final", "fine_tuned", "report.json", "searched"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module", autouse=True)
def _summary():
    yield
    if "FAULTS_OUTPUT" in os.environ:
        Path(os.environ["FAULTS_OUTPUT"]).write_text(json.dumps(SEEN, indent=2) + "\n")


def start(command, options, log, processes=1, limit=None):
    """The command as it is typed, under torchrun if it is two processes."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    launch = TWO if processes == 2 else []
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, *launch, "-m", "powerbert_hf.cli", command, *options],
            stdout=file,
            stderr=file,
            preexec_fn=small_files if limit else None,
        )


def children(process):
    """The processes that a launcher has started, the main one first."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "powerbert"], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def wait_for(process, path, log):
    while not path.exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.002)


def sentences(log, command):
    """What the command itself said of why it stopped."""
    return [line for line in log.read_text().splitlines() if line.startswith(f"powerbert {command}: ")]


@pytest.fixture
def training(rows, tokenizer, tmp_path):
    """Options of a run that takes some seconds, with a checkpoint at every second step."""
    Host("bert").make_stock().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    files = [f"--{name}-file={tmp_path / 'rows.csv'}" for name in ("train", "eval")]
    often = ["--save-strategy=steps", "--save-steps=2", "--num-train-epochs=3", "--disable-tqdm=true"]
    return [f"--model={tmp_path / 'model'}", *files, *often, "--per-device-train-batch-size=8", "--learning-rate=1e-3"]


@pytest.fixture
def undisturbed(training, tmp_path):
    """Makes the run that nothing happened to."""

    def make(processes):
        run, log = tmp_path / f"undisturbed-{processes}", tmp_path / "undisturbed.txt"
        assert start("train", [*training, f"--output-dir={run}"], log, processes).wait() == 0, log.read_text()
        return run

    return make


KILLS = {
    "kill -9 of the main process of two": lambda process: os.kill(children(process)[0], signal.SIGKILL),
    "kill -9 of the other process of two": lambda process: os.kill(children(process)[-1], signal.SIGKILL),
    "kill -9 of all": lambda process: [os.kill(pid, signal.SIGKILL) for pid in (process.pid, *children(process))],
}


def test_training_in_two_processes_that_are_killed(training, undisturbed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log.txt"
    options = [*training, f"--output-dir={run}"]
    moments = [
        "checkpoints/fine_tuned/checkpoint-4/trainer_state.json",
        "checkpoints/searched/checkpoint-6/model.safetensors",
        "checkpoints/final/checkpoint-4/trainer_state.json",
    ]
    for (fault, kill), moment in zip(KILLS.items(), moments, strict=True):
        process = start("train", options, log, 2)
        wait_for(process, run / moment, log)
        kill(process)
        assert process.wait() != 0
        names = {path.name for path in run.iterdir()}
        assert names <= {"command.json", "checkpoints", "fine_tuned", "searched"}, names
        SEEN[f"training: {fault}"] = f"all ended while {moment.split('/')[1]} was trained"
    assert start("train", options, log, 2).wait() == 0, log.read_text()
    assert_same_run(run, undisturbed(2))
    for fault in KILLS:
        SEEN[f"training: {fault}"] += "; the same command went on to the undisturbed run's models, byte by byte"


@pytest.mark.parametrize("processes", [1, 2])
def test_training_that_is_told_to_leave(training, undisturbed, processes, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log.txt"
    options = [*training, f"--output-dir={run}"]
    process = start("train", options, log, processes)
    wait_for(process, run / "checkpoints/searched/checkpoint-2/trainer_state.json", log)
    process.send_signal(signal.SIGTERM)
    status = process.wait()
    assert status == 128 + signal.SIGTERM if processes == 1 else status != 0
    said = sentences(log, "train")
    assert said, log.read_text()
    (checkpoint,) = (run / "checkpoints/searched").iterdir()
    assert checkpoint.name == f"checkpoint-{said[0].split()[7]}"
    assert all("told to leave after step" in line for line in said)
    assert all(line.endswith(f"; the same command goes on from {checkpoint}") for line in said)
    assert start("train", options, log, processes).wait() == 0, log.read_text()
    assert sorted(path.name for path in run.iterdir()) == WHOLE
    assert_same_run(run, undisturbed(processes))
    number = ("one process", "two processes")[processes - 1]
    SEEN[f"training: SIGTERM, {number}"] = f"{said[0].replace(f'{run}/', '')}; it did, to the undisturbed run's models"


def test_training_whose_loss_is_lost(training, tmp_path):
    """One label is infinite, in a batch of the second epoch at the earliest."""
    log, run = tmp_path / "log.txt", tmp_path / "run"
    rows = Dataset.from_csv(str(tmp_path / "rows.csv")).to_list()
    Dataset.from_list([{"text": row["text"], "label": 0.5 * len(row["text"])} for row in rows]).to_json(
        tmp_path / "rows.jsonl"
    )
    options = [option.replace("rows.csv", "rows.jsonl") for option in training]
    diverging = [*options, "--learning-rate=1e12", "--save-steps=1", "--max-grad-norm=0", f"--output-dir={run}"]
    assert start("train", [*diverging, "--optim=sgd"], log).wait() == 2
    (said,) = sentences(log, "train")
    assert "The loss and its gradient must be finite, got" in said
    assert "lower the learning rate" in said
    assert not (run / "fine_tuned").exists()
    kept = list(run.rglob("model.safetensors"))
    assert all(weight.isfinite().all() for path in kept for weight in load_file(path).values())
    assert ("is from before" in said) == bool(kept)
    SEEN["training: the loss is not finite"] = said.replace(str(tmp_path), "...")


@pytest.mark.parametrize("kilobytes", [40, 150, 330])
def test_training_on_a_disk_that_is_full(training, undisturbed, kilobytes, tmp_path):
    """Which file does not fit: the weights, the optimizer's state, or one of later."""
    run, log = tmp_path / "run", tmp_path / "log.txt"
    options = [*training, f"--output-dir={run}"]
    status = start("train", options, log, limit=1024 * kilobytes).wait()
    said = sentences(log, "train")
    if kilobytes < 300:
        assert status == 2, log.read_text()
        assert len(said) == 1
        assert "cannot be written: " in said[0]
        assert "make room there, then the same command goes on" in said[0]
        assert not (run / "fine_tuned").exists()
        SEEN[f"training: files of {kilobytes} kB at most"] = f"{said[0].replace(str(tmp_path), '...')}; it did"
    assert start("train", options, log).wait() == 0, log.read_text()
    assert_same_run(run, undisturbed(1))


@pytest.fixture
def predicting(tokenizer, tmp_path):
    """Options that answer ten files of rows in a folder, and what comes out if nothing happens."""
    Host("bert").make(**HARD, **NAMES).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows").mkdir()
    for number in range(10):
        lengths = torch.randint(1, 40, (2400,), generator=torch.Generator().manual_seed(number)).tolist()
        rows = [{"id": row, "text": text} for row, text in enumerate(texts_of(lengths))]
        rows[7]["text"] = None
        Dataset.from_list(rows).to_json(tmp_path / "rows" / f"part-{number}.jsonl")
    return [str(tmp_path / "model"), f"--input={tmp_path / 'rows'}", "--keep-columns=id", "--window=500"]


def answers(folder):
    """All but what was typed, and which files they are to."""
    found = [*folder.glob("*.jsonl*"), *folder.glob("rejected/*.jsonl*")]
    return {path.relative_to(folder): path.read_bytes() for path in found}


@pytest.fixture
def wanted(predicting, tmp_path):
    log = tmp_path / "wanted.txt"
    assert start("predict", [*predicting, f"--output={tmp_path / 'wanted'}"], log).wait() == 0, log.read_text()
    return answers(tmp_path / "wanted")


def test_predictions_in_two_processes_that_are_killed(predicting, wanted, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    options = [*predicting, f"--output={out}"]
    for fault, kill in KILLS.items():
        before = len(list(out.glob("*.jsonl")))
        process = start("predict", options, log, 2)
        while len(list(out.glob("*.jsonl"))) == before:
            assert process.poll() is None, log.read_text()
            time.sleep(0.002)
        kill(process)
        assert process.wait() != 0
        done = {path: content for path, content in answers(out).items() if path.suffix == ".jsonl"}
        assert all(wanted[path] == content for path, content in done.items())
        SEEN[f"predict: {fault}"] = "what had a name by then was whole"
    assert start("predict", options, log, 2).wait() == 0, log.read_text()
    assert answers(out) == wanted
    for fault in KILLS:
        SEEN[f"predict: {fault}"] += "; the same command did what was missing, to the same answers, byte by byte"


def test_predictions_that_are_told_to_leave(predicting, wanted, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    options = [*predicting, f"--output={out}"]
    process = start("predict", options, log)
    wait_for(process, out / "part-1.jsonl.partial", log)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    (said,) = sentences(log, "predict")
    assert not list(out.glob("*.partial"))
    assert start("predict", options, log).wait() == 0
    assert answers(out) == wanted
    SEEN["predict: SIGTERM"] = f"{said}; it did"


def test_predictions_on_a_disk_that_is_full(predicting, wanted, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    options = [*predicting, f"--output={out}"]
    assert start("predict", options, log, limit=20_000).wait() == 2
    (said,) = sentences(log, "predict")
    assert "part-0.jsonl cannot be written: File too large; make room there" in said
    assert not list(out.rglob("*.jsonl"))
    assert start("predict", options, log).wait() == 0
    assert answers(out) == wanted
    SEEN["predict: files of 20 kB at most"] = f"{said.replace(str(tmp_path), '...')}; it did"


def test_predictions_of_a_file_that_cannot_be_read(predicting, wanted, tmp_path):
    out, log, bad = tmp_path / "out", tmp_path / "log.txt", tmp_path / "rows" / "part-2.jsonl"
    options = [*predicting, f"--output={out}"]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-30])
    assert start("predict", options, log, 2).wait() != 0
    (said,) = sentences(log, "predict")
    assert "1 of 5 files could not be answered" in said
    assert len(list(out.glob("*.jsonl"))) == 9
    bad.write_bytes(whole)
    assert start("predict", options, log, 2).wait() == 0
    assert answers(out) == wanted
    SEEN["predict: a file that cannot be read, two processes"] = (
        f"the nine others were answered, by both; then {said.replace(str(tmp_path), '...')} It did."
    )
