"""Texts in, predictions out: those of the model asked one by one, in the order of the input, window by window."""

import csv
import gc
import json
import logging

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import WORDS, Host
from powerbert_hf import cli
from powerbert_hf import predict as predict_module
from powerbert_hf.predict import predict, predict_file
from test_bad_input import content, refused

HARD = {"retention_config": [0.8, 0.5, 0.3], "retention_unit": "fraction"}
NAMES = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
HEADS = {
    "classes": NAMES,
    "several labels": {**NAMES, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
}


# `datasets` closes a file only when it has read to its end.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _collect():
    """Here, not in a test that expects no warnings."""
    yield
    gc.collect()


@torch.no_grad()
def one_by_one(model, tokenizer, inputs):
    """(N, labels), without batches or windows."""
    encoded = [tokenizer(*([one] if isinstance(one, str) else one), return_tensors="pt") for one in inputs]
    return torch.cat([model(**inputs).logits for inputs in encoded])


def texts_of(lengths):
    return [" ".join(WORDS[(length + place) % len(WORDS)] for place in range(length)) for length in lengths]


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch):
    """A tiny classifier, and the current folder."""
    monkeypatch.chdir(tmp_path)
    Host("bert").make(**HARD, **NAMES).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return tmp_path


def ask(*options):
    """Run the command; the rows that it wrote."""
    assert cli.main(["predict", "model", *options]) == 0
    (path,) = [option.partition("=")[2] for option in options if option.startswith("--output=")]
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)) if path.endswith("csv") else [json.loads(line) for line in file]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    window=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    name=st.sampled_from(["bert", "albert"]),
)
def test_answers_come_in_order_and_are_those_of_one_input_at_a_time(tokenizer, lengths, window, batch_size, name):
    model, texts = Host(name).make(**HARD, **NAMES), texts_of(lengths)
    answers = list(predict(model, tokenizer, iter(texts), batch_size=batch_size, window=window))
    assert len(answers) == len(texts)
    if texts:
        scores, numbers = one_by_one(model, tokenizer, texts).softmax(1).max(1)
        assert [answer["label"] for answer in answers] == [NAMES["id2label"][number] for number in numbers.tolist()]
        assert [answer["score"] for answer in answers] == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
@pytest.mark.parametrize("head", HEADS)
def test_heads_of_every_kind_and_pairs(host, tokenizer, head, stock):
    model = host.make_stock(**HEADS[head]) if stock else host.make(**HARD, **HEADS[head])
    pairs = list(zip(texts_of([3, 14, 1, 9]), texts_of([7, 2, 20, 5]), strict=True))
    wanted = one_by_one(model, tokenizer, pairs)
    found = list(predict(model, tokenizer, pairs, batch_size=3, window=3))
    if head == "regression":
        assert [row["value"] for row in found] == pytest.approx(wanted.flatten().tolist(), abs=1e-5)
    elif head == "classes":
        scores, numbers = wanted.softmax(1).max(1)
        assert [row["score"] for row in found] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [row["label"] for row in found] == [NAMES["id2label"][number] for number in numbers.tolist()]
    else:
        assert {len(row["labels"]) for row in found} != {3}
        for row, scores in zip(found, wanted.sigmoid().tolist(), strict=True):
            above = {name: score for name, score in zip(NAMES["label2id"], scores, strict=True) if score > 0.5}
            assert dict(zip(row["labels"], row["scores"], strict=True)) == pytest.approx(above, abs=1e-5)


def test_a_generator_is_read_window_by_window(tokenizer):
    read = []

    def texts():
        for number in range(10):
            read.append(number)
            yield "good"

    answers = predict(Host("bert").make(**HARD), tokenizer, texts(), window=4)
    assert read == []
    for asked, wanted in ((1, 4), (3, 4), (1, 8), (4, 10), (1, 10)):
        for _ in range(asked):
            next(answers)
        assert len(read) == wanted


