"""Folders of files: each is answered once and whole, a second run does what is missing, dirty rows are put aside."""

import gc
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Host
from powerbert_hf import cli
from powerbert_hf.files import InUse, whole_file
from powerbert_hf.predict import predict
from test_bad_input import content
from test_predict import HARD, NAMES, texts_of

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
REASONS = {"missing": None, "empty": " ", "not text": 5, "over-long": "good " * 80}


@pytest.fixture(autouse=True)
def _collect():
    """Here, not in a test that expects no warnings."""
    yield
    gc.collect()


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch):
    """A tiny classifier and five files of rows, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Host("bert").make(**HARD, **NAMES).save_pretrained("model")
    tokenizer.save_pretrained("model")
    (tmp_path / "rows").mkdir()
    for number in range(5):
        rows = [{"id": 10 * number + row, "text": text} for row, text in enumerate(texts_of([3, 14, 1, 30, 7, 2]))]
        write(tmp_path / "rows" / f"part-{number}.jsonl", rows)
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(*options, inputs=("rows",), status=0):
    arguments = ["predict", "model", "--input", *inputs, "--output=answers", "--keep-columns=id", *options]
    assert cli.main(arguments) == status


def test_a_folder_of_files_is_answered_in_a_folder(folder, capsys):
    (folder / "rows" / "notes.md").write_text("not a row")
    ask()
    assert sorted(path.name for path in (folder / "answers").iterdir()) == [
        ".sources",
        "command.json",
        *(f"part-{number}.jsonl" for number in range(5)),
    ]
    for number in range(5):
        name = f"part-{number}.jsonl"
        found = read(folder / "answers" / name)
        assert [row["id"] for row in found] == [10 * number + row for row in range(6)]
        assert cli.main(["predict", "model", f"--input=rows/{name}", "--output=one.jsonl", "--overwrite"]) == 0
        assert [row["score"] for row in found] == [row["score"] for row in read(folder / "one.jsonl")]
    assert "rows/part-4.jsonl: 6 rows answered (5 of 5)" in capsys.readouterr().out


def test_files_are_named_by_patterns_and_by_name_and_csv_is_answered_in_csv(folder):
    (folder / "more.csv").write_text("id,text\n100,good\n")
    ask(inputs=["rows/*-[01].jsonl", "more.csv"])
    names = [".sources", "command.json", "more.csv", "part-0.jsonl", "part-1.jsonl"]
    assert sorted(path.name for path in (folder / "answers").iterdir()) == names
    assert (folder / "answers" / "more.csv").read_text().startswith("id,label,score\n100,")


@pytest.mark.parametrize("pattern", ["rows/*", "rows/**/*.jsonl"])
def test_a_pattern_may_cover_the_answers(folder, pattern):
    command = ["predict", "model", f"--input={pattern}", "--output=rows/answers", "--keep-columns=id"]
    assert cli.main(command) == 0
    (folder / "rows" / "answers" / "part-2.jsonl").unlink()
    assert cli.main(command) == 0
    assert [row["id"] for row in read(folder / "rows" / "answers" / "part-2.jsonl")] == list(range(20, 26))


def test_a_second_run_does_what_is_missing(folder, capsys):
    ask()
    wanted = content(folder / "answers")
    times = {path: path.stat().st_mtime_ns for path in wanted}
    (folder / "answers" / "part-3.jsonl").unlink()
    # A killed process leaves such a file.
    (folder / "answers" / "part-3.jsonl.partial").write_text('{"id": 30, "la')
    ask()
    assert content(folder / "answers") == wanted
    again = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert sorted(again) == ["part-3.jsonl", "part-3.jsonl.json"]
    assert "4 of 5 files are answered already" in capsys.readouterr().out
    write(folder / "rows" / "part-5.jsonl", [{"id": 50, "text": "good"}])
    ask()
    assert len(content(folder / "answers")) == len(wanted) + 2


def test_answers_to_other_rows_under_the_same_name_are_not_taken_for_these(folder, capsys):
    ask()
    before = content(folder / "answers")
    (folder / "tuesday").mkdir()
    write(folder / "tuesday" / "part-1.jsonl", [{"id": 0, "text": "good"}])
    ask(inputs=["tuesday"], status=2)
    assert f"got those to {folder / 'rows' / 'part-1.jsonl'} as it was then; choose" in capsys.readouterr().err
    # The same rows elsewhere are the same.
    (folder / "rows").rename(folder / "moved")
    ask(inputs=["moved"])
    assert content(folder / "answers") == before
    write(folder / "moved" / "part-4.jsonl", [{"id": 0, "text": "changed"}])
    ask(inputs=["moved"], status=2)
    assert content(folder / "answers") == before


@pytest.mark.parametrize("name", ["part-2.jsonl", "empty.csv"])
def test_a_file_without_rows_has_answers_without_rows(folder, name):
    (folder / "rows" / name).write_text("text\n" if name.endswith("csv") else "")
    ask()
    # A table has its columns.
    assert (folder / "answers" / name).read_text() == ("id,label,score\n" if name.endswith("csv") else "")
    ask()
    assert len(content(folder / "answers")) == 2 * (5 + name.endswith("csv")) + 1


def test_the_columns_of_texts_are_the_same_in_all_files(folder, capsys):
    """Whatever the first rows of each hold."""
    for number in range(5):
        path = folder / "rows" / f"part-{number}.jsonl"
        names = ["title", "text"] if number % 2 else ["text", "title"]
        write(path, [{"id": 1, names[0]: "good", names[1]: None}] * 120 + [{"id": 2, names[0]: None, names[1]: "bad"}])
    ask(status=2)
    assert "Name one or two `--text-columns`; the data has id, text, title" in capsys.readouterr().err
    write(folder / "rows" / "part-0.jsonl", [{"id": 1, "text": "good"}])
    ask(status=0)
    assert len(read(folder / "answers" / "part-1.jsonl")) == 1
    assert len(read(folder / "answers" / "rejected" / "part-1.jsonl")) == 120


def test_a_row_that_does_not_fit_is_put_aside(folder):
    (folder / "more.csv").write_text("id,text\n1,good\n2,bad, but long\n3,bad\n")
    ask(inputs=["more.csv"])
    assert [line.split(",")[0] for line in (folder / "answers" / "more.csv").read_text().splitlines()] == [
        "id",
        "1",
        "3",
    ]
    aside = (folder / "answers" / "rejected" / "more.csv").read_text().splitlines()[1]
    assert aside.startswith("2,not text,\"['2', 'bad', ' but long']\"")


def test_several_processes_need_a_folder(folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    ask("--output=one.jsonl", inputs=["rows/part-0.jsonl"], status=2)
    assert "Several processes need a folder for the output, got one.jsonl; leave out" in capsys.readouterr().err


@pytest.mark.parametrize("found", ["{}", "[1", "5", '{"arguments": {}, "typed": 5}'])
def test_a_folder_with_another_command_file_is_something_else(folder, capsys, found):
    (folder / "answers").mkdir()
    (folder / "answers" / "command.json").write_text(found)
    (folder / "answers" / "mine").touch()
    ask(status=2)
    assert "answers holds something else, or its command.json cannot be read" in capsys.readouterr().err


def test_rows_that_cannot_be_answered_are_put_aside_with_their_reason(folder):
    dirty = [{"id": place, "text": text} for place, text in enumerate(REASONS.values())]
    rows = [{"id": 90, "text": "good"}, *dirty, {"id": 91, "text": "bad"}, {"id": 92}]
    write(folder / "rows" / "part-2.jsonl", rows)
    ask()
    assert [row["id"] for row in read(folder / "answers" / "part-2.jsonl")] == [90, 91]
    found = read(folder / "answers" / "rejected" / "part-2.jsonl")
    assert [row["row"] for row in found] == [2, 3, 4, 5, 7]
    assert [row["id"] for row in found] == [0, 1, 2, 3, 92]
    assert [row["reason"] for row in found] == [*REASONS, "missing"]
    assert found[3]["found"] == "82 word-pieces, 64 fit"
    assert [path.name for path in (folder / "answers" / "rejected").iterdir()] == ["part-2.jsonl"]


def test_half_of_a_surrogate_pair_is_no_text_and_is_repeated_as_json_spells_it(folder):
    half = "bad \ud83d"
    write(folder / "rows" / "part-2.jsonl", [{"id": half, "text": "good"}, {"id": 1, "text": half}])
    ask()
    assert len(list((folder / "answers").glob("part-*"))) == 5
    (row,) = read(folder / "answers" / "part-2.jsonl")
    assert row["id"] == half
    (row,) = read(folder / "answers" / "rejected" / "part-2.jsonl")
    assert (row["row"], row["reason"]) == (2, "not text")


@pytest.mark.parametrize(
    ("option", "message"),
    [("--max-length=600", "`max_length` must lie between"), ("--batch-size=0", "`batch_size` must be at least 1")],
)
def test_a_number_that_is_mistyped_is_said_once_and_claims_no_folder(folder, capsys, option, message):
    ask(option, status=2)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert message in sentence
    ask()


def test_where_to_cut_can_be_said(folder):
    write(folder / "rows" / "part-2.jsonl", [{"id": 1, "text": REASONS["over-long"]}])
    ask("--max-length=32")
    assert len(read(folder / "answers" / "part-2.jsonl")) == 1
    assert not (folder / "answers" / "rejected").exists()


def test_of_a_single_file_too(folder, capsys):
    write(folder / "rows.jsonl", [{"text": None}, {"text": "good"}, {"text": ""}])
    options = ["predict", "model", "--input=rows.jsonl", "--output=out.csv"]
    assert cli.main(options) == 2
    assert "have it put aside by `--rejected`" in capsys.readouterr().err
    assert cli.main([*options, "--rejected=aside.csv"]) == 0
    assert (folder / "aside.csv").read_text() == "row,reason,found\n1,missing,None\n3,empty,''\n"
    assert len((folder / "out.csv").read_text().splitlines()) == 2
    assert cli.main([*options, "--rejected=aside.csv"]) == 2
    assert "out.csv is there already" in capsys.readouterr().err


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from([*REASONS, "good"]), max_size=30),
    window=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    two=st.booleans(),
)
def test_every_row_is_answered_or_rejected_in_its_place(tokenizer, kinds, window, batch_size, two):
    texts = [REASONS.get(kind, "good film") for kind in kinds]
    if two:
        texts = [(text, " " if text == " " else "plot") for text in texts]
    model = Host("bert").make(**HARD, **NAMES)
    found = list(predict(model, tokenizer, texts, batch_size=batch_size, window=window, reject=True))
    assert [row.get("reason", "good") for row in found] == kinds
    scores = [row["score"] for row in found if "score" in row]
    assert scores == pytest.approx(scores[:1] * len(scores), abs=1e-5)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_share_the_files_out(folder, monkeypatch, processes):
    """As torchrun numbers them; without its address nobody waits for anybody."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    done = [0]
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        ask()
        done.append(len(list((folder / "answers").glob("*.jsonl"))))
    shares = [after - before for before, after in pairwise(done)]
    assert shares == [len(range(rank, 5, processes)) for rank in range(processes)]


