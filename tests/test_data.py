"""Reading data: columns, labels, lengths, metrics; what cannot be used is said before anything is trained."""

import gc
import json
import logging

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value, concatenate_datasets

from conftest import WORDS, Host
from powerbert_hf import data, labels, tasks, texts
from powerbert_hf.checkpoint import load_config, load_tokenizer
from powerbert_hf.rows import join_names
from powerbert_hf.steps import check_labels
from powerbert_hf.texts import read_file


@pytest.fixture
def frame(rows):
    return Dataset.from_list(rows)


def prepare(frame, tokenizer, held_out=None, names=None, **fields):
    config = Host("bert").make_stock(**({} if names is None else {"id2label": dict(enumerate(names))})).config
    return data.prepare_data(frame, frame if held_out is None else held_out, tokenizer, config, **fields)


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet", "arrow"])
def test_every_kind_of_file_reads_alike(frame, tokenizer, tmp_path, ending):
    path = str(tmp_path / f"rows.{ending}")
    if ending == "arrow":
        with datasets.arrow_writer.ArrowWriter(path=path, features=frame.features) as writer:
            for row in frame:
                writer.write(row)
            writer.finalize()
    else:
        {
            "csv": lambda: frame.to_csv(path),
            "tsv": lambda: frame.to_csv(path, sep="\t"),
            "json": lambda: frame.to_json(path),
            "jsonl": lambda: frame.to_json(path),
            "parquet": lambda: frame.to_parquet(path),
        }[ending]()
    train, held_out = data.load_splits(train_file=path, eval_file=path)
    assert train[:] == frame[:]
    assert held_out[:] == frame[:]


def test_folders_of_files_and_saved_data_sets(frame, tmp_path, monkeypatch):
    frame.to_parquet(tmp_path / "files" / "train.parquet")
    frame.select(range(5)).to_parquet(tmp_path / "files" / "dev.parquet")
    DatasetDict(train=frame, test=frame.select(range(7))).save_to_disk(tmp_path / "saved")
    for folder, rows in (("files", 5), ("saved", 7)):
        train, held_out = data.load_splits(str(tmp_path / folder))
        assert (len(train), len(held_out)) == (64, rows)
    monkeypatch.chdir(tmp_path / "files")
    assert len(data.load_splits(".")[0]) == 64
    frame.save_to_disk(tmp_path / "single")
    with pytest.raises(ValueError, match="single cannot be used: it is a single split; pass an `--eval-file` to"):
        data.load_splits(str(tmp_path / "single"))
    frame.select(range(6)).to_csv(tmp_path / "held_out.csv")
    for measure_only, option in ((False, "train"), (True, "eval")):
        with pytest.raises(ValueError, match=rf"got the file .*held_out\.csv; pass it as `--{option}-file`"):
            data.load_splits(str(tmp_path / "held_out.csv"), measure_only=measure_only)
    train, held_out = data.load_splits(str(tmp_path / "single"), eval_file=str(tmp_path / "held_out.csv"))
    assert (len(train), len(held_out)) == (64, 6)


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_a_saved_format_means_nothing_and_a_split_is_called_what_it_was_saved_as(frame, tmp_path, kind):
    parts = frame.train_test_split(test_size=9, seed=0).with_format(kind, columns=["label"])
    DatasetDict({**parts, "of no use": parts["train"]}).save_to_disk(tmp_path / "saved")
    train, held_out = data.load_splits(str(tmp_path / "saved"))
    assert str(held_out.split) == "test"
    assert train[:] == parts["train"].with_format(None)[:]
    assert held_out[:] == parts["test"].with_format(None)[:]
    parts["train"].save_to_disk(tmp_path / "single")
    frame.to_csv(tmp_path / "held_out.csv")
    train, _ = data.load_splits(str(tmp_path / "single"), eval_file=str(tmp_path / "held_out.csv"))
    assert train[:] == parts["train"].with_format(None)[:]


@pytest.mark.parametrize("name", ["validation", "dev", "val", "valid", "eval", "test"])
def test_the_split_to_report_has_one_of_the_usual_names(frame, tmp_path, name):
    DatasetDict({"train": frame, "other": frame, name: frame.select(range(7))}).save_to_disk(tmp_path / "saved")
    assert len(data.load_splits(str(tmp_path / "saved"))[1]) == 7


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_files_of_a_folder_are_read_as_files_are(tmp_path, ending):
    """A class that is called None, a text that looks like a number; what is no table is passed over."""
    rows = [{"text": "good film", "label": ("None", "NA")[n % 2]} for n in range(40)]
    rows[3]["text"] = "7"
    sep = "\t" if ending == "tsv" else ","
    lines = [f"text{sep}label", *(sep.join(row.values()) for row in rows)]
    if ending == "jsonl":
        lines = [json.dumps(row) for row in rows]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.{ending}").write_text("\n".join(lines) + "\n")
    # None of these is one of the splits.
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.csv").write_text('"')
    train, held_out = data.load_splits(str(tmp_path))
    assert (str(train.split), str(held_out.split)) == ("train", "validation")
    assert train[:] == held_out[:] == Dataset.from_list(rows)[:]


def test_a_readme_says_how_the_files_of_a_folder_are_read(tmp_path):
    """Of `datasets`: which they are, which subset, and by what the fields are parted."""
    for name in ("one", "other"):
        (tmp_path / f"{name}.csv").write_text(f"text;label\n{name}, really;None\n")
    configs = [f"- config_name: {name}\n  data_files: {name}.csv\n  sep: ';'\n" for name in ("one", "other")]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    (tmp_path / "held_out.tsv").write_text("text\tlabel\ngood\tNone\n")
    train, _ = data.load_splits(str(tmp_path), "other", eval_file=str(tmp_path / "held_out.tsv"))
    assert train[:] == {"text": ["other, really"], "label": ["None"]}
    with pytest.raises(ValueError, match="pick one among the available configs"):
        data.load_splits(str(tmp_path), eval_file=str(tmp_path / "one.csv"))


