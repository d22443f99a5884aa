"""Input that cannot be used: the command says why in one sentence, exits with 2, and nothing was written or lost."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict

from conftest import Host
from powerbert_hf import callbacks, cli
from powerbert_hf.trainer import PoWERTrainer


@pytest.fixture
def folder(rows, tokenizer, tmp_path, monkeypatch):
    """A tiny checkpoint and a csv file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Host("bert").make_stock(id2label={0: "negative", 1: "positive"}).save_pretrained("model")
    tokenizer.save_pretrained("model")
    Dataset.from_list(rows[:24]).to_csv("rows.csv")
    return tmp_path


def options(*more, **given):
    """Those of a command that would run, with some of them changed, left out (`None`) or added."""
    usual = {"model": "model", "train_file": "rows.csv", "eval_file": "rows.csv", "output_dir": "run", "max_steps": 1}
    return [f"--{name}={value}" for name, value in {**usual, **given}.items() if value is not None] + list(more)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}


def refused(capsys, folder, arguments, command="train", said_before=0):
    """Run the command, which must refuse; the sentence. Of lines printed before, the number, or `None` for any."""
    before = content(folder)
    capsys.readouterr()
    try:
        status = cli.main([command, *arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    *said, sentence = printed.err.splitlines()
    assert said_before in (None, len(printed.out.splitlines()))
    assert status == 2
    assert sentence.startswith(f"powerbert {command}: ")
    # argparse recalls the usage first.
    assert not [line for line in said if not line.startswith("usage: ")]
    assert content(folder) == before
    assert not (folder / "run").exists()
    return sentence


def reconfigure(folder, **fields):
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retention_config": [4, 3]}, "must have one entry per encoder (3), got 2"),
        ({"retention_config": [4, 5, 3]}, "must not increase, got 5 for encoder 2"),
        ({"retention_config": [4, 3, 0]}, "at least 1, got 0"),
        ({"retention_config": [4, 3, -1]}, "at least 1, got -1"),
        ({"retention_config": [65, 3, 1]}, "longest input (64), got 65"),
        ({"retention_config": "4 3 1"}, "Field 'retention_config' with value '4 3 1' doesn't match"),
        ({"retention_config": ["4", "3", "1"]}, "Field 'retention_config' with value ['4', '3', '1'] doesn't match"),
        ({"retention_config": [1.5, 1, 1], "retention_unit": "fraction"}, "above 0 and at most 1, got 1.5"),
        ({"retention_config": [1.0, 0.5, 0.0], "retention_unit": "fraction"}, "above 0 and at most 1, got 0.0"),
        ({"retention_unit": "percent"}, "`retention_unit` must be one of words, fraction, got 'percent'"),
        ({"retention_mode": "harder"}, "`retention_mode` must be None or one of off, soft, hard, got 'harder'"),
        ({"retention_mode": 3}, "Field 'retention_mode' with value 3 doesn't match"),
        ({"retention_length": 65}, "`retention_length` must lie between 1 and the model's longest input (64), got 65"),
        ({"is_decoder": True}, "encoders only, got `is_decoder=True`"),
        ({"model_type": "bert", "add_cross_attention": True}, "or `add_cross_attention=True`"),
        ({"model_type": "bert", "num_hidden_layers": "three"}, "Field 'num_hidden_layers' expected int, got str"),
        ({"model_type": "bert", "num_attention_heads": 5}, "not a multiple of the number of attention heads (5)"),
        ({"model_type": "bert", "hidden_act": "none"}, "KeyError 'none'"),
        ({"model_type": "roberta"}, "Only BERT and ALBERT models can be made faster here, got 'roberta'"),
        ({"model_type": "nobodys"}, "Only BERT and ALBERT models can be made faster here, got 'nobodys'"),
        ({"model_type": None}, "must have a `config.json` with a `model_type`, got none in model"),
    ],
)
def test_configurations(folder, capsys, command, fields, message):
    reconfigure(folder, **{"model_type": "powerbert", **fields})
    arguments = options() if command == "train" else ["model", "--eval-file=rows.csv"]
    assert message in refused(capsys, folder, arguments, command)


