"""Training rows that are read while they are trained on; tokenised rows that are found again."""

import json
from itertools import islice

import pandas
import pytest
from datasets import Dataset, DatasetDict

from conftest import Host
from powerbert_hf import cli, data, streaming
from powerbert_hf.arguments import DataArguments
from powerbert_hf.checkpoint import load_tokenizer
from powerbert_hf.texts import read_file, tokenize


@pytest.fixture
def options(rows, tokenizer, tmp_path, monkeypatch):
    """Of a run on a stream of which 20 rows are the head."""
    monkeypatch.setattr(streaming, "HEAD", 20)
    monkeypatch.setattr(streaming, "_SHUFFLED", 8)
    Host("bert").make_stock().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    files = {"train_file": str(tmp_path / "rows.jsonl"), "eval_file": str(tmp_path / "rows.jsonl")}
    return DataArguments(**files, streaming=True)


def test_a_stream_holds_every_row_once_but_those_to_tune_on(options, rows, tokenizer, tmp_path):
    data = streaming.load_stream(options, str(tmp_path / "model"))
    assert data.label_names == ("negative", "positive")
    assert data.retention_length == 64
    found, again = (
        [(tuple(row["input_ids"]), row["labels"]) for row in islice(data.train, start, start + 62)]
        for start in (0, 62)
    )
    tuned_on = [(tuple(row["input_ids"]), row["labels"]) for row in data.tune]
    wanted = [(tuple(tokenizer(row["text"])["input_ids"]), int(row["label"] == "positive")) for row in rows]
    assert len(tuned_on) == 2
    assert sorted(found + tuned_on) == sorted(wanted)
    # In another order each time.
    assert sorted(again) == sorted(found)
    assert again != found


def test_of_a_streamed_training_split_the_first_rows_are_read_to_measure_and_all_of_them_to_train(
    options, rows, tmp_path, monkeypatch
):
    read = []
    monkeypatch.setattr(data, "prepare_data", lambda train, *more, **named: read.append(len(train)))
    monkeypatch.setattr(data, "_LOOKED_AT", 5)
    for measure_only in (True, False):
        data.load_data(options, str(tmp_path / "model"), measure_only=measure_only)
    assert read == [5, len(rows)]