@pytest.mark.parametrize(
    ("ending", "late", "reason"),
    [
        ("csv", "a,b,c", "must have 2 fields a row, as its header has, got 3 in row 3"),
        ("csv", '"a,b', "unexpected end of data"),
        ("jsonl", '{"text": 8, "label": "no"}', "Column(/text) changed from string to number in row 3"),
        ("json", "{", "JSON parse error"),
    ],
)
def test_what_a_file_is_refused_for_a_folder_is_too(tmp_path, ending, late, reason):
    first = '{"text": "good film", "label": "yes"}' if ending.startswith("json") else "text,label"
    path = tmp_path / f"train.{ending}"
    path.write_text("\n".join([first] * 3 + [late]) + "\n")

    def said(**read):
        with pytest.raises(ValueError, match=r"must|cannot") as error:
            data.load_splits(**read)
        return str(error.value)

    assert reason in said(train_file=str(path), eval_file=str(path))
    assert reason in said(dataset=str(tmp_path))


def test_a_column_of_a_folder_has_the_type_of_all_its_rows(tmp_path):
    numbers = [{"text": "good", "label": str(n % 2)} for n in range(30_000)]
    Dataset.from_list([*numbers, {"text": "bad", "label": "two"}]).to_csv(tmp_path / "train.csv")
    Dataset.from_list([*numbers[:10], {"text": "bad", "label": "two"}]).to_csv(tmp_path / "test.csv")
    train, _ = data.load_splits(str(tmp_path))
    assert train[-1] == {"text": "bad", "label": "two"}
    assert train[0]["label"] == "0"


def test_prepared_data_is_sorted_for_the_report_and_knows_its_longest(frame, tokenizer):
    prepared = prepare(frame, tokenizer, max_length=12)
    assert prepared.eval["length"] == sorted(prepared.eval["length"])
    assert prepared.retention_length == 12
    assert [len(ids) for ids in prepared.train["input_ids"]] == list(prepared.train["length"])
    assert prepared.label_fields["id2label"] == {0: "negative", 1: "positive"}
    assert (prepared.source["train_rows"], prepared.source["tuning_rows"]) == (58, 6)


def test_drawn_rows_depend_on_the_seed_alone(frame, tokenizer):
    first, again, other = (
        prepare(frame, tokenizer, max_train_samples=20, max_eval_samples=10, seed=seed) for seed in (0, 0, 1)
    )
    assert (len(first.train), len(first.eval)) == (20, 10)
    assert first.train[:] == again.train[:]
    assert first.train[:] != other.train[:]