def test_a_file_that_cannot_be_read_holds_up_no_other(folder, capsys):
    whole = (folder / "rows" / "part-1.jsonl").read_bytes()
    (folder / "rows" / "part-1.jsonl").write_bytes(whole[:40])
    ask(status=2)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "1 of 5 files could not be answered, such as rows/part-1.jsonl cannot be used: " in sentence
    assert sentence.endswith("Then run the same command again: it does what is missing.")
    assert len(list((folder / "answers").glob("*.jsonl"))) == 4
    (folder / "rows" / "part-1.jsonl").write_bytes(whole)
    ask()
    assert len(list((folder / "answers").glob("*.jsonl"))) == 5


def test_who_comes_second_gives_way(folder, capsys):
    (folder / "answers").mkdir()
    (folder / "answers" / "command.json").write_text("{}")
    with whole_file(folder / "answers" / "part-2.jsonl") as file:
        file.write("half")
        file.flush()
        with pytest.raises(InUse, match="One process at a time"), whole_file(folder / "answers" / "part-2.jsonl"):
            pass
        (folder / "answers" / "command.json").unlink()
        (folder / "answers" / "part-2.jsonl.partial").rename(folder / "part-2.jsonl.partial")
        ask()
        (folder / "answers" / "part-2.jsonl").unlink()
        (folder / "part-2.jsonl.partial").rename(folder / "answers" / "part-2.jsonl.partial")
        ask()
        assert "rows/part-2.jsonl is left to the process that is at it" in capsys.readouterr().out
        assert not (folder / "answers" / "part-2.jsonl").exists()
        file.write(" and whole")
    assert (folder / "answers" / "part-2.jsonl").read_text() == "half and whole"


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ([], ["nothing"], "There is no file nothing; check the path"),
        ([], ["rows/*.csv"], "`--input` must name files to read, got none in rows/*.csv"),
        ([], ["rows", "other/part-1.csv", "other/part-1.tsv"], "got other/part-1.csv and other/part-1.tsv; rename"),
        ([], ["rows", "other/rows.xls"], "Files must end in arrow, csv"),
        (["--output=out.csv"], ["rows"], "Several files need a folder for the output, got out.csv"),
        (["--output=out.csv"], ["rows/*"], "Several files need a folder for the output, got out.csv"),
        (["--overwrite"], ["rows"], "`--rejected` and `--overwrite` are for an output that is one file"),
        (["--output=model"], ["rows"], "model holds something else; choose another `--output`, or empty it"),
    ],
)
def test_files_that_cannot_be_meant(folder, capsys, options, inputs, message):
    (folder / "other").mkdir()
    for name in ("part-1.csv", "part-1.tsv", "rows.xls"):
        (folder / "other" / name).write_text("text\ngood\n")
    before = content(folder)
    ask(*options, inputs=inputs, status=2)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert message in sentence
    assert content(folder) == before


