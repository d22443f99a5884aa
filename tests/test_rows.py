"""Rows of files come as they stand there, whatever stood before them; what cannot be told is said."""

import json

import pyarrow
import pytest
from datasets import Dataset

from powerbert_hf.rows import Misfit, read_rows
from powerbert_hf.texts import read_file

ROWS = [
    {"id": 18446744073709551615, "at": "2023-01-01T12:00:00Z", "text": 'say "no"'},
    {"id": 1.5, "at": None, "text": 5},
    {"id": {"a": [1]}, "text": "\u2028 a line of its own it is not", "more": True},
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "listed.json"])
def test_objects_come_as_they_stand(tmp_path, name):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    text = f"[{', '.join(lines)}]" if name == "listed.json" else "\n".join(lines)
    (tmp_path / name).write_text(f"\ufeff{text}\n\n", encoding="utf-8")
    assert list(read_rows(tmp_path / name)) == ROWS


@pytest.mark.parametrize("name", ["rows[1].jsonl", "a?b.csv", "a::b.csv", "*.txt", "rows[1].parquet", "rows[1].arrow"])
def test_a_name_is_no_pattern(tmp_path, name):
    """Each of the others is what the pattern would find."""
    for other in ("rows1.jsonl", "axb.csv", "b.csv", "mine.txt", "rows1.parquet", "rows1.arrow"):
        write(tmp_path / other, ["another"])
    write(tmp_path / name, ["mine"])
    assert [row["text"] for row in read_rows(tmp_path / name)] == ["mine"]
    if not name.endswith("txt") and "::" not in name:
        assert read_file(str(tmp_path / name))["text"][:] == ["mine"]


def write(path, texts):
    table = pyarrow.table({"text": texts})
    if path.suffix == ".parquet":
        Dataset(table).to_parquet(path)
    elif path.suffix == ".arrow":
        with pyarrow.ipc.new_stream(path, table.schema) as file:
            file.write_table(table)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        head = "" if path.suffix == ".txt" else "text\n"
        path.write_text(head + "".join(f"{text}\n" for text in texts))


def test_both_formats_of_arrow(tmp_path):
    table = pyarrow.table({"text": ["good", "bad"]})
    with pyarrow.ipc.new_file(tmp_path / "rows.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=1)
    assert list(read_rows(tmp_path / "rows.arrow")) == [{"text": "good"}, {"text": "bad"}]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("id,text\n1,good\n2,\n", [{"id": "1", "text": "good"}, {"id": "2", "text": None}]),
        ("id,text\n1,good,\n3\n", [{"id": "1", "text": "good"}, {"id": "3", "text": None}]),
        ('id,text\r\n1,"a ""film"",\r\ngood"\r\n\r\n', [{"id": "1", "text": 'a "film",\r\ngood'}]),
        ("text\ngood\n\nbad\n", [{"text": "good"}, {"text": None}, {"text": "bad"}]),
        ("a,,a,a\n1,2,3,4\n", [{"a": "1", "column 2": "2", "a.1": "3", "a.2": "4"}]),
        ("text\n", []),
        ("", []),
    ],
)
def test_fields_of_csv(tmp_path, content, rows):
    (tmp_path / "rows.csv").write_text(f"\ufeff{content}", encoding="utf-8", newline="")
    assert list(read_rows(tmp_path / "rows.csv")) == rows


def test_a_row_that_does_not_fit_its_header_shifts_nothing(tmp_path):
    (tmp_path / "rows.csv").write_text("id,text\n1,good\n2,bad, but long\n3,bad\n")
    first, second, third = read_rows(tmp_path / "rows.csv")
    assert (first["text"], third["text"]) == ("good", "bad")
    assert second == dict.fromkeys(["id", "text"], Misfit(("2", "bad", " but long")))
    with pytest.raises(ValueError, match=r"2 fields a row, as its header has, got 3 in row 2: \['2', 'bad', ' but"):
        read_file(str(tmp_path / "rows.csv"))
    # All of them: pandas would have made the first column a name of each row.
    (tmp_path / "rows.csv").write_text("id,text\n1,good,x\n2,bad,x\n")
    with pytest.raises(ValueError, match="got 3 in row 1"):
        read_file(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", 'text\ngood\n"bad\nbad\n', "line 4: unexpected end of data"),
        ("rows.csv", "text;label\ngood film;n\n", "line 1: its header is parted by ';'; part it by commas"),
        ("rows.tsv", 'id\ttext\n1\t"good film\n2\tbad\n3\tso "so"\n4\t"bad"\n', "line 4: ' ' expected after '\"'"),
        ("rows.tsv", 'id\ttext\n1\t"good film\n2\tbad"\n', r"a quotation spans tabs and lines, 'good film\\n2\\tbad'"),
        ("rows.jsonl", '{"text": "good"}\n{"text": \n', "line 2: Expecting value"),
        ("rows.jsonl", '{"text": "good"}\n["bad"]\n', "line 2 must be an object, got list"),
        ("rows.json", '[{"text": "good"}, 5]', "row 2 must be an object, got int"),
    ],
)
def test_what_cannot_be_told_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} cannot be used: {message}"):
        list(read_rows(tmp_path / name))
    with pytest.raises(ValueError, match=f"{name} cannot be used: "):
        read_file(str(tmp_path / name))


def test_training_texts_do_not_turn_into_json(tmp_path):
    """`datasets` would quote all texts of a part of the file in which one is a number."""
    (tmp_path / "rows.jsonl").write_text('{"text": "say \\"no\\"", "label": 0}\n{"text": 404, "label": 1}\n')
    with pytest.raises(
        ValueError, match=r"rows.jsonl cannot be used: .*Column\(/text\) changed from string to number"
    ):
        read_file(str(tmp_path / "rows.jsonl"))