@pytest.mark.parametrize("drawn", [{}, {"max_train_samples": 30}])
def test_no_row_is_trained_on_and_chosen_by(tokenizer, monkeypatch, drawn):
    monkeypatch.setattr(data, "_TUNING_ROWS", 4)
    pairs = [f"{first} {second}" for first in WORDS for second in WORDS[:3]]
    made = prepare(Dataset.from_dict({"text": pairs, "label": [n % 2 for n in range(len(pairs))]}), tokenizer, **drawn)
    trained_on, tuned_on = ({tuple(ids) for ids in split["input_ids"]} for split in (made.train, made.tune))
    assert trained_on.isdisjoint(tuned_on)
    assert len(made.tune) == min(4, min(len(pairs), *drawn.values(), len(pairs)) // 10)
    assert len(made.train) == drawn.get("max_train_samples", len(pairs) - len(made.tune))


@pytest.mark.parametrize("seed", range(20))
def test_each_class_is_chosen_by_where_there_are_rows(tokenizer, seed):
    rows = {"text": [WORDS[n % len(WORDS)] for n in range(40)], "label": [n % 4 for n in range(40)]}
    made = prepare(Dataset.from_dict(rows), tokenizer, seed=seed)
    assert set(made.tune["labels"]) == {0, 1, 2, 3}
    assert (len(made.tune), len(made.train)) == (4, 36)


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_left_to_train_on(tokenizer, seed):
    labels = ["often"] * 37 + ["once"] + ["twice"] * 2
    made = prepare(
        Dataset.from_dict({"text": [WORDS[n % len(WORDS)] for n in range(40)], "label": labels}), tokenizer, seed=seed
    )
    often, once, twice = (made.label_names.index(name) for name in ("often", "once", "twice"))
    tuned = list(made.tune["labels"])
    assert tuned.count(twice) == 1
    assert tuned.count(often) == 3
    assert twice in made.train["labels"]
    assert once in made.train["labels"]


@pytest.mark.parametrize("seed", range(5))
def test_no_class_of_many_is_left_out_of_training(tokenizer, seed):
    names = [*(f"often {n % 5}" for n in range(80)), *(f"once {n}" for n in range(20))]
    made = prepare(Dataset.from_dict({"text": ["good film"] * 100, "label": names}), tokenizer, seed=seed)
    assert (len(made.tune), set(made.train["labels"])) == (10, set(range(25)))


@pytest.mark.parametrize("seed", range(20))
def test_a_class_is_not_chosen_by_where_no_row_of_it_is_drawn_to_train_on(tokenizer, seed):
    rows = {"text": [WORDS[n % len(WORDS)] for n in range(400)], "label": [int(n % 100 == 0) for n in range(400)]}
    made = prepare(Dataset.from_dict(rows), tokenizer, seed=seed, max_train_samples=20)
    assert (len(made.tune), len(made.train)) == (2, 20)
    assert set(made.tune["labels"]) <= set(made.train["labels"]) | {0}


def test_many_rare_classes_leave_the_tuning_split_what_it_is(tokenizer):
    """Else every class would be as common there as any other."""
    labels = ["often"] * 200 + [f"rare {n // 2}" for n in range(200)]
    made = prepare(Dataset.from_dict({"text": ["good film"] * 400, "label": labels}), tokenizer)
    drawn = np.random.default_rng(42).permutation(400)[:40]
    often = made.label_names.index("often")
    assert len(made.tune) == 40
    # Of a class whose two rows are drawn, one is left to train on.
    both = [n for n in drawn if n >= 200 and n % 2 == 0 and n + 1 in drawn]
    assert list(made.tune["labels"]).count(often) == (drawn < 200).sum() + len(both)


def test_label_kinds():
    def read(values, kind=None, names=()):
        features = Features(label=kind) if kind else None
        frame = Dataset.from_dict({"label": values}, features=features)
        return labels.read_labels(frame, frame, "label", names)[0:4:1]

    assert read(["b", "a", "b"])[0::2] == ([1, 0, 1], ("a", "b"))
    assert read([1, 0], ClassLabel(names=["no", "yes"]))[0::2] == ([1, 0], ("no", "yes"))
    assert read([1, 0], names=("no", "yes"))[0::2] == ([1, 0], ("no", "yes"))
    assert read([5, 3, 5])[0::2] == ([1, 0, 1], ("3", "5"))
    assert read([0.5, 2.0], Value("float32"))[2:] == ((), "regression")


@pytest.mark.parametrize("kind", [None, ClassLabel(names=["negative", "positive"])])
def test_the_models_order_of_labels_holds_where_it_knows_them(kind):
    values = ["negative", "positive"] if kind is None else [0, 1]
    frame = Dataset.from_dict({"label": values}, features=Features(label=kind) if kind else None)
    models = ("NEUTRAL", "POSITIVE", "NEGATIVE")
    assert labels.read_labels(frame, frame, "label", models)[0::2] == ([2, 1], models)
    assert labels.read_labels(frame, frame, "label", ("sports", "politics"))[0::2] == (
        [0, 1],
        ("negative", "positive"),
    )


def test_classes_are_not_named_by_a_model_of_another_task(frame, tokenizer):
    """Numbers are places among a model's labels only where it was trained on them; a name is a name."""
    numbered = Dataset.from_dict({"text": ["a film"] * 20, "label": [0, 1] * 10})
    entailment = ("yes", "perhaps", "no")
    assert prepare(numbered, tokenizer, names=entailment).label_names == ("0", "1")
    assert prepare(numbered, tokenizer, names=entailment, fine_tuned=True).label_names == entailment
    named = numbered.map(lambda row: {"label": ("yes", "no")[row["label"]]}, remove_columns="label")
    assert prepare(named, tokenizer, names=entailment).label_names == entailment
    # A class that these rows happen to lack, though others have it.
    assert labels.read_labels(named, Dataset.from_dict({"label": ["perhaps"]}), "label", entailment)[1] == [1]
    unnamed = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert len(prepare(numbered, tokenizer, names=unnamed, fine_tuned=True).label_names) == 3
    assert prepare(numbered, tokenizer, names=unnamed).label_names == ("0", "1")


def test_the_metric_that_counts_can_be_asked_for(frame, tokenizer):
    assert prepare(frame, tokenizer).metric == "accuracy"
    assert prepare(frame, tokenizer, metric="f1").metric == "f1"
    with pytest.raises(ValueError, match="`--metric` must be one of accuracy, f1, matthews_correlation"):
        prepare(frame, tokenizer, metric="spearmanr")


def test_whole_numbers_are_no_regression(frame, tokenizer, caplog):
    priced = Dataset.from_dict({"text": ["a film"] * 60, "label": list(range(100, 160))})
    assert len(prepare(priced, tokenizer).label_names) == 60
    assert "60 in 60 rows. Write them as floats for a regression" in caplog.text
    with pytest.raises(ValueError, match="The labels of a regression must be floats, got others in 'label'"):
        prepare(priced, tokenizer, task=tasks.TASKS["stsb"], text_columns=["text"])


@pytest.mark.parametrize("last", ["nan", "0,5"])
def test_numbers_that_read_as_words_are_pointed_out(tokenizer, caplog, last):
    values = [f"0{',' if ',' in last else '.'}{row}" for row in range(59)] + [last]
    assert len(prepare(Dataset.from_dict({"text": ["a film"] * 60, "label": values}), tokenizer).label_names) >= 59
    assert "holds numbers beside words or with commas, which are classes" in caplog.text


def test_numbers_of_a_fine_tuned_model_without_names_are_places_or_refused(tokenizer):
    config = Host("bert").make(num_labels=5).config
    for values, refused in (([0, 1, 4], False), ([1, 2, 3, 4], False), ([1, 2, 3, 4, 5], True)):
        frame = Dataset.from_dict({"text": ["a film"] * 60, "label": (values * 60)[:60]})
        for how in ({"measure_only": True}, {"fine_tuned": True}):
            found = data.prepare_data(frame, frame, tokenizer, config, **how)
            if refused:
                with pytest.raises(ValueError, match="set `id2label` in its configuration"):
                    check_labels(config, found)
            else:
                check_labels(config, found)
                assert set(found.eval["labels"]) == set(values)


def test_a_model_of_one_label_that_texts_may_have_is_no_regression(tokenizer):
    fields = {"num_labels": 1, "id2label": {0: "toxic"}, "problem_type": "multi_label_classification"}
    config = Host("bert").make(**fields).config
    frame = Dataset.from_dict({"text": ["a film"] * 4, "label": [["toxic"], [], [], ["toxic"]]})
    found = data.prepare_data(frame, frame, tokenizer, config, measure_only=True)
    check_labels(config, found)
    assert found.eval["labels"] == [[1.0], [0.0], [0.0], [1.0]]


def test_what_was_made_of_the_labels_is_said(frame, tokenizer, caplog):
    caplog.set_level(logging.INFO, "powerbert_hf")
    config = Host("bert").make_stock().config
    data.prepare_data(frame, frame, tokenizer, config)
    assert "2 classes (negative, positive); 58 rows to train on, 6 to choose by, 64 to report on" in caplog.text
    assert "differ only in" not in caplog.text
    labels = [f"{label} " if row % 9 == 0 else label for row, label in enumerate(frame["label"])]
    blanks = frame.remove_columns("label").add_column("label", labels)
    data.prepare_data(blanks, blanks, tokenizer, config)
    assert "holds classes that differ only in blanks or capitals: they are kept apart" in caplog.text
    assert "4 classes (negative, negative , positive, positive )" in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", "b", "a|b"], "holds 'a|b', which is one class"),
        (["['x']", "['x', 'y']"], "holds \"['x', 'y']\", which is one class"),
        (["rock, hard", "roll"], None),
        (["a", "b", "a;c"], None),
    ],
)
def test_several_labels_in_one_text_are_pointed_out(tokenizer, caplog, values, said):
    prepare(Dataset.from_dict({"text": ["a film"] * 24, "label": values * (24 // len(values))}), tokenizer)
    assert ("write lists in jsonl" in caplog.text) == (said is not None)
    assert (said or "") in caplog.text


def test_numbers_that_are_hard_to_learn_are_pointed_out(tokenizer, caplog):
    for scale, said in ((1.0, 0), (1000.0, 1)):
        priced = Dataset.from_dict({"text": ["a film"] * 20, "label": [scale * (n % 5) + 0.5 for n in range(20)]})
        assert prepare(priced, tokenizer).problem_type == "regression"
        assert caplog.text.count("a mean of 2e+03 and a standard deviation of 1.41e+03") == said


def test_numbers_that_have_names_are_no_doubtful_classes(tokenizer, caplog):
    names = [f"topic {number}" for number in range(30)]
    features = Features(text=Value("string"), label=ClassLabel(names=names))
    many = Dataset.from_list([{"text": "good", "label": number % 30} for number in range(60)], features=features)
    assert prepare(many, tokenizer).label_names == tuple(names)
    assert "holds whole numbers" not in caplog.text


def test_hidden_labels_of_a_regression_are_no_labels(tokenizer):
    scores = Dataset.from_list([{"text": "good", "label": 0.5 * number} for number in range(9)])
    hidden = scores.map(lambda row: {"label": -1.0})
    with pytest.raises(ValueError, match="must hold labels in the reported split, got -1 in all of its rows"):
        prepare(scores, tokenizer, held_out=hidden)


def test_numbers_of_several_columns_are_no_doubtful_classes(tokenizer, caplog):
    columns = {f"c{place}": [int(row % 8 == place) for row in range(20)] for place in range(8)}
    frame = Dataset.from_dict({"text": ["a film"] * 20, **columns})
    assert prepare(frame, tokenizer, label_column=list(columns)).problem_type == "multi_label_classification"
    assert "holds whole numbers" not in caplog.text


def test_f1_of_two_classes_is_said_to_be_of_which(frame, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    prepare(frame, tokenizer, metric="f1")
    assert "f1 is that of the label 'positive'" in caplog.text


def test_labels_of_a_file_that_look_like_numbers_are_the_names_of_another(frame):
    numbers, names = (Dataset.from_dict({"label": values}) for values in ([0, 1, 1], ["1", "0"]))
    assert labels.read_labels(numbers, names, "label")[1] == [1, 0]
    with pytest.raises(ValueError, match=r"got 1 that are only in the reported split \(other\)"):
        labels.read_labels(numbers, Dataset.from_dict({"label": ["0", "other"]}), "label")


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        (["a", None], ["a"], "got 1 without in the training split, in row 2; drop"),
        ([0, 1], [-1, -1], "The reported split must hold labels, got -1 in all of its rows, which is how GLUE hides"),
        ([0, 1], [0, -1], "got 1 of these in the reported split, in row 2; write the class -1 as a word, the numbers"),
        ([0, 1], [None, None], "The reported split must hold labels, got none; pass an `--eval-file` that has them"),
        ([-1, -1], [0, 1], "The training split must hold labels, got -1 in all of its rows, .* pass rows that have"),
        ([2.5, 2.5], [0.5, 1.5], "must hold numbers that differ, got 2.5 in all rows of the training split"),
        ([0.5, None, 1.5, None], [0.5], "got 2 without in the training split, the first in row 2; drop"),
        ([0.5, float("nan")], [0.5], "got 1 without"),
        (["a", "b", " ", ""], ["a"], "got 2 without in the training split, the first in row 3; drop"),
        (["a", "a"], ["a"], "at least two classes"),
        (["a", "b"], ["a", "c"], r"got 1 that are only in the reported split \(c\)"),
        ([0, 1], [], "reported split is empty"),
        ([0.5, float("inf")], [0.5], "got 1 without"),
        ([0.5, 1.5], ["a"], "must hold numbers in both splits, got 'a'"),
        ([{"a": 1}, {"a": 2}], [{"a": 1}], "all alike, got dict"),
    ],
)
def test_unusable_labels_are_refused(train, held_out, message):
    frames = [Dataset.from_dict({"label": values}) for values in (train, held_out)]
    with pytest.raises(ValueError, match=message):
        labels.read_labels(*frames, "label")


def test_numbers_are_names_before_they_are_places():
    frame = Dataset.from_dict({"label": [1, 2]})
    assert labels.read_labels(frame, frame, "label", ("1", "2", "3"))[0::2] == ([0, 1], ("1", "2", "3"))
    assert labels.read_labels(frame, frame, "label", ("bad", "fair", "good"))[0::2] == (
        [1, 2],
        ("bad", "fair", "good"),
    )


def test_names_that_differ_only_in_case_stay_apart():
    frame = Dataset.from_dict({"label": ["US", "us"]})
    assert labels.read_labels(frame, frame, "label", ("us", "US"))[0] == [1, 0]


def test_each_split_means_by_its_numbers_what_it_says():
    train = Dataset.from_dict({"label": [0, 1]}, features=Features(label=ClassLabel(names=["a", "b"])))
    other = Dataset.from_dict({"label": [0, 1]}, features=Features(label=ClassLabel(names=["b", "a"])))
    for held_out, expected in (
        (other, [1, 0]),
        (Dataset.from_dict({"label": ["b", "a"]}), [1, 0]),
        (Dataset.from_dict({"label": [0, 1]}), [0, 1]),
    ):
        assert labels.read_labels(train, held_out, "label")[:2] == ([0, 1], expected)


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([["sport", "art"], [], ["art"]], (), ([[1, 1], [0, 0], [1, 0]], ("art", "sport"))),
        ([["Sport"], ["ART"]], ("sport", "news", "art"), ([[1, 0, 0], [0, 0, 1]], ("sport", "news", "art"))),
        ([[3, 5], [], [5]], (), ([[1, 1], [0, 0], [0, 1]], ("3", "5"))),
        ([[0, 2], [2]], ("a", "b", "c"), ([[1, 0, 1], [0, 0, 1]], ("a", "b", "c"))),
        ([[0, 1], [0, 0]], (), ([[0, 1], [0, 0]], ("0", "1"))),
        ([[0.0, 1.0], [1.0, 1.0]], ("a", "b"), ([[0, 1], [1, 1]], ("a", "b"))),
        # Two of a model's three classes: which two, rows of 0 and 1 do not say.
        ([[False, True], [False, False]], ("a", "b", "c"), ([[0, 1], [0, 0]], ("0", "1"))),
    ],
)
def test_lists_are_several_labels(values, names, expected):
    frame = Dataset.from_dict({"label": values})
    read, again, found, kind = labels.read_labels(frame, frame, "label", names)
    assert (read, found) == expected
    assert again == read
    assert all(type(value) is float for row in read for value in row)
    assert kind == "multi_label_classification"


def test_lists_of_known_classes_have_their_names_and_order():
    kind = datasets.List(ClassLabel(names=["joy", "anger", "fear"]))
    frame = Dataset.from_dict({"label": [[0], [2, 0], []]}, features=Features(label=kind))
    read, _, names, _ = labels.read_labels(frame, frame, "label")
    assert read == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert names == ("joy", "anger", "fear")


def test_a_column_per_class_is_several_labels():
    frame = Dataset.from_dict({"toxic": [1, 0, 0], "threat": [1, 1, 0]})
    columns = ["toxic", "threat"]
    assert labels.read_labels(frame, frame, columns)[0::2] == ([[1, 1], [0, 1], [0, 0]], ("toxic", "threat"))
    assert labels.read_labels(frame, frame, columns, ("Threat", "Toxic"))[0] == [[1, 1], [1, 0], [0, 0]]
    # Some data sets on the Hub say what 0 and 1 mean.
    said = frame.cast(Features(dict.fromkeys(columns, ClassLabel(names=["false", "true"]))))
    assert labels.read_labels(said, said, columns) == labels.read_labels(frame, frame, columns)
    frame = frame.add_column("stars", [2, 0, 1])
    with pytest.raises(
        ValueError, match="'toxic', 'stars' must hold 2 values in every row of both splits, all of them"
    ):
        labels.read_labels(frame, frame, ["toxic", "stars"])


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ([[0, 1], [1, 1]], [[0, 1, 1]], "must hold 2 values in every row of both splits, all of them 0 or 1"),
        ([["a"], ["b"]], [["c"]], r"got 1 that are only in the reported split \(c\)"),
        ([["a"], ["b"]], ["a"], "a list in every row of both splits, got both"),
        ([["a"], None], [["a"]], "got 1 without in the training split"),
        ([["a"], []], [["a"]], r"at least two classes, got only \['a'\]"),
        ([[], []], [[]], r"at least two classes, got only \[\]"),
        ([[0.3, 0.7]], [[0.3, 0.7]], "names or whole numbers, or one float a row, all alike, got float"),
        ([[["a"]]], [[["a"]]], "got list, such as"),
    ],
)
def test_unusable_lists_of_labels_are_refused(train, held_out, message):
    frames = [Dataset.from_dict({"label": values}) for values in (train, held_out)]
    with pytest.raises(ValueError, match=message):
        labels.read_labels(*frames, "label")


