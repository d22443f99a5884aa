"""What inspect shows is what the model keeps: words, positions, significance; as data, text, page and picture."""

import json
import string
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import AlbertTokenizer, BatchEncoding, BertTokenizer

from conftest import WORDS
from powerbert_hf import cli, encoder
from powerbert_hf.drawing import draw_explanation
from powerbert_hf.inspection import Explanation, explain
from powerbert_hf.pages import dropped_words, explanation_page
from powerbert_hf.survival import survival
from powerbert_hf.terminal import GONE, columns, format_explanation, what_is_left

LETTERS = string.ascii_lowercase + ".,!?'"
HOSTILE = '<script>alert("1")</script> & \x1b[31mred\x1b[0m \u202eabc <img src=x onerror=alert(1)>'
TEXTS = {
    "words": "the film was not good but the plot is very long",
    "word-pieces": "The filmmaking wasn't unwatchable, it was goodish!",
    "emoji": "good film 🎉👩‍🚀 and a great cast",
    "right to left": "the film שלום עולם مرحبا was good",
    "unknown words": "日本 film ?? ßß was bad",
    "empty": "",
    "hostile": HOSTILE,
    "long": "the film was not good but awful and it is very long " * 60,
    "pair": ("the film was good", "was the film any good?"),
    "pair with nothing": ("the film was good", ""),
}


@pytest.fixture
def pieces(host):
    """A tokenizer of the host's kind that knows the words, and letters for all others."""
    if host.name == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        known = [*special, *WORDS, *(letter for letter in LETTERS if letter not in WORDS)]
        known += [f"##{letter}" for letter in LETTERS]
        return BertTokenizer(vocab={piece: n for n, piece in enumerate(known)}, model_max_length=512)
    known = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in WORDS), "▁", *LETTERS]
    return AlbertTokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(known)], model_max_length=512)


@pytest.fixture
def model(host):
    host.fields = {**host.fields, "vocab_size": 90, "max_position_embeddings": 512}
    return host.make(retention_config=[0.7, 0.4, 0.2], retention_unit="fraction")


def shown_rows(text):
    """The words of each row of `format_explanation`, all blocks joined, without the dots of those that are gone."""
    rows = {}
    for line in text.splitlines():
        if line.startswith((" in ", " encoder ")):
            name, *words = line.removeprefix(" encoder").split()
            rows.setdefault(name, []).extend(word for word in words[1:] if word.strip(GONE))
    return list(rows.values())


