"""Every kind of task from its files to a faster model: one label, several, a number; one text, or two."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

from conftest import WORDS, Host
from powerbert_hf import cli, data, steps, tasks
from powerbert_hf.arguments import DataArguments, RecipeArguments
from powerbert_hf.parsing import parse
from powerbert_hf.trainer import PoWERTrainingArguments

# Columns and labels of each on the Hub, and the split that is reported.
NUMBER = None
HUB = {
    "cola": (["sentence"], ["unacceptable", "acceptable"], "validation", "matthews_correlation"),
    "sst2": (["sentence"], ["negative", "positive"], "validation", "accuracy"),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"], "validation", "f1"),
    "stsb": (["sentence1", "sentence2"], NUMBER, "validation", "spearmanr"),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"], "validation", "f1"),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], "validation_matched", "accuracy"),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], "validation", "accuracy"),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], "validation", "accuracy"),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"], "validation", "accuracy"),
    "imdb": (["text"], ["neg", "pos"], "test", "accuracy"),
}


@pytest.fixture
def checkpoint(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Host("bert").make_stock().save_pretrained("model")
    tokenizer.save_pretrained("model")
    return "model"


def hub_data(name, rows=12):
    """A data set as the Hub has it, of a few rows, saved in a folder of its name."""
    texts, labels, reported, _ = HUB[name]
    kind = Value("float32") if labels is NUMBER else ClassLabel(names=labels)

    def split(rows, label=None):
        columns = {text: [f"{word} film" for word in WORDS[:rows]] for text in texts}
        values = [row * 0.5 if labels is NUMBER else row % len(labels) for row in range(rows)]
        columns["label"] = values if label is None else [label] * rows
        features = Features({text: Value("string") for text in texts}, label=kind)
        return Dataset.from_dict(columns, features=features)

    hidden = split(3, label=-1)
    splits = DatasetDict(train=split(rows), test=hidden)
    splits[reported] = split(rows - 3)
    if name == "mnli":
        splits["validation_mismatched"] = split(2)
    if name == "imdb":
        splits["unsupervised"] = hidden
    splits.save_to_disk(name)


def train(*options):
    usual = ["--output-dir=run", "--max-steps=2", "--per-device-train-batch-size=8", "--disable-tqdm=true"]
    assert cli.main(["train", "--model=model", *usual, *options]) == 0
    with open("run/report.json") as file:
        return json.load(file), AutoConfig.from_pretrained("run/final")


def evaluate(capsys, *options):
    capsys.readouterr()
    assert cli.main(["evaluate", "run/final", "--disable-tqdm=true", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_is_that_of_the_known_tasks():
    assert set(HUB) == set(tasks.TASKS)


@pytest.mark.parametrize("name", HUB)
def test_known_tasks_are_read_as_the_hub_has_them(name, checkpoint, tokenizer):
    hub_data(name)
    texts, labels, _, metric = HUB[name]
    _, options, _ = parse(
        "train",
        ["--model=model", f"--dataset={name}", "--output-dir=run"],
        [RecipeArguments, DataArguments, PoWERTrainingArguments],
    )
    assert options.task == name
    task = tasks.TASKS[name]
    prepared = data.prepare_data(
        *data.load_splits(name, task=task), tokenizer, AutoConfig.from_pretrained("model"), task
    )
    assert (len(prepared.train), len(prepared.tune), len(prepared.eval)) == (11, 1, 9)
    assert prepared.source["text_columns"] == texts
    assert prepared.metric == metric
    assert prepared.label_names == tuple(labels or ())
    assert prepared.problem_type == ("regression" if labels is NUMBER else "single_label_classification")
    wanted = [row * 0.5 if labels is NUMBER else row % len(labels) for row in range(12)]
    assert sorted([*prepared.train["labels"], *prepared.tune["labels"]]) == sorted(wanted)
    assert max(prepared.train[0]["token_type_ids"]) == len(texts) - 1


@pytest.mark.parametrize("name", ["stsb", "mnli"])
def test_known_tasks_train(name, checkpoint, capsys):
    hub_data(name)
    report, config = train(f"--dataset={name}")
    _, labels, _, metric = HUB[name]
    assert report["metric"] == metric
    assert report["data"]["eval_rows"] == 9
    assert list(config.id2label.values()) == (labels or ["LABEL_0"])
    assert evaluate(capsys, f"--dataset={name}")[metric] == pytest.approx(report["final"])
    if labels:
        # A file of one class says how well that class is found.
        rows = [{"premise": "the film", "hypothesis": "a plot", "label": "neutral"}] * 2
        Dataset.from_list(rows).to_csv("neutral.csv")
        measured = evaluate(capsys, "--eval-file=neutral.csv", "--text-columns", "premise", "hypothesis")
        assert measured["accuracy"] in (0.0, 1.0)


def test_several_labels_a_text(checkpoint, rows, capsys):
    """With names in lists, from the file to a pipeline that gives each label a probability of its own."""
    for row in rows:
        row["labels"] = [row["label"], "short"] if len(row["text"]) < 40 else []
    Dataset.from_list(rows).remove_columns("label").to_json("rows.jsonl")
    files = ["--train-file=rows.jsonl", "--eval-file=rows.jsonl"]
    report, config = train(*files, "--retention-unit=words")
    assert report["metric"] == "f1_micro"
    assert set(report["metrics"]["final"]) == {"loss", "f1_micro", "f1_macro", "subset_accuracy"}
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "negative", 1: "positive", 2: "short"}
    measured = evaluate(capsys, "--eval-file=rows.jsonl")
    assert measured["f1_micro"] == pytest.approx(report["final"])

    answers = pipeline("text-classification", model="run/final", top_k=None)(["the film was good"])[0]
    model = AutoModelForSequenceClassification.from_pretrained("run/final")
    assert type(model).__name__ == "PoWERBertForSequenceClassification"
    assert sum(answer["score"] for answer in answers) != pytest.approx(1.0, abs=1e-3)
    fine_tuned = ["--model=run/fine_tuned", "--fine-tuned", "--output-dir=again", "--max-steps=1"]
    assert cli.main(["train", *fine_tuned, *files]) == 0


def test_several_labels_in_columns_and_a_threshold_of_a_half(checkpoint, rows, capsys):
    for number, row in enumerate(rows):
        row.update(toxic=int(row.pop("label") == "negative"), threat=int(number % 4 == 0))
    Dataset.from_list(rows).to_csv("rows.csv")
    columns = ["--text-columns=text", "--label-column", "toxic", "threat"]
    report, config = train("--train-file=rows.csv", "--eval-file=rows.csv", *columns)
    assert config.id2label == {0: "toxic", 1: "threat"}
    assert report["data"]["label_column"] == ["toxic", "threat"]
    measured = evaluate(capsys, "--eval-file=rows.csv", *columns)
    answers = pipeline("text-classification", model="run/final", top_k=None)([row["text"] for row in rows])
    found = [{answer["label"] for answer in row if answer["score"] > 0.5} for row in answers]
    meant = [{name for name in ("toxic", "threat") if row[name]} for row in rows]
    assert any(found)
    right = sum(map(len, (one & other for one, other in zip(found, meant, strict=True))))
    assert measured["f1_micro"] == pytest.approx(2 * right / (sum(map(len, found)) + sum(map(len, meant))))


def test_a_models_kind_of_task_must_be_the_datas(tokenizer):
    frame = Dataset.from_dict({"text": ["good", "bad"], "labels": [["a"], ["b"]]})
    config = Host("bert").make_stock(id2label={0: "a", 1: "b"}, problem_type="single_label_classification").config
    prepared = data.prepare_data(frame, frame, tokenizer, config)
    with pytest.raises(
        ValueError, match=r"kind of task \(multi_label_classification\), got `problem_type` 'single_lab"
    ):
        steps.check_labels(config, prepared)
    config.problem_type = None
    steps.check_labels(config, prepared)


def test_many_classes_and_long_and_odd_texts(checkpoint, caplog):
    odd = ["x", "", "été 日本語 😀👩‍👩‍👧", "שלום עולם مرحبا", "\x00\u200b\ufeff", "good " * 5000, "same", "same"]
    frame = Dataset.from_dict({"text": odd * 10, "label": [f"intent {n % 77}" for n in range(80)]})
    frame.to_parquet("rows.parquet")
    with caplog.at_level("INFO", "powerbert_hf"):
        report, config = train("--train-file=rows.parquet", "--eval-file=rows.parquet")
    assert config.num_labels == 77
    assert report["retention_length"] == 64
    assert [record.message for record in caplog.records if "are cut there" in record.message] == [
        "20 of 160 inputs fill or exceed 64 word-pieces and are cut there"
    ]


def test_one_encoder(checkpoint, rows):
    """All it can leave out is what no one reads."""
    host = Host("bert")
    host.fields["num_hidden_layers"] = 1
    host.make_stock().save_pretrained("model")
    Dataset.from_list(rows).to_csv("rows.csv")
    report, _ = train(
        "--train-file=rows.csv", "--eval-file=rows.csv", "--retention-unit=words", "--retention-lambda=0.1"
    )
    assert report["retention_config"] == [1]
    assert report["predicted_speedup"] > 1