def test_what_is_too_long_is_cut_and_where_can_be_said(host, tokenizer, caplog):
    caplog.set_level(logging.INFO, "powerbert_hf")
    model, (text, short) = host.make(**HARD, **NAMES), texts_of([500, 3])
    list(predict(model, tokenizer, [short, text, short, text], window=1))
    assert caplog.messages == ["2 of 4 inputs fill or exceed 64 word-pieces and are cut there"]
    # What just fits is not, where longer ones are put aside.
    caplog.clear()
    (fits,) = texts_of([62])
    assert ["reason" in row for row in predict(model, tokenizer, [fits, text], reject=True)] == [False, True]
    assert not caplog.messages
    for limit in (None, 16):
        wanted = tokenizer(text, truncation=True, max_length=limit or 64, return_tensors="pt")
        with torch.no_grad():
            score = model(**wanted).logits.softmax(1).max().item()
        (found,) = predict(model, tokenizer, [text], max_length=limit)
        assert found["score"] == pytest.approx(score, abs=1e-5)


def test_one_text_is_not_taken_for_its_letters(host, tokenizer):
    with pytest.raises(ValueError, match="`texts` must be several, got one: 'good film'; pass a list"):
        next(predict(host.make(**HARD, **NAMES), tokenizer, "good film"))


def test_several_numbers_are_no_classes(host, tokenizer):
    model = host.make(**HARD, num_labels=3, problem_type="regression")
    (found,) = predict(model, tokenizer, ["good film"])
    with torch.no_grad():
        wanted = model(**tokenizer("good film", return_tensors="pt")).logits[0].tolist()
    assert found == {"values": pytest.approx(wanted, abs=1e-5)}


def test_bfloat16_answers_alike_and_the_model_is_put_into_evaluation_mode(host, tokenizer):
    model, texts = host.make(**HARD, **NAMES).train(), texts_of([3, 30, 12])
    exact, half = (list(predict(model, tokenizer, texts, bf16=bf16)) for bf16 in (False, True))
    assert not model.training
    assert not torch.is_autocast_enabled("cpu")
    assert exact != half
    assert [row["score"] for row in half] == pytest.approx([row["score"] for row in exact], abs=0.1)