@pytest.mark.parametrize(
    ("name", "damaged", "message"),
    [
        ("config.json", b"{", "not a valid JSON file"),
        ("config.json", b"[1]", "The configuration of model cannot be used"),
        ("config.json", None, "must have a `config.json`"),
        (
            "model.safetensors",
            lambda whole: whole[:5000],
            "29,728 weights, its files hold 5,000 bytes; ",
        ),
        ("model.safetensors", lambda whole: whole[:-400], "The checkpoint model cannot be used: "),
        ("model.safetensors", b"", "its files hold 0 bytes"),
        ("model.safetensors", None, "no file named model.safetensors"),
        ("tokenizer.json", b"{", "The tokenizer of model cannot be used: Expecting property name"),
        ("tokenizer.json", b"{}", "The tokenizer of model cannot be used: KeyError 'added_tokens'"),
        ("tokenizer.json", None, "A model needs a tokenizer, got none in model; save the tokenizer"),
    ],
)
def test_files_of_a_model(folder, capsys, name, damaged, message):
    path = folder / "model" / name
    whole = path.read_bytes()
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged(whole) if callable(damaged) else damaged)
    assert message in refused(capsys, folder, options())


def test_the_folder_of_a_run_is_not_its_model(folder, capsys):
    shutil.copytree("model", "earlier/final")
    assert "got none in earlier; did you mean earlier/final?" in refused(capsys, folder, options(model="earlier"))