def test_the_split_of_a_folder_that_is_reported_is_known_of_a_stream_too(rows, options, tmp_path):
    for name in ("train", "test"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Dataset.from_list(rows).to_json(tmp_path / "folder" / f"{name}.jsonl")
    asked = DataArguments(dataset=str(tmp_path / "folder"), streaming=True)
    assert streaming.load_stream(asked, str(tmp_path / "model")).source["eval_split"] == "test"
    assert streaming.load_stream(options, str(tmp_path / "model")).source["eval_split"] is None


def arguments(tmp_path, *more):
    files = [f"--{name}-file={tmp_path / 'rows.jsonl'}" for name in ("train", "eval")]
    fast = [
        "--streaming",
        "--disable-tqdm=true",
        "--per-device-train-batch-size=16",
        f"--output-dir={tmp_path / 'run'}",
    ]
    return ["train", f"--model={tmp_path / 'model'}", *files, *fast, *more]


def test_the_recipe_trains_on_a_stream_for_as_many_steps_as_asked(options, tmp_path, capsys):
    assert cli.main(arguments(tmp_path, "--max-steps=6")) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"]["train_rows"] is None
    assert report["retention_length"] == 64
    history = json.loads((tmp_path / "run" / "final" / "step.json").read_text())["history"]
    # Of 62 rows a step takes 16: the stream began anew.
    assert history[-1]["step"] == 6
    # Nobody knows how many rows there were.
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert "a stream" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert cli.main(["publish", str(tmp_path / "run"), "--repo=me/streamed", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "A stream of rows to train on, 2 to choose by; 6 optimizer steps in batches of 16 for each of" in said


def test_a_stream_is_measured_as_often_as_it_is_saved(options, tmp_path):
    best = ["--eval-strategy=epoch", "--load-best-model-at-end", "--save-strategy=epoch", "--save-steps=2"]
    assert cli.main(arguments(tmp_path, "--max-steps=4", *best)) == 0
    for step in ("fine_tuned", "searched", "final"):
        history = json.loads((tmp_path / "run" / step / "step.json").read_text())["history"]
        assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "`--streaming` needs `--max-steps`, got -1"),
        (["--max-steps=2", "--max-train-samples=9"], "`--streaming` draws no rows, got `--max-train-samples`"),
        (
            ["--max-steps=2", "--dataset=rows"],
            "Pass either `--dataset` or `--train-file` (with `--eval-file`), got both",
        ),
    ],
)
def test_what_a_stream_cannot_do(options, tmp_path, capsys, more, message):
    assert cli.main(arguments(tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_saved_data_set_is_a_stream_too(options, rows, tmp_path):
    saved = DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list(rows[:9]))
    saved.save_to_disk(tmp_path / "saved")
    options.dataset, options.train_file, options.eval_file = str(tmp_path / "saved"), None, None
    data = streaming.load_stream(options, str(tmp_path / "model"))
    assert len(data.eval) == 9
    first = [tuple(row["input_ids"]) for row in islice(data.train, 62)]
    assert len({*first}) > 50


def test_numbers_of_a_stream_may_all_be_alike_for_a_while_and_are_pointed_out_once(options, rows, tmp_path, caplog):
    scores = [1.0, 0.0] * 10 + [-1.0] * (len(rows) - 20)
    Dataset.from_list([{**row, "label": score} for row, score in zip(rows, scores, strict=True)]).to_json(
        tmp_path / "rows.jsonl"
    )
    with caplog.at_level("INFO", "powerbert_hf"):
        data = streaming.load_stream(options, str(tmp_path / "model"))
        found = [row["labels"] for row in islice(data.train, 62)]
    assert found.count(-1.0) == len(rows) - 20
    assert caplog.text.count("Written as whole numbers, they are classes") == 1


def test_numbers_of_a_known_task_mean_the_same_in_all_of_a_stream(options, rows, tokenizer, tmp_path):
    """The model has the labels the other way round."""
    Host("bert").make_stock(id2label={0: "POSITIVE", 1: "NEGATIVE"}).save_pretrained(tmp_path / "model")
    numbered = [{"sentence": row["text"], "label": int(row["label"] == "positive")} for row in rows]
    Dataset.from_list(numbered).to_json(tmp_path / "rows.jsonl")
    options.task = "sst2"
    data = streaming.load_stream(options, str(tmp_path / "model"), fine_tuned=True)
    assert data.label_names == ("POSITIVE", "NEGATIVE")
    found = [(tuple(row["input_ids"]), row["labels"]) for row in [*islice(data.train, 62), *data.tune]]
    wanted = [(tuple(tokenizer(row["sentence"])["input_ids"]), 1 - row["label"]) for row in numbered]
    assert sorted(found) == sorted(wanted)


def test_a_class_that_the_head_does_not_have_is_refused(options, rows, tmp_path):
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"text": "good", "label": "mixed"}\n')
    options.eval_file = str(tmp_path / "eval.jsonl")
    Dataset.from_list(rows).to_json(tmp_path / "eval.jsonl")
    data = streaming.load_stream(options, str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"must be like its first 20: Every class .* \(mixed\)"):
        list(islice(data.train, 100))


def test_the_last_rows_of_a_stream_may_be_empty(options, tmp_path):
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"text": "good", "label": "negative"}\n' * (1020 - 64) + '{"text": "", "label": "negative"}\n')
    found = streaming.load_stream(options, str(tmp_path / "model"))
    assert sum(len(row["input_ids"]) == 2 for row in islice(found.train, 1019)) == 1


# Of a csv file that nobody reads to its end.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_only_texts_and_labels_must_be_as_in_the_head(options, rows, tmp_path, ending):
    """A part of the file in which each text is a number, and a column that means nothing and changes its kind."""
    early = [{**row, "note": None} for row in rows * 200][:10_000]
    frame = pandas.DataFrame([*early, *({**row, "text": "7", "note": "late"} for row in rows)])
    options.train_file, options.text_columns = str(tmp_path / f"late.{ending}"), ["text"]
    if ending == "csv":
        frame.to_csv(options.train_file, index=False)
    else:
        frame.to_json(options.train_file, orient="records", lines=True)
    data = streaming.load_stream(options, str(tmp_path / "model"))
    seven = data.tokenizer("7")["input_ids"]
    assert sum(row["input_ids"] == seven for row in islice(data.train, 10_050)) > 40


@pytest.mark.parametrize("num_proc", [None, 2])
def test_tokenised_rows_are_found_again(options, tmp_path, num_proc):
    def files():
        tokenizer = load_tokenizer(tmp_path / "model", Host("bert").make_stock().config)
        data = read_file(options.train_file)
        made = [tokenize(data.select(part), ["text"], [0] * 30, tokenizer, 64, num_proc) for part in PARTS]
        return [file["filename"] for one in made for file in one.cache_files]

    first = files()
    assert first
    assert files() == first


PARTS = (range(30), range(30, 60))