class Page(HTMLParser):
    """The rows of a page's words that are not gone, the rows of its tables, and its tags."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.cells, self.tags, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "dd" and "words" in attrs.get("class", ""):
            self.rows.append([])
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        self.gone = attrs.get("class") == "gone" if tag == "bdi" else getattr(self, "gone", False) and tag == "span"
        if tag == "bdi" and self.rows and not self.gone and not self.cells:
            self.rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1][-1] += data.strip()
        elif self.open and self.open[-1] == "bdi" and not self.gone:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_shown_is_what_the_model_keeps(model, pieces, text):
    (found,) = explain(model, pieces, [text])
    pair = [text] if isinstance(text, str) else text
    # As lists: alone, an empty second text makes no pair.
    inputs = pieces(*([one] for one in pair), truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_kept_positions=True)
    kept = [positions[0].tolist() for positions in outputs.kept_positions]
    assert found.kept == kept
    assert found.tokens == pieces.convert_ids_to_tokens(inputs["input_ids"][0])
    assert found.cut == (len(found.tokens) == 512)
    # Each word-piece is in one word, in its place.
    assert [position for word in found.words for position in word.positions] == list(range(len(found.tokens)))
    assert found.answer["score"] == pytest.approx(outputs.logits.softmax(1).max().item(), abs=1e-5)
    assert [sum(depth > encoder for depth in found.depths) for encoder in range(3)] == list(map(len, kept))

    rows = [[word for word in found.words if not positions.isdisjoint(word.positions)] for positions in map(set, kept)]
    in_text = shown_rows(format_explanation(found, width=100_000))
    page = Page(explanation_page([found], "a model"))
    for encoder_row, positions, in_line, in_page in zip(rows, kept, in_text[1:], page.rows[1:], strict=True):
        left = [what_is_left(word, set(positions)) for word in encoder_row]
        assert in_page == left
        if text not in (TEXTS["long"], HOSTILE):
            assert in_line == [word for word in left if word.strip(GONE)]
    table = [row for row in page.cells if len(row) == 4][1:]
    assert [(int(place), int(leaves)) for place, _, leaves, _ in table] == list(enumerate(found.depths))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_significance_is_what_the_model_ranks_by(model, pieces, monkeypatch, attention):
    model.set_attn_implementation(attention)
    seen = []
    rank = encoder.rank

    def look(received, mask=None):
        seen.append(received[0])
        return rank(received, mask)

    monkeypatch.setattr(encoder, "rank", look)
    (found,) = explain(model, pieces, [TEXTS["word-pieces"]])
    # The last encoder keeps [CLS] whatever the others receive, so nothing is ranked there.
    assert len(seen) == 2
    for received, wanted in zip(found.significance, seen, strict=False):
        torch.testing.assert_close(torch.tensor(received), wanted)
    for entered, received, kept in zip(found.entered, found.significance, found.kept, strict=True):
        assert len(received) == len(entered)
        others = sorted(zip(received[1:], entered[1:], strict=True), key=lambda one: -one[0])[: len(kept) - 1]
        assert sorted(position for _, position in others) == kept[1:]


def test_texts_are_explained_alike_one_by_one_and_in_batches(model, pieces):
    texts = [text for text in TEXTS.values() if isinstance(text, str)]
    for text, found in zip(texts, explain(model, pieces, texts, batch_size=3), strict=True):
        (alone,) = explain(model, pieces, [text])
        assert (found.kept, found.words) == (alone.kept, alone.words)


def test_words_are_as_they_were_written_and_know_their_part(model, pieces):
    (found,) = explain(model, pieces, [("The Filmmaking was good", "was it?")])
    words = [(word.text, word.part) for word in found.words if word.part != "[SEP]"]
    assert words[:5] == [
        ("[CLS]", "[CLS]"),
        ("The", "first"),
        ("Filmmaking", "first"),
        ("was", "first"),
        ("good", "first"),
    ]
    assert {part for _, part in words[5:]} == {"second"}
    assert "".join(text for text, _ in words[5:]) == "wasit?"
    assert "".join(found.words[2].pieces) == "Filmmaking"
    assert len(found.words[2].positions) > 1


def test_a_tokenizer_that_does_not_say_where_its_pieces_come_from(host, model, pieces):
    if host.name != "bert":
        pytest.skip("such tokenizers are those of BERT in some languages")

    class Slow:
        def __call__(self, *texts, **options):
            return BatchEncoding(dict(pieces(*texts, **options)))

        def __getattr__(self, name):
            return getattr(pieces, name)

    text = ("the filmmaking was good", "was it ?")
    (slow,), (fast,) = explain(model, Slow(), [text]), explain(model, pieces, [text])
    assert slow == fast


def test_all_survives_in_off_mode_and_nothing_is_said_of_soft_mode(host, model, pieces):
    model.set_retention(None)
    (found,) = explain(model, pieces, [TEXTS["words"]])
    assert all(len(kept) == len(found.tokens) for kept in found.kept)
    soft = host.make(retention_mode="soft", retention_length=64)
    with pytest.raises(ValueError, match=r"in hard mode, to look at .* in mode 'soft'"):
        explain(soft, pieces, ["a"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("good film", "`texts` must be several, got one: 'good film'"),
        (["good", None], "got None as number 2"),
        (["good", ("good", "film")], r"got \('good', 'film'\) as number 2"),
        ([("good", 5)], "got .* as number 1"),
        (["bad \ud83d"], "got .* as number 1"),
    ],
)
def test_what_is_no_text_is_not_explained(model, pieces, texts, message):
    with pytest.raises(ValueError, match=message):
        explain(model, pieces, texts)


def test_what_would_be_looked_at_wrongly_is_refused(model, pieces):
    with pytest.raises(ValueError, match="`texts` must be several, got one: 'good film'"):
        survival(model, pieces, "good film")
    for look in (explain, survival):
        with pytest.raises(ValueError, match="`batch_size` must be at least 1, got -1"):
            look(model, pieces, ["good film"], batch_size=-1)
    pieces.padding_side = "left"
    with pytest.raises(ValueError, match=r"must pad on the right, .*, got `padding_side` 'left'"):
        explain(model, pieces, ["good film"])


def test_a_stock_model_is_not_explained(host, pieces):
    with pytest.raises(ValueError, match=r"must be one of this package, in hard mode, .* got .* in mode None"):
        explain(host.make_stock(), pieces, ["good"])


def test_an_explanation_survives_a_file(model, pieces):
    (found,) = explain(model, pieces, [TEXTS["pair"]])
    again = Explanation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert (again.words, again.kept, again.tokens, again.answer) == (
        found.words,
        found.kept,
        found.tokens,
        found.answer,
    )
    for ours, theirs in zip(again.significance, found.significance, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert format_explanation(again) == format_explanation(found)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_is_no_wider_than_asked_and_plain_unless_asked(model, pieces, width):
    for found in explain(model, pieces, [text for text in TEXTS.values() if isinstance(text, str)]):
        plain, coloured = format_explanation(found, width), format_explanation(found, width, colour=True)
        assert max(map(columns, plain.splitlines())) <= width
        assert "\x1b" not in plain
        assert "\x1b[1;36m" in coloured
        for code in ("\x1b[2m", "\x1b[1;36m", "\x1b[0m"):
            coloured = coloured.replace(code, "")
        assert [line.rstrip() for line in coloured.splitlines()] == plain.splitlines()


def test_hostile_texts_stay_texts(model, pieces):
    model.config.id2label = {0: HOSTILE, 1: HOSTILE}
    (found,) = explain(model, pieces, [HOSTILE])
    shown = format_explanation(found)
    assert not {"\x1b", "\u202e", "\x00"}.intersection(shown)
    page = explanation_page([found], '"><script>model')
    assert not {"\x1b", "\u202e"}.intersection(page)
    tags = Page(page).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "img", "iframe", "link", "object"})
    assert not any(name in ("src", "href", "onerror") for _, attrs in tags for name in attrs)
    picture = ElementTree.fromstring(draw_explanation(found).file())
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} <= {"svg", "style", "rect", "text"}


def test_dropped_words_are_each_named_once(model, pieces):
    (found,) = explain(model, pieces, [TEXTS["words"]])
    dropped = dropped_words(found)
    gone = [word for _, words in dropped for word in words]
    assert len(gone) + sum(found.depth(word) == 2 for word in found.words if word.part == "first") == 11
    assert dropped[0][1] == [word.text for word in found.words if word.part == "first" and found.depth(word) == 0]


def test_survival_counts_what_the_model_keeps(model, pieces):
    texts = ["the film was good", "the plot was very long but good", "bad"] * 2
    found = survival(model, pieces, texts, at_least=2)
    counts = torch.zeros(3)
    for text in texts:
        with torch.no_grad():
            outputs = model(**pieces(text, return_tensors="pt"), output_kept_positions=True)
        counts += torch.tensor([len(kept[0]) for kept in outputs.kept_positions])
    assert found.texts == 6
    assert [share * found.all.count for share in found.all.left] == pytest.approx(counts.tolist())
    parts = {part.name: part for part in found.parts}
    assert parts["[CLS]"].left == [1, 1, 1]
    assert sum(part.count for part in found.parts) == found.all.count == sum(tenth.count for tenth in found.tenths)
    words = {word.name: word for word in found.words}
    assert words["good"].count == 4
    assert [word.depth for word in found.words] == sorted((word.depth for word in found.words), reverse=True)
    (alone,) = explain(model, pieces, ["bad"])
    assert words["bad"].depth == alone.depths[1]
    with pytest.raises(ValueError, match="There must be texts to look at"):
        survival(model, pieces, [])
    # Three word-vectors are in three tenths of an input.
    assert [tenth.name for tenth in survival(model, pieces, ["bad"]).tenths] == ["1", "4", "7"]


@pytest.fixture
def folder(model, pieces, tmp_path):
    model.save_pretrained(tmp_path / "model")
    pieces.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_shows_a_text_a_pair_and_a_file(folder, tmp_path, capsys):
    assert cli.main(["inspect", folder, "the film was good", "- was it?", "--width=60"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown_rows(shown)[0][:5] == ["[CLS]", "the", "film", "was", "good"]
    (tmp_path / "texts.txt").write_text("the film was good\nbad plot\n" * 3, encoding="utf-8")
    assert cli.main(["inspect", folder, "--texts", str(tmp_path / "texts.txt")]) == 0
    assert "6 texts" in capsys.readouterr().out
    for ending, begin in ((".html", b"<!DOCTYPE"), (".json", b"{"), (".svg", b"<svg"), (".png", b"\x89PNG")):
        if ending == ".png":
            pytest.importorskip("resvg_py")
        for what in (["the film"], ["--texts", str(tmp_path / "texts.txt")]):
            output = tmp_path / f"{len(what)}{ending}"
            assert cli.main(["inspect", folder, *what, "--output", str(output)]) == 0
            assert output.read_bytes().startswith(begin)
    assert Explanation.from_dict(json.loads((tmp_path / "1.json").read_text())).tokens[0] == "[CLS]"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "takes a text or `--texts FILE`, got neither or both"),
        (["a", "--texts=x.txt"], "takes a text or `--texts FILE`, got neither or both"),
        (["a", "--output=a.gif"], "A picture must end in .svg or .png, got a.gif"),
        (["a", "--output=nowhere/a.svg"], "There is no folder nowhere"),
        (["a", "b", "c"], "may be given without a name, got 4 words; put a text into quotes"),
        (["a", "--max-length=2"], "`max_length` must lie between 3"),
        (["--texts=missing.txt"], "There is no file missing.txt"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_sentence(folder, capsys, typed, message):
    assert cli.main(["inspect", folder, *typed]) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_is_there_is_replaced_only_if_told(folder, tmp_path, capsys):
    output = tmp_path / "words.html"
    output.write_text("mine")
    assert cli.main(["inspect", folder, "a film", f"--output={output}"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert cli.main(["inspect", folder, "a film", f"--output={output}", "--overwrite"]) == 0
    assert Path(output).read_text().startswith("<!DOCTYPE")