def test_tokenizers_that_are_not_the_models(folder, capsys):
    reconfigure(folder, vocab_size=9)
    assert "must know no more word-pieces than the model (9), got " in refused(capsys, folder, options())
    reconfigure(folder, vocab_size=60)
    path = folder / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    assert "must have a `pad_token` to make batches, got none" in refused(capsys, folder, options())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            options(model="nobody/nothing"),
            "The configuration of nobody/nothing cannot be used: it is not in the cache, and the Hub",
        ),
        (options(model="./nothing/here"), "The configuration of ./nothing/here cannot be used: "),
        (
            options(dataset="nyu-mll/glue", subset="mrpc", train_file=None, eval_file=None),
            "The data set nyu-mll/glue cannot be used: Couldn't reach 'nyu-mll/glue' on the Hub",
        ),
        (options(dataset="model"), "Pass either `--dataset` or `--train-file`"),
        (options(eval_file=None), "`--train-file` needs an `--eval-file`"),
        (options(train_file="none.csv"), "There is no file none.csv; check the path"),
        (options(train_file="model"), "There is no file model; check the path"),
        (options(task="squad"), "`--task` must be one of cola"),
        (options(retention_unit="percent"), "invalid choice: 'percent' (choose from 'fraction', 'words')"),
        (options("--leraning-rate=1"), "There is no option --leraning-rate; did you mean --learning-rate?"),
        (options("--num_train_epoch", "3"), "There is no option --num-train-epoch; did you mean --num-train-epochs?"),
        (options("--frobnicate"), "There is no option --frobnicate; `powerbert train --help` lists all"),
        (options("--train-file"), "argument --train_file/--train-file: expected one argument"),
        (options(learning_rate="fast"), "invalid float value: 'fast'"),
        (options(learning_rate="nan"), "`--learning-rate` must be finite and at least 0, got nan"),
        (options(learning_rate="inf"), "`--learning-rate` must be finite and at least 0, got inf"),
        (options(retention_lambda="nan"), "`retention_lambda` must not be negative or infinite, got nan"),
        (options(retention_lambda="inf"), "`retention_lambda` must not be negative or infinite, got inf"),
        (options(retention_lambda="-1"), "`retention_lambda` must not be negative or infinite, got -1.0"),
        (options(retention_learning_rate="0"), "`retention_learning_rate` must be above 0 and finite, got 0.0"),
        (options(retention_learning_rate="nan"), "`retention_learning_rate` must be above 0 and finite, got nan"),
        (options(retraining_learning_rate="0"), "`retraining_learning_rate` must be above 0 and finite, got 0.0"),
        (options(max_steps=-1, num_train_epochs=0), "`--num-train-epochs` must be above 0, got 0.0"),
        (options(max_steps=-1, num_train_epochs=-1), "`--num-train-epochs` must be above 0, got -1.0"),
        (options(per_device_train_batch_size=0), "`--per-device-train-batch-size` must be at least 1, got 0"),
        (options(per_device_eval_batch_size=0), "`--per-device-eval-batch-size` must be at least 1, got 0"),
        (options(gradient_accumulation_steps=0), "`--gradient-accumulation-steps` must be at least 1, got 0"),
        (options(seed=-1), "`--seed` must be from 0 to 2**32 - 1, got -1"),
        (
            options(max_length=2),
            "`max_length` must lie between 3, one word-piece a text, and 64, what the model takes",
        ),
        (options(max_length=65), "what the model takes, got 65"),
        (options(text_columns="body"), "There is no column 'body'; the data has text, label"),
        (options(label_column="topic"), "There is no column 'topic'; the data has text, label. Name the `--label"),
        (options("--text-columns", "text", "text"), "A pair needs two columns, got `--text-columns` text text"),
        (options(text_columns="text", label_column="text"), "A label must not be a text, got text and text"),
        (options(output_dir=None), "`--output-dir` must be given"),
        (options(output_dir="rows.csv"), "rows.csv holds something else; choose another `--output-dir`"),
        (options(output_dir="rows.csv/run"), "Not a directory: 'rows.csv/run'"),
        (options(output_dir="."), ". holds something else; choose another `--output-dir`, or empty it"),
        (options(deepspeed="none.json"), "deepspeed"),
        (options("--label-names", "a", "b"), "`--label-names a b` is not served: of the data the labels are"),
        (
            options("--save-strategy=best", "--metric-for-best-model=loss"),
            "`--save-strategy best` needs an `--eval-strategy`, got no",
        ),
        (options("--batch-size=16"), "did you mean --per-device-train-batch-size or --per-device-eval-batch-size?"),
        (options("--lr=1e-3"), "There is no option --lr; did you mean --learning-rate?"),
        (options(optim="schedule_free_adamw"), "`--optim schedule_free_adamw` keeps another copy of the weights"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_options(folder, capsys, arguments, message):
    assert message in refused(capsys, folder, arguments)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_checkpointing_that_a_search_cannot_have(folder, capsys):
    for kwargs in ('{"use_reentrant": true}', '{"preserve_rng_state": false}'):
        asked = options("--gradient-checkpointing", f"--gradient-checkpointing-kwargs={kwargs}")
        said = "`--gradient-checkpointing-kwargs` must say `use_reentrant` is false"
        assert said in refused(capsys, folder, asked)
    asked = options("--gradient-checkpointing", "--gradient-checkpointing-kwargs=foo")
    assert "`--gradient-checkpointing-kwargs` must be an object in json, got 'foo'" in refused(capsys, folder, asked)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "ragged.csv",
            "text,label\na,b\nc,d,e,f\n",
            "ragged.csv must have 2 fields a row, as its header has, got 4 in row 2",
        ),
        ("quote.csv", 'text,label\n"a,b\nc,d\n', "quote.csv cannot be used: line 3: unexpected end of data"),
        ("latin.csv", "text,label\ncaf\xe9,a\n".encode("latin-1"), "'utf-8' codec can't decode byte 0xe9"),
        ("empty.csv", "", "No columns to parse from file; repair or convert it"),
        ("header.csv", "text,label\n", "header.csv must hold rows, got none"),
        ("semicolon.csv", "text;label\na;b\n", "its header is parted by ';'; part it by commas, or by tabs in a .tsv"),
        ("other.csv", "body,label\na,b\nc,d\n", "There is no column 'text'; the data has body, label."),
        ("half.csv", "text,label\na,negative\nb,\n", "Every row needs a label, got 1 without"),
        (
            "textless.csv",
            'text,label\n"",negative\nb,positive\n',
            "'text' must hold texts, got 1 rows without, in row 1;",
        ),
        (
            "numbers.csv",
            "text,label\n1,negative\n2,positive\n",
            "'text' must hold texts, got int in some rows, such as 1; write them as texts, in jsonl or parquet",
        ),
        ("one.csv", "text,label\na,positive\nb,positive\n", "at least two classes, got only ['positive']"),
        ("nan.jsonl", '{"text": "a", "label": NaN}\n{"text": "b", "label": 0.5}\n', "got 1 without"),
        (
            "null.jsonl",
            '{"text": null, "label": "negative"}\n{"text": "b", "label": "positive"}\n',
            "got 1 rows without",
        ),
        (
            "blank.jsonl",
            '{"text": "", "label": "negative"}\n{"text": " ", "label": "positive"}\n',
            "got only empty ones",
        ),
        (
            "mixed.jsonl",
            '{"text": "a", "label": "positive"}\n{"text": "b", "label": 3}\n',
            "Column(/label) changed from string to number",
        ),
        ("broken.jsonl", '{"text": "a"\n{', "broken.jsonl cannot be used: JSON parse error"),
        ("broken.parquet", "PAR1", "broken.parquet cannot be used: "),
        ("broken.arrow", "none", "broken.arrow cannot be used: "),
        ("rows.xlsx", "none", "Files must end in arrow, csv"),
    ],
)
def test_data_files(folder, capsys, name, text, message):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(capsys, folder, options(train_file=name, eval_file=name, text_columns="text"))
    if name not in ("one.csv", "mixed.jsonl", "nan.jsonl"):
        assert message in refused(capsys, folder, options(eval_file=name, text_columns="text"))