@pytest.mark.parametrize("ending", ["txt", "csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("answers", ["csv", "jsonl"])
def test_files_of_every_kind(folder, tokenizer, ending, answers):
    texts = ["a film, good", "", "bad", "123", "None", *texts_of([20, 3])]
    if ending == "txt":
        (folder / "rows.txt").write_text("".join(f"{text}\n" for text in texts))
    else:
        # An empty field is a missing one there.
        texts = [text or "the" for text in texts] if ending in ("csv", "tsv") else texts
        made = Dataset.from_dict({"id": range(len(texts)), "text": texts})
        options = {"sep": "\t"} if ending == "tsv" else {}
        write = {"csv": made.to_csv, "tsv": made.to_csv, "parquet": made.to_parquet}.get(ending, made.to_json)
        write(f"rows.{ending}", **options)
    keep = [] if ending == "txt" else ["--keep-columns=id"]
    found = ask(f"--input=rows.{ending}", f"--output=out.{answers}", "--window=3", *keep)
    assert sorted(path.name for path in folder.iterdir()) == ["model", f"out.{answers}", f"rows.{ending}"]
    scores, numbers = one_by_one(Host("bert").make(**HARD, **NAMES), tokenizer, texts).softmax(1).max(1)
    assert [float(row["score"]) for row in found] == pytest.approx(scores.tolist(), abs=1e-5)
    assert [row["label"] for row in found] == [NAMES["id2label"][number] for number in numbers.tolist()]
    if keep:
        assert [list(row) for row in found] == [["id", "label", "score"]] * len(texts)
        assert [int(row["id"]) for row in found] == list(range(len(texts)))


def test_a_csv_file_whose_parts_hold_words_or_numbers_only(folder):
    """Types are guessed part by part, of 10,000 rows, and a text may look like a number."""
    with open("rows.csv", "w") as file:
        file.write("id,text\n" + "1,good\n" * 10_000 + "2,7\n" * 3)
    found = ask("--input=rows.csv", "--output=out.jsonl", "--text-columns=text", "--batch-size=512")
    assert len(found) == 10_003
    assert found[0] != found[-1]


def test_pairs_and_several_labels_in_a_file(folder, tokenizer):
    model = Host("bert").make(**HARD, **HEADS["several labels"])
    model.save_pretrained("model")
    pairs = list(zip(texts_of([3, 14]), texts_of([7, 2]), strict=True))
    Dataset.from_list([{"one": one, "two": two} for one, two in pairs]).to_csv("rows.csv")
    wanted = list(predict(model, tokenizer, pairs))
    columns = ["--text-columns", "one", "two"]
    for output in ("out.jsonl", "out.csv"):
        found = ask("--input=rows.csv", f"--output={output}", *columns)
        read = (lambda value: value) if output.endswith("l") else json.loads
        assert [read(row["labels"]) for row in found] == [row["labels"] for row in wanted]
        for row, answer in zip(found, wanted, strict=True):
            assert read(row["scores"]) == pytest.approx(answer["scores"], abs=1e-5)


def test_columns_that_the_answer_does_not_have_can_be_kept(folder):
    """What was meant beside what was found."""
    Host("bert").make(**HARD, **HEADS["regression"]).save_pretrained("model")
    Dataset.from_list([{"text": "good", "label": 0.5, "score": 3}]).to_csv("rows.csv")
    found = ask("--input=rows.csv", "--output=out.csv", "--keep-columns", "label", "score")
    assert [list(row) for row in found] == [["label", "score", "value"]]
    assert (found[0]["label"], found[0]["score"]) == ("0.5", "3")


def test_an_output_is_replaced_only_on_request(folder, capsys):
    (folder / "rows.txt").write_text("good\n")
    (folder / "out.csv").write_text("mine")
    options = ["model", "--input=rows.txt", "--output=out.csv"]
    assert "out.csv is there already" in refused(capsys, folder, options, "predict")
    assert len(ask("--input=rows.txt", "--output=out.csv", "--overwrite")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "nowhere.csv"}, "There is no file nowhere.csv"),
        ({"input": "model"}, "Several files need a folder for the output, got out.csv; leave out its ending"),
        ({"input": "rows.xls"}, "Files must end in arrow, csv, json, jsonl, parquet, tsv, txt, got rows.xls"),
        ({"input": "empty.csv"}, "empty.csv must hold rows, got none"),
        ({"input": "header.csv"}, "header.csv must hold rows, got none"),
        ({"input": "empty.txt"}, "empty.txt must hold rows, got none"),
        ({"input": "empty.jsonl"}, "empty.jsonl must hold rows, got none"),
        ({"input": "broken.jsonl"}, "broken.jsonl cannot be used: "),
        ({"input": "latin.csv"}, "latin.csv cannot be used: 'utf-8' codec"),
        ({"input": "gap.csv"}, "Row 3 must hold a text, got None; fill or drop it, or"),
        ({"input": "gap.csv", "window": 1}, "Row 3 must hold a text, got None"),
        ({"input": "number.jsonl"}, "Row 2 must hold a text, got 5"),
        ({"input": "pairs.csv"}, "Name one or two `--text-columns`; the data has a, b"),
        ({"input": "pairs.csv", "text_columns": "a,b"}, "Row 2 must hold two texts, got ['good', None]"),
        ({"input": "pairs.csv", "text_columns": "a,b,c"}, "one or two texts, got `--text-columns` a b c"),
        ({"text_columns": "nothing"}, "There is no column 'nothing'; the data has text, score"),
        ({"keep_columns": "nothing"}, "There is no column 'nothing'; the data has text, score"),
        ({"keep_columns": "score"}, "must leave room for the answer, got score"),
        ({"output": "rows.csv", "overwrite": "true"}, "each need a file of their own, got rows.csv, rows.csv; choose"),
        ({"rejected": "out.csv"}, "each need a file of their own, got rows.csv, out.csv and out.csv; choose"),
        ({"output": "out.txt"}, "The output must end in .csv or .jsonl, or be a folder, got out.txt"),
        ({"output": "nowhere/out.csv"}, "There is no folder nowhere for the output"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"window": -1}, "`window` must be at least 1, got -1"),
        ({"window": "many"}, "invalid int value: 'many'"),
        ({"max_length": 65}, "`max_length` must lie between 3, one word-piece a text, and 64"),
        ({"model": "nowhere"}, "The configuration of nowhere cannot be used"),
        ({"model": "headless"}, "must have a trained classification head, got none in headless"),
        ({"input": None}, "the following arguments are required: --input"),
        ({"outputs": "out.csv"}, "There is no option --outputs; did you mean --output?"),
    ],
)
def test_input_that_cannot_be_used(folder, tokenizer, capsys, changes, message):
    Host("bert").make_stock("stock_base").save_pretrained("headless")
    tokenizer.save_pretrained("headless")
    files = {
        "rows.csv": "text,score\ngood,1\n",
        "rows.xls": "",
        "empty.csv": "",
        "header.csv": "text\n",
        "empty.txt": "",
        "empty.jsonl": "",
        "broken.jsonl": '{"text": ',
        "gap.csv": "text,score\ngood,1\nbad,2\n,3\n",
        "number.jsonl": '{"text": "good"}\n{"text": 5}\n',
        "pairs.csv": "a,b\ngood,bad\ngood,\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "latin.csv").write_bytes("text\nétrange\n".encode("latin-1"))
    given = {"model": "model", "input": "rows.csv", "output": "out.csv", **changes}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    assert message in refused(capsys, folder, options, "predict")


def test_a_row_without_a_text_is_found_before_the_first_is_answered(folder, monkeypatch):
    monkeypatch.setattr(predict_module, "logits_of", lambda *args: pytest.fail("answered one"))
    (folder / "rows.jsonl").write_text('{"text": "good"}\n' * 5 + '{"text": null}\n')
    (folder / "out.csv").write_text("mine")
    before = content(folder)
    with pytest.raises(ValueError, match="Row 6 must hold a text"):
        predict_file("model", "rows.jsonl", "out.csv", window=2, overwrite=True)
    assert content(folder) == before


def test_what_cannot_be_read_is_found_before_the_first_row_is_answered(folder, monkeypatch):
    monkeypatch.setattr(predict_module, "logits_of", lambda *args: pytest.fail("answered one"))
    (folder / "rows.jsonl").write_text('{"text": "good"}\n' * 200 + '{"text": \n')
    before = content(folder)
    with pytest.raises(ValueError, match="line 201"):
        predict_file("model", "rows.jsonl", "out.csv", window=50, rejected="aside.csv")
    assert content(folder) == before


def test_what_fails_in_the_middle_leaves_nothing(folder, monkeypatch):
    """The first windows were answered and written by then."""
    (folder / "rows.jsonl").write_text('{"text": "good"}\n' * 6)
    (folder / "out.csv").write_text("mine")
    before = content(folder)
    answered = predict_module.logits_of
    windows = iter([answered, answered])
    monkeypatch.setattr(predict_module, "logits_of", lambda *args: next(windows)(*args))
    with pytest.raises(RuntimeError, match="StopIteration"):
        predict_file("model", "rows.jsonl", "out.csv", window=2, overwrite=True)
    assert content(folder) == before


def test_memory_does_not_grow_with_the_file(folder, monkeypatch):
    """Of a file that is read once, no more rows are held than a window has."""
    held, most = 0, 0

    class Counted(str):
        def __init__(self, *_):
            nonlocal held, most
            held += 1
            most = max(most, held)

        def __del__(self):
            nonlocal held
            held -= 1

    (folder / "rows.txt").write_text("good\n")
    monkeypatch.setattr(
        "powerbert_hf.predict.read_rows", lambda path: ({"text": Counted("good film")} for _ in range(2000))
    )
    assert predict_file("model", "rows.txt", "out.csv", window=50, batch_size=50).rows == 2000
    # Those that tell which columns there are, or those of a window.
    assert most <= 100 + 50 + 5