def test_names_and_scores_that_look_like_whole_numbers_in_one_split_alone():
    named = [Dataset.from_dict({"label": values}) for values in (["1", "2", "x"], [2, 1])]
    assert labels.read_labels(*named, "label")[1] == [1, 0]
    scored = [Dataset.from_dict({"label": values}) for values in ([0.5, 2.0], [2, 1])]
    assert labels.read_labels(*scored, "label")[1] == [2.0, 1.0]


def test_floats_are_a_regression_and_whole_ones_are_pointed_out(caplog):
    for values, said in (([0.5, 1.0], False), ([0.0, 1.0], True)):
        caplog.clear()
        frame = Dataset.from_dict({"label": values})
        with caplog.at_level("INFO", "powerbert_hf"):
            assert labels.read_labels(frame, frame, "label")[3] == "regression"
        assert ("Written as whole numbers, they are classes" in caplog.text) is said


def test_truth_values_are_classes():
    frame = Dataset.from_dict({"label": [True, False]})
    assert labels.read_labels(frame, frame, "label")[0::2] == ([1, 0], ("False", "True"))
    assert labels.read_labels(frame, frame, "label", ("ham", "spam"))[0::2] == ([1, 0], ("ham", "spam"))


def test_a_model_is_measured_on_one_class_that_it_knows_but_not_trained_on_it():
    frame = Dataset.from_dict({"label": ["good", "good"]})
    assert labels.read_labels(frame, frame, "label", ("bad", "good"), measure_only=True)[1] == [1, 1]
    for names, measure_only in (((), True), (("ham", "spam"), True), (("bad", "good"), False)):
        with pytest.raises(ValueError, match="at least two classes"):
            labels.read_labels(frame, frame, "label", names, measure_only)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (None, "word", (None, "word")),
        (1, 2.5, (1.0, 2.5)),
        (7, "other", ("7", "other")),
        ("word", None, ("word", None)),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_csv_column_has_the_type_of_all_its_rows(tmp_path, first, last, expected):
    """`datasets` knows it by the first 10,000, and refuses later ones that do not fit."""
    path = tmp_path / "rows.csv"
    Dataset.from_dict({"text": ["a film"] * 10_500, "label": [first] * 10_500}).to_csv(path)
    with open(path, "a") as file:
        file.write(f"a film,{'' if last is None else last}\n")
    frame = texts.read_file(str(path))
    assert (frame[0]["label"], frame[10_500]["label"]) == expected
    # `datasets` leaves a file open that it could not read; not for a test that expects no warnings.
    gc.collect()