def test_other_commands(folder, capsys):
    assert "either `--dataset` or `--eval-file`, got neither" in refused(capsys, folder, ["model"], "evaluate")
    count = ["model", "--texts=eval.csv", "--inputs=-1"]
    assert "`inputs` must be at least 1, got -1" in refused(capsys, folder, count, "inspect")
    named = refused(capsys, folder, ["model", "a good film"], "predict")
    assert "got 2 words; put the name of an option before each other" in named
    publish = ["model", "--eval-file=eval.csv", "--push-to-hub"]
    assert "`powerbert evaluate` publishes nothing" in refused(capsys, folder, publish, "evaluate")
    assert "`seed` must not be negative, got -1" in refused(capsys, folder, ["--seed=-1", "--output-dir=run"], "demo")
    pair = ["model", "--texts=eval.csv", "--second-text=bad"]
    assert "`--second-text` goes with a text" in refused(capsys, folder, pair, "inspect")
    reconfigure(folder, id2label={0: "a", 1: "b", 2: "c"})
    evaluated = refused(capsys, folder, ["model", "--eval-file=eval.csv"], "evaluate")
    assert "as many labels as its configuration says, got 2 where that has 3 in model; correct" in evaluated


def test_every_command_has_help(capsys):
    def help_of(*command):
        with pytest.raises(SystemExit, match="0"):
            cli.main([*command, "--help"])
        return capsys.readouterr().out

    names = re.search(r"\{([\w,]+)\}", help_of()).group(1).split(",")
    assert len(names) > 10
    for name in names:
        assert f"usage: powerbert {name}" in help_of(name)


def test_classes_that_are_only_reported(folder, capsys):
    (folder / "other.csv").write_text("text,label\na,negative\nb,mixed\n")
    sentence = refused(capsys, folder, options(eval_file="other.csv"))
    assert "got 1 that are only in the reported split (mixed)" in sentence


def test_class_numbers_that_have_no_name(folder, capsys):
    from datasets import ClassLabel, Features, Value

    frame = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]})
    named = Features(text=Value("string"), label=ClassLabel(names=["no", "yes"]))
    table = frame.data.table.cast(named.arrow_schema)
    splits = DatasetDict(train=Dataset(table), validation=Dataset(table))
    assert splits["train"].features == named
    splits.save_to_disk(folder / "data")
    arguments = options(dataset="data", train_file=None, eval_file=None)
    assert "Class numbers must lie between 0 and 1, as the training split's 'label' says, got 2" in refused(
        capsys, folder, arguments
    )


def test_data_sets_without_the_splits(folder, capsys):
    frame = Dataset.from_dict({"text": ["a", "b"], "label": ["no", "yes"]})
    arguments = options(dataset="data", train_file=None, eval_file=None)
    DatasetDict(train=frame).save_to_disk(folder / "data")
    assert "'data' has no split to report on, got ['train']; pass `--eval-file`" in refused(capsys, folder, arguments)
    DatasetDict(test=frame).save_to_disk(folder / "other")
    sentence = refused(capsys, folder, options(dataset="other", train_file=None, eval_file=None))
    assert "'other' must have a split `train`, got ['test']" in sentence
    (folder / "data" / "dataset_dict.json").write_text("{")
    assert "The data set data cannot be used: Expecting property name" in refused(capsys, folder, arguments)


def test_a_search_that_diverged_is_not_a_bug(folder, capsys, monkeypatch):
    """What it was made from is kept."""
    monkeypatch.setattr(callbacks, "retention_mass", lambda weights: weights.sum(dim=1) * float("nan"))
    assert cli.main(["train", *options("--disable-tqdm=true")]) == 2
    assert "The search must end in finite masses, got [nan, nan, nan]; lower" in capsys.readouterr().err
    assert (folder / "run" / "fine_tuned" / "model.safetensors").is_file()


def test_a_bug_shows_where_it_is(folder, monkeypatch):
    def bug(*args, **kwargs):
        raise TypeError("not the user's fault")

    monkeypatch.setattr(PoWERTrainer, "train", bug)
    with pytest.raises(TypeError, match="not the user's fault"):
        cli.main(["train", *options()])


def test_an_interrupted_command_says_so(folder, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(PoWERTrainer, "train", stop)
    assert cli.main(["train", *options()]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


def test_in_a_shell(folder):
    """No traceback, nothing that a library says on its own, and a status that a script can read."""
    (folder / "ragged.csv").write_text("text,label\na,b\nc,d,e,f\n")
    run = subprocess.run(
        [sys.executable, "-m", "powerbert_hf.cli", "train", *options(train_file="ragged.csv")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    *progress, sentence = run.stderr.splitlines()
    assert sentence.startswith("powerbert train: ragged.csv must have 2 fields a row")
    assert not [line for line in progress if "Generating train split" not in line and line.strip()]
