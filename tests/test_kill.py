"""`powerbert train` killed at any moment: the same command ends as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
from datasets import Dataset

from powerbert_hf import cli

STEPS = ("fine_tuned", "searched", "final")


@pytest.fixture
def options(host, rows, tokenizer, tmp_path):
    host.make_stock().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    paths = [f"--model={tmp_path / 'model'}", f"--train-file={tmp_path / 'rows.csv'}"]
    training = ["--num-train-epochs=3", "--per-device-train-batch-size=16", "--learning-rate=1e-3"]
    return [*paths, f"--eval-file={tmp_path / 'rows.csv'}", *training, "--retention-lambda=0.1", "--disable-tqdm=true"]


def train(argv, log):
    """The command, in a process that has imported its libraries."""
    with open(log, "a") as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(cli.main(["train", *argv]))


def assert_same_run(found, wanted):
    """But for the clock, and for the logs, which also count the goings-on."""
    timed = ("measured_speedup", "timing")
    reports = [json.loads((run / "report.json").read_text()) for run in (found, wanted)]
    assert reports[0]["retention_config"] == reports[1]["retention_config"]
    assert [{k: v for k, v in r.items() if k not in timed} for r in reports[:1]] == [
        {k: v for k, v in r.items() if k not in timed} for r in reports[1:]
    ]
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in wanted.iterdir())
    for step in STEPS:
        assert sorted(path.name for path in (found / step).iterdir()) == sorted(
            path.name for path in (wanted / step).iterdir()
        )
        for file in ("model.safetensors", "config.json"):
            assert (found / step / file).read_bytes() == (wanted / step / file).read_bytes(), (step, file)


@pytest.mark.parametrize("host", ["bert"], indirect=True)
def test_killed_in_each_step_a_run_goes_on_to_the_same_models(options, start, tmp_path):
    wanted, run, log = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "log.txt"
    undisturbed = start(train, [*options, f"--output-dir={wanted}"], log)
    undisturbed.join()
    assert undisturbed.exitcode == 0, log.read_text()
    moments = [
        # A checkpoint is being written, the second one; its state would come last.
        "checkpoints/fine_tuned/checkpoint-8/model.safetensors",
        # The search is between two checkpoints.
        "checkpoints/searched/checkpoint-4/trainer_state.json",
        # The last model is being saved.
        "final.partial",
    ]
    for moment in moments:
        process = start(train, [*options, f"--output-dir={run}"], log)
        while not (run / moment).exists():
            assert process.is_alive(), log.read_text()
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = start(train, [*options, f"--output-dir={run}"], log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert log.read_text().count("going on with the run") == 3
    assert_same_run(run, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_a_run_goes_on_to_the_same_models(options, host, seed, tmp_path):
    """The command as it is typed, killed again and again until it happens to end."""
    wanted, run = tmp_path / "undisturbed", tmp_path / "run"
    command = [sys.executable, "-m", "powerbert_hf.cli", "train", *options]
    begun = time.monotonic()
    subprocess.run([*command, f"--output-dir={wanted}"], check=True, capture_output=True)
    whole = time.monotonic() - begun
    draw = random.Random(seed)
    codes = []
    while not codes or codes[-1] == -signal.SIGKILL:
        process = subprocess.Popen([*command, f"--output-dir={run}"], stdout=subprocess.DEVNULL)
        try:
            # Half of it goes by with imports, which nobody need kill more often than the rest. A machine that has
            # become slower would never be done: the twentieth may take as long as it does.
            process.wait(timeout=whole * draw.uniform(0.4, 0.9) if len(codes) < 20 else None)
        except subprocess.TimeoutExpired:
            process.kill()
        codes.append(process.wait())
    assert codes[-1] == 0
    assert_same_run(run, wanted)