def test_answers_of_another_command_are_not_mixed(folder, capsys):
    ask()
    # As a shell completes it.
    assert cli.main(["predict", "model/", "--input=rows", "--output=answers", "--keep-columns=id"]) == 0
    ask("--bf16", status=2)
    assert "answers holds the run of another command (powerbert predict model" in capsys.readouterr().err
    # Under the same name.
    model = Host("bert").make(**HARD, **NAMES)
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained("model")
    ask(status=2)
    assert "with another model_files" in capsys.readouterr().err


def predict_as_rank(rank, log):
    os.environ.update(rank)
    with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(cli.main(["predict", "model", "--input=rows", "--output=answers", "--keep-columns=id"]))


def test_under_a_launcher_a_failed_process_waits_for_the_others(folder, start, as_rank):
    """It would have them killed."""
    ask()
    wanted = {path: path.read_bytes() for path in (folder / "answers").glob("part-*")}
    for path in wanted:
        path.unlink()
    (folder / "rows" / "part-0.jsonl").write_text("{")
    logs = [folder / "0.txt", folder / "1.txt"]
    ranks = [start(predict_as_rank, rank, log) for rank, log in zip(as_rank, logs, strict=True)]
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [2, 0]
    assert "1 of 3 files could not be answered" in logs[0].read_text()
    found = {path: path.read_bytes() for path in (folder / "answers").glob("part-*")}
    assert found == {path: answers for path, answers in wanted.items() if path.name != "part-0.jsonl"}
