"""Two processes that train one model: the same budget, weights and metrics as in one, written once."""

import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset

from conftest import Host, without_dropout
from powerbert_hf import cli, processes
from powerbert_hf.processes import MainProcessFailed, first_of_each_machine, lengths_of_all, on_main, others_needed
from test_trainer import SOFT, make_trainer, rows_of_one_length


def search(folder, lengths, size):
    """Masses before and after a search for a speed-up, and the configuration."""
    model = without_dropout(Host("bert").make(**SOFT, retention_soft_extract="hide"))
    fields = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.1, "retention_learning_rate": 1.0, "speedup": 2.0}
    data = rows_of_one_length()
    trainer = make_trainer(model, data, None, folder, per_device_train_batch_size=size, num_train_epochs=4, **fields)
    if lengths:
        trainer = type(trainer)(model, trainer.args, train_dataset=data, lengths=lengths)
    trainer.train()
    return model.retention_weights.detach(), trainer.retention_config


def refuse():
    raise ValueError("on the main process")


def work_as_rank(rank, argv, folder):
    os.environ.update(rank)
    number = int(rank["RANK"])
    with open(folder / f"{number}.txt", "w") as file, redirect_stdout(file), redirect_stderr(file):
        # Each reads other lengths.
        found = search(folder, [[8] * 10, [20] * 30][number], 8)
        torch.save(found, folder / f"search-{number}.pt")
        assert sorted(lengths_of_all([number, number])) == [0, 0, 1, 1]
        assert on_main(lambda: 5 + number) == 5
        with pytest.raises((ValueError, MainProcessFailed)[number]):
            on_main(refuse)
        sys.exit(cli.main(["train", *argv]))


@pytest.fixture
def inputs(rows, tokenizer, tmp_path):
    """Splits of which no batch of two processes makes whole ones."""
    Host("bert").make_stock().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(rows).to_csv(tmp_path / "train.csv")
    Dataset.from_list(rows[:41]).to_csv(tmp_path / "eval.csv")
    paths = [f"--{name.replace('_', '-')}={tmp_path / name}.csv" for name in ("train", "eval")]
    files = [path.replace("=", "-file=", 1) for path in paths]
    training = ["--num-train-epochs=1", "--learning-rate=1e-3", "--disable-tqdm=true"]
    return [f"--model={tmp_path / 'model'}", *files, f"--output-dir={tmp_path / 'run'}", *training]


def test_a_recipe_in_two_processes(inputs, start, as_rank, tmp_path, capsys):
    ranks = [start(work_as_rank, rank, inputs, tmp_path) for rank in as_rank]
    for number, process in enumerate(ranks):
        process.join()
        assert process.exitcode == 0, (tmp_path / f"{number}.txt").read_text()

    # The search of one process that knows all lengths and sees all rows of a step.
    weights, config = search(tmp_path, [8] * 10 + [20] * 30, 16)
    for number in range(2):
        theirs, found = torch.load(tmp_path / f"search-{number}.pt")
        torch.testing.assert_close(theirs, weights, atol=1e-5, rtol=0)
        assert found == pytest.approx(config)
    assert torch.equal(*(torch.load(tmp_path / f"search-{number}.pt")[0] for number in range(2)))

    run = tmp_path / "run"
    names = ["command.json", "final", "fine_tuned", "report.json", "searched"]
    assert sorted(path.name for path in run.iterdir()) == names
    report = json.loads((run / "report.json").read_text())
    # As many rows in a step as in one process.
    assert report["training"]["per_device_train_batch_size"] == 16
    for step in ("fine_tuned", "searched", "final"):
        assert json.loads((run / step / "step.json").read_text())["history"][-1]["step"] == 2
    assert json.loads((run / "command.json").read_text())["arguments"]["processes"] == 2
    assert report["tuning"]["predicted_speedup"] == pytest.approx(2.0, rel=0.1)
    # One process, which has each row once, measures the same.
    capsys.readouterr()
    assert cli.main(["evaluate", str(run / "final"), f"--eval-file={tmp_path / 'eval.csv'}"]) == 0
    alone = json.loads(capsys.readouterr().out)
    for name in ("accuracy", "f1", "matthews_correlation"):
        assert report["metrics"]["final"][name] == pytest.approx(alone[name], abs=1e-12)
    assert "final model" in (tmp_path / "0.txt").read_text()
    assert "final model" not in (tmp_path / "1.txt").read_text()

    # Two processes take another number of steps than one: the folder is no one-process run.
    assert cli.main(["train", *inputs]) == 2
    assert "holds the run of another command" in capsys.readouterr().err


def wait_as_rank(rank, log):
    os.environ.update(rank)
    number = int(rank["RANK"])
    with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
        dist.init_process_group("gloo", timeout=timedelta(minutes=5))
        # Once they have met.
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), dist.group.WORLD)
        assert on_main(lambda: time.sleep(3)) is None
        with first_of_each_machine():
            begun = time.time()
            time.sleep(3 * (1 - number))
        times = [None, None]
        dist.all_gather_object(times, begun, group=processes._patient(dist.group.WORLD))
        assert times[1] >= times[0] + 3


def test_processes_wait_for_each_other_longer_than_their_network_does(start, as_rank, tmp_path):
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    ranks = [start(wait_as_rank, rank, log) for rank, log in zip(as_rank, logs, strict=True)]
    for process, log in zip(ranks, logs, strict=True):
        process.join()
        assert process.exitcode == 0, log.read_text()


@pytest.mark.parametrize(
    ("said", "several", "gone"),
    [
        (
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711",
            True,
            True,
        ),
        ("NCCL communicator was aborted on rank 1", True, True),
        ("Connection reset by peer", True, True),
        ("The size of tensor a (3) must match the size of tensor b (4)", True, False),
        ("Connection closed by peer", False, False),
    ],
)
def test_a_process_that_is_no_more_is_told_from_other_errors(monkeypatch, said, several, gone):
    monkeypatch.setattr(processes, "in_processes", lambda: several)
    with pytest.raises(ConnectionError if gone else RuntimeError) as error, others_needed():
        raise RuntimeError(said)
    assert ("Another process of this training is no more" in str(error.value)) == gone


def train_as_rank(rank, argv, log):
    os.environ.update(rank)
    with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(cli.main(["train", *argv]))


def test_what_is_refused_is_said_once(inputs, start, as_rank, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    ranks = [start(train_as_rank, rank, inputs, log) for rank, log in zip(as_rank, logs, strict=True)]
    for process in ranks:
        process.join()
        assert process.exitcode == 2
    assert "holds something else; choose another `--output-dir`" in logs[0].read_text()
    assert "powerbert train" not in logs[1].read_text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_sharded_models_are_refused(rows, tokenizer, tmp_path, monkeypatch):
    from powerbert_hf.trainer import PoWERTrainer

    monkeypatch.setattr(PoWERTrainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match="each process holds the whole model, got FSDP; start `accelerate launch"):
        make_trainer(Host("bert").make(**SOFT), rows_of_one_length(), None, tmp_path)
    make_trainer(Host("bert").make(), rows_of_one_length(), None, tmp_path)


def sharded(trainer):
    """As upstream leaves a trainer under FSDP."""
    from transformers import Trainer

    Trainer.create_accelerator_and_postprocess(trainer)
    trainer.is_fsdp_enabled = True