@pytest.mark.parametrize(
    ("first", "later"), [("mixed", ["True", "false"]), ("V58.6", ["250.00", "1e3", "inf"]), ("True", ["1", "0"])]
)
def test_words_of_csv_stand_as_they_are_in_all_rows(tmp_path, first, later):
    """`datasets` reads 10,000 at a time, and would write numbers and truth values in its own way."""
    path = tmp_path / "rows.csv"
    Dataset.from_dict({"text": ["a film"] * 10_003, "label": [first] * 10_000 + (later * 3)[:3]}).to_csv(path)
    assert texts.read_file(str(path))["label"][-3:] == (later * 3)[:3]
    # Of one kind they are what they were.
    path.write_text("number,truth,empty\n250.00,True,\n1,false,\n,,\n")
    frame = texts.read_file(str(path))
    assert frame[:2] == {"number": [250.0, 1.0], "truth": [True, False], "empty": [None, None]}


def test_a_json_column_has_the_type_of_all_its_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a film" + " " * 1000, "label": 1, "note": None}] * 11_000 + [
        {"text": "a film", "label": 2.5, "note": "word"}
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    frame = texts.read_file(str(path))
    assert (frame[0]["label"], frame[0]["note"]) == (1.0, None)
    assert (frame[11_000]["label"], frame[11_000]["note"]) == (2.5, "word")


def test_numbers_that_no_column_can_hold_are_words(tmp_path):
    (tmp_path / "rows.csv").write_text(f"id,text\n{2**128},good\n5,bad\n")
    assert read_file(str(tmp_path / "rows.csv"))["id"][:] == [str(2**128), "5"]


def test_words_for_nothing_are_words(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nNA,None\nnull,some\n")
    train, _ = data.load_splits(train_file=str(tmp_path / "rows.csv"), eval_file=str(tmp_path / "rows.csv"))
    assert train[:] == {"text": ["NA", "null"], "label": ["None", "some"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.csv", "text,label\ncaf\xe9,a\n".encode("latin-1")),
        ("empty.csv", b""),
        ("broken.jsonl", b'{"text": "a"\n{'),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be used: .*; repair or convert it"):
        data.load_splits(train_file=str(path), eval_file=str(path))


@pytest.mark.parametrize("field", ["max_train_samples", "max_eval_samples"])
def test_limits_of_nothing_are_refused(frame, tokenizer, field):
    with pytest.raises(ValueError, match=f"`{field}` must be at least 1, got 0"):
        prepare(frame, tokenizer, **{field: 0})


def test_a_tokenizer_truncates_to_what_the_model_takes(tokenizer, tmp_path):
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, Host("bert").make_stock().config)
    assert len(loaded("good " * 200, truncation=True)["input_ids"]) == 64


def test_inputs_are_cut_at_what_the_model_takes(frame, tokenizer):
    tokenizer.model_max_length = int(1e30)
    long = Dataset.from_dict({"text": ["good " * 200, "bad"], "label": [0, 1]})
    assert prepare(long, tokenizer).retention_length == 64


def test_columns_are_found_or_asked_for(frame):
    assert texts.choose_columns(frame, None, None, None) == (["text"], ["label"])
    assert texts.choose_columns(frame.rename_column("text", "sentence"), None, None, tasks.TASKS["sst2"]) == (
        ["sentence"],
        ["label"],
    )
    with pytest.raises(ValueError, match="no column 'sentence1'; the data has text, label"):
        texts.choose_columns(frame, None, None, tasks.TASKS["mrpc"])
    many = frame.add_column("a", ["x"] * 64).add_column("b", ["x"] * 64)
    for several in (many, many.remove_columns("b")):
        with pytest.raises(ValueError, match="Name one or two `--text-columns`; the data has text, label, a"):
            texts.choose_columns(several, None, None, None)
    with pytest.raises(ValueError, match="one or two texts"):
        texts.choose_columns(many, ["text", "a", "b"], None, None)


def test_missing_texts_and_files_are_refused(frame, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Column 'text' must hold texts, got 1 rows without"):
        prepare(Dataset.from_dict({"text": ["good", None], "label": [0, 1]}), tokenizer)
    with pytest.raises(ValueError, match="There is no file"):
        data.load_splits(train_file=str(tmp_path / "none.csv"), eval_file="none.csv")
    (tmp_path / "rows.xlsx").touch()
    with pytest.raises(ValueError, match="must end in arrow, csv"):
        data.load_splits(train_file=str(tmp_path / "rows.xlsx"), eval_file="none.csv")
    with pytest.raises(ValueError, match="either `--dataset` or `--train-file`"):
        data.load_splits()


def test_pairs_need_a_model_that_tells_one_text_from_the_other(frame, tokenizer):
    config = Host("bert").make_stock(type_vocab_size=1).config
    frame = frame.add_column("more", frame["text"])
    with pytest.raises(ValueError, match="must have a `type_vocab_size` of 2, got 1"):
        data.prepare_data(frame, frame, tokenizer, config, text_columns=["text", "more"])


def test_pairs_whose_tokenizer_does_not_tell_one_text_from_the_other_are_pointed_out(frame, tokenizer, caplog):
    frame = frame.add_column("more", frame["text"])
    prepare(frame, tokenizer, text_columns=["text", "more"])
    assert "token_type_ids" not in caplog.text
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    prepare(frame, tokenizer, text_columns=["text"])
    assert "token_type_ids" not in caplog.text
    prepare(frame, tokenizer, text_columns=["text", "more"])
    assert "add `token_type_ids` to `model_input_names`" in caplog.text


def test_a_length_that_only_the_tokenizer_does_not_take_is_said_so(frame, tokenizer):
    tokenizer.model_max_length = 16
    with pytest.raises(ValueError, match="and 16, what the model's tokenizer takes, got 32"):
        prepare(frame, tokenizer, max_length=32)


def test_numbers_of_a_known_task_mean_the_same_whatever_order_a_model_has(tokenizer):
    task = tasks.TASKS["mnli"]
    rows = Dataset.from_dict({"premise": ["good film"] * 6, "hypothesis": ["bad"] * 6, "label": [0, 1, 2] * 2})
    names = ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]
    for fields in ({"measure_only": True}, {"fine_tuned": True}):
        made = prepare(rows, tokenizer, names=names, task=task, **fields)
        assert made.label_names == tuple(names)
        found = [made.label_names[label].lower() for label in made.eval["labels"]]
        assert sorted(found) == sorted(2 * list(task.label_names))
        by_place = {task.label_names[0]: 0, task.label_names[1]: 1, task.label_names[2]: 2}
        assert [by_place[name] for name in found] == [0, 1, 2] * 2


def test_labels_that_are_objects_are_refused_in_either_split(frame, tokenizer):
    held_out = Dataset.from_dict({"text": ["good film"] * 2, "label": [{"a": 1}] * 2})
    with pytest.raises(ValueError, match=r"only in the reported split \(\{'a': 1\}\)"):
        prepare(frame, tokenizer, held_out=held_out)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("as_folder", [False, True])
def test_numbers_that_begin_with_0_are_names(tokenizer, tmp_path, as_folder, streaming):
    rows = ["good,007", "bad,012", "good film,007", "bad film,100"]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "validation.csv").write_text("\n".join(["text,label", "good,100", "a,007"]))
    files = {"train_file": str(tmp_path / "train.csv"), "eval_file": str(tmp_path / "validation.csv")}
    splits = data.load_splits(**({"dataset": str(tmp_path)} if as_folder else files), streaming=streaming)
    splits = [Dataset.from_list(list(rows)) if isinstance(rows, IterableDataset) else rows for rows in splits]
    found = labels.read_labels(*splits, "label")
    assert found[:3] == ([0, 1, 0, 2], [2, 0], ("007", "012", "100"))


def test_a_folder_whose_name_is_a_pattern_is_refused(frame, tmp_path):
    (tmp_path / "rows [1]").mkdir()
    frame.to_csv(tmp_path / "rows [1]" / "train.csv")
    with pytest.raises(ValueError, match=r"takes \*, \? and \[ in the path of a folder for a pattern, got "):
        data.load_splits(str(tmp_path / "rows [1]"))


@pytest.mark.parametrize("values", [[0.5, 12.5], [True, False], ["a", "b"]])
def test_lengths_are_those_of_the_texts_whatever_else_has_that_name(frame, tokenizer, values):
    wanted = prepare(frame, tokenizer)
    found = prepare(frame.add_column("length", values * 32), tokenizer, text_columns=["text"])
    for split in ("train", "tune", "eval"):
        lengths, same = getattr(found, split)["length"][:], getattr(wanted, split)["length"][:]
        assert lengths == same
        assert {type(length) for length in lengths} == {int}


def test_sentence_pairs_are_one_input(frame, tokenizer):
    pairs = frame.add_column("second", ["the film"] * 64)
    prepared = prepare(pairs, tokenizer, text_columns=["text", "second"])
    assert max(prepared.train[0]["token_type_ids"]) == 1
    assert prepared.train[0]["input_ids"].count(tokenizer.sep_token_id) == 2


def test_metrics_by_hand():
    rows = [[1, 0], [1, 0], [0, 0]], [[1, 0], [1, 1], [0, 1]]
    # The first label is always right, the second always missed.
    several = tasks.MultiLabelMetric().compute(predictions=rows[0], references=rows[1])
    assert several == pytest.approx({"f1_micro": 2 * 2 / (2 * 2 + 2), "f1_macro": 1 / 2, "subset_accuracy": 1 / 3})
    found = tasks.ClassificationMetric().compute(predictions=[1, 1, 0, 0, 1], references=[1, 0, 0, 1, 1])
    assert found == pytest.approx({"accuracy": 0.6, "f1": 2 / 3, "matthews_correlation": 1 / 6})
    # Macro average over three labels: 1, 0 and 2/3.
    many = tasks.ClassificationMetric().compute(predictions=[0, 2, 2], references=[0, 1, 2])
    assert many["f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    few = {"predictions": [0, 1], "references": [0, 0]}
    assert tasks.ClassificationMetric().compute(**few)["f1"] == 0.0
    assert tasks.ClassificationMetric().compute(**few, num_labels=3)["f1"] == pytest.approx((2 / 3 + 0) / 2)
    alone = tasks.ClassificationMetric().compute(predictions=[1, 1], references=[1, 1])
    assert alone == {"accuracy": 1.0, "f1": 1.0, "matthews_correlation": 0.0}
    monotone = tasks.RegressionMetric().compute(predictions=[0.0, 1.0, 8.0], references=[0.0, 1.0, 2.0])
    assert monotone["spearmanr"] == pytest.approx(1.0)
    assert monotone["pearson"] == pytest.approx(8 / (38 * 2) ** 0.5)
    assert tasks.RegressionMetric().compute(predictions=[1.0, 1.0], references=[0.0, 1.0])["spearmanr"] == 0.0


def test_known_tasks_are_glues_nine_and_imdb():
    assert set(tasks.TASKS) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "imdb"}
    for name, task in tasks.TASKS.items():
        kind = "classification" if task.label_names else "regression"
        assert task.metric in next(names for key, names in tasks.METRICS.items() if kind in key), name


def test_a_tokenizer_that_needs_sentencepiece_says_so(tmp_path, monkeypatch):
    Host("albert").make_stock().save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<pad>\x15\x00\x00\x00\x00\x18\x03")
    monkeypatch.setattr("powerbert_hf.checkpoint.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"it has no `tokenizer.json`; copy that, .* `pip install sentencepiece`\."):
        load_tokenizer(str(tmp_path), load_config(str(tmp_path)))


def test_a_label_that_is_missing_is_missing_in_the_split_that_was_passed(tokenizer):
    task = tasks.TASKS["sst2"]
    rows = Dataset.from_dict({"sentence": ["good film", "bad film"], "label": [1, None]})
    with pytest.raises(ValueError, match="got 1 without in the reported split"):
        prepare(rows, tokenizer, names=list(task.label_names), task=task, measure_only=True)


def test_copies_of_what_is_trained_on_are_said_to_tell_little(tokenizer, caplog):
    texts = [f"{first} {second}" for first in WORDS[:4] for second in WORDS[:10]]
    frame = Dataset.from_dict({"text": texts, "label": [n % 2 for n in range(len(texts))]})
    prepare(frame, tokenizer, held_out=Dataset.from_dict({"text": ["film", "a"], "label": [0, 1]}))
    assert "trained on, too" not in caplog.text
    prepare(concatenate_datasets([frame] * 3), tokenizer, held_out=frame)
    assert "12 of the 12 texts to choose by are trained on, too" in caplog.text
    assert "40 of the 40 texts to report on are trained on, too" in caplog.text


def test_a_file_of_the_training_split_is_not_reported_on(tmp_path):
    for name in ("mine", "yours"):
        (tmp_path / f"{name}.csv").write_text("text,label\ngood,1\nbad,0\n")
    with pytest.raises(ValueError, match=r"has no split to report on, got \['train'\]; name its files after their"):
        data.load_splits(str(tmp_path))
    with pytest.raises(ValueError, match=r"one of the 2 files that make up the split `train` of .*; name its files"):
        data.load_splits(str(tmp_path), eval_file=str(tmp_path / "yours.csv"))
    (tmp_path / "mine.csv").rename(tmp_path / "train.csv")
    (tmp_path / "yours.csv").rename(tmp_path / "test.csv")
    train, held_out = data.load_splits(str(tmp_path), eval_file=str(tmp_path / "test.csv"))
    assert (len(train), len(held_out)) == (2, 2)


@pytest.mark.parametrize("table", [{"text": {"0": "good"}, "label": {"0": 1}}, {"data": [{"text": "good"}]}])
def test_json_by_columns_is_told_how_to_be_written(tmp_path, table):
    (tmp_path / "rows.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r'rows.json must hold an object for each row.*orient="records", lines=True'):
        data.load_splits(train_file=str(tmp_path / "rows.json"), eval_file=str(tmp_path / "rows.json"))


def test_of_many_columns_the_first_are_said():
    names = [str(place) for place in range(50)]
    assert join_names(names) == f"{', '.join(names[:30])}, and 20 more"
