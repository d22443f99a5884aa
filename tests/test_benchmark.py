"""The protocol, on a clock of our own: what is timed, in which order, and when no number is given. And the command."""

import itertools
import json
from unittest.mock import Mock
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from conftest import Host
from powerbert_hf import agreement, benchmark, cli, lengths, profiling
from powerbert_hf.cost import predicted_speedup

KEEP = [6, 4, 2]


def features_of(*numbers):
    return [{"input_ids": list(range(1, number + 1))} for number in numbers]


class Clock:
    """Time passes only when a model runs: so many seconds a word-vector that it is given, padding too."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.calls = 0.0, seconds, []

    def watch(self, name, model):
        def run(_, __, inputs):
            self.now += self.seconds[name] * inputs["input_ids"].numel()
            self.calls.append((name, tuple(inputs["input_ids"].shape)))

        model.register_forward_pre_hook(run, with_kwargs=True)
        return model

    def __call__(self):
        return self.now


def test_passes_take_turns_and_the_first_round_is_not_timed():
    ticks = itertools.count()
    order = []
    seconds = benchmark.interleaved_seconds(
        {"stock": lambda: order.append("stock"), "ours": lambda: order.append("ours")},
        repeats=3,
        clock=lambda: float(next(ticks)),
    )
    assert order == ["stock", "ours"] * 4
    assert seconds == {"stock": [1.0] * 3, "ours": [1.0] * 3}


def test_batches_are_neighbours_padded_to_their_longest_or_to_a_width():
    first, second = benchmark.make_batches(features_of(1, 3, 2), 2)
    assert first["input_ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert first["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert second["input_ids"].tolist() == [[1, 2]]
    pairs = [{"input_ids": [1, 2], "token_type_ids": [0, 1], "attention_mask": [1, 1]}]
    (padded,) = benchmark.make_batches(pairs, 2, width=4)
    assert {name: values.tolist() for name, values in padded.items()} == {
        "input_ids": [[1, 2, 0, 0]],
        "token_type_ids": [[0, 1, 0, 0]],
        "attention_mask": [[1, 1, 0, 0]],
    }


def test_every_way_of_running_costs_what_its_padding_costs(host):
    clock = Clock(stock=3.0, ours=1.0, smaller=0.5)
    ours = host.make(retention_config=KEEP)
    stock, smaller = clock.watch("stock", ours.to_stock()), clock.watch("smaller", ours.to_stock())
    ways = ["a", "b", "c", "e", "ours", "ours-arrival"]
    found = benchmark.benchmark(
        clock.watch("ours", ours), features_of(10, 2, 8, 4), 2, ways, stock, smaller, 16, repeats=2, clock=clock
    )
    arrival, by_length = [(2, 10), (2, 8)], [(2, 4), (2, 10)]
    a_round = [
        *[("stock", shape) for shape in [(2, 16), (2, 16), *arrival, *by_length]],
        *[("smaller", shape) for shape in by_length],
        *[("ours", shape) for shape in by_length + arrival],
    ]
    # Before the three rounds the answers are compared.
    assert clock.calls[-3 * len(a_round) :] == a_round * 3
    words = {"a": 64, "b": 36, "c": 28, "e": 28, "ours": 28, "ours-arrival": 36}
    rates = {"a": 3.0, "b": 3.0, "c": 3.0, "e": 0.5, "ours": 1.0, "ours-arrival": 1.0}
    assert list(found.rows) == ways
    for name, row in found.rows.items():
        seconds = words[name] * rates[name]
        assert row.seconds == [seconds] * 2
        assert row.median == seconds
        assert row.texts_per_second == pytest.approx(4 / seconds)
        assert row.speedup == row.low == row.high == pytest.approx(84 / seconds)
    assert found.measured == pytest.approx(3)
    assert found.predicted == predicted_speedup(ours.config, torch.tensor([10, 2, 8, 4]))
    assert found.realised == pytest.approx(3 / found.predicted)
    assert found.arrival_over_sorted == pytest.approx(36 / 28)
    assert (found.inputs, found.batch_size, found.mean_length, found.padded_to) == (4, 2, 6.0, 16)
    assert (found.dtype, found.device) == ("float32", "cpu")
    assert (ours.config.retention_config, ours.config.retention_unit) == (KEEP, "words")


def test_padding_in_what_is_measured_counts_for_nothing(host):
    ours, features = host.make(retention_config=KEEP), features_of(10, 2, 8, 4)
    padded = [
        {name: [*values, *[0] * (12 - len(values))] for name, values in row.items()}
        | {"attention_mask": [1] * len(row["input_ids"]) + [0] * (12 - len(row["input_ids"]))}
        for row in features
    ]
    found, wanted = (benchmark.benchmark(ours, rows, 2, ["c"], repeats=1) for rows in (padded, features))
    assert (found.predicted, found.mean_length, found.padded_to) == (wanted.predicted, 6.0, 10)
    assert found.agreement == wanted.agreement


def test_retention_weights_that_were_learned_stay(host):
    ours = host.make(retention_mode="soft", retention_length=10, retention_config=KEEP)
    with torch.no_grad():
        ours.retention_weights.fill_(0.25)
    ours.config.retention_mode = "hard"
    benchmark.benchmark(ours, features_of(10, 4), repeats=1)
    assert (ours.retention_weights == 0.25).all()


@pytest.mark.parametrize("ways", [["c", "d2"], ["e"]])
def test_ways_that_there_are_not_are_refused(host, ways):
    with pytest.raises(ValueError, match=f"`e` with a `smaller` model, got '{ways[-1]}'"):
        benchmark.benchmark(host.make(retention_config=KEEP), features_of(10, 4), ways=ways)


def test_ratios_are_those_of_passes_beside_each_other():
    host = Host("bert")
    ours = host.make(retention_config=KEEP)
    # Two readings of the clock a timed pass, one of the others: (c) takes 4, 6, 8 seconds, ours 2, 1, 4.
    moments = itertools.accumulate([0, 9, *(step for pair in (4, 2, 6, 1, 8, 4) for step in (0, pair))])
    found = benchmark.benchmark(ours, features_of(5, 3), repeats=3, clock=lambda: float(next(moments)))
    ours_row = found.rows["ours"]
    assert found.rows["c"].seconds == [4, 6, 8]
    assert ours_row.seconds == [2, 1, 4]
    assert (ours_row.speedup, ours_row.low, ours_row.high) == (3, 2, 6)
    assert found.arrival_over_sorted is None
    assert found.timing() == {
        "measured": 3,
        "low": 2,
        "high": 6,
        "seconds_stock": 6,
        "seconds_ours": 2,
        "difference_at_full_retention": found.agreement.at_full_retention,
        "inputs": 2,
        "batch_size": 32,
        "dtype": "float32",
    }


def test_no_speed_of_a_model_that_eliminates_nothing(host):
    with pytest.raises(ValueError, match='got a model with `retention_mode` "off"'):
        benchmark.benchmark(host.make(), features_of(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_full_retention_may_be_off_by_what_stock_itself_is_off(host, batch, dtype):
    ours = host.make(retention_config=KEEP).to(dtype)
    stock = ours.to_stock()
    found = agreement.compare(ours, stock, [batch])
    assert (found.rounding == 0) == (dtype == torch.float32)
    # Each is off from what is exact.
    assert found.at_full_retention <= 1e-5 + 4 * found.rounding
    assert (ours.config.retention_config, ours.config.retention_unit) == (KEEP, "words")
    with torch.no_grad():
        largest = max(1.0, stock(**batch).logits.abs().max().item())
        stock.classifier.bias.add_(20 * found.rounding + 2e-3 * largest)
    with pytest.raises(ValueError, match="must answer as the stock model does, got logits that are"):
        agreement.compare(ours, stock, [batch])
    assert (ours.config.retention_config, ours.config.retention_unit) == (KEEP, "words")


def test_no_speed_of_a_model_that_answers_nothing_at_all(host, batch):
    ours = host.make(retention_config=KEEP)
    other = ours.to_stock()
    with torch.no_grad():
        ours.classifier.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="got logits that are nan apart"):
        agreement.compare(ours, other, [batch])


@pytest.mark.parametrize(
    ("fields", "measure"),
    [
        ({"num_labels": 3}, lambda ours, stock: (ours.argmax(1) == stock.argmax(1)).double().mean()),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            lambda ours, stock: ((ours > 0) == (stock > 0)).all(1).double().mean(),
        ),
        ({"num_labels": 1}, None),
    ],
    ids=["classes", "several labels", "regression"],
)
def test_predictions_are_compared_as_the_task_reads_them(host, batch, fields, measure):
    ours = host.make(retention_config=[1, 1, 1], **fields)
    with torch.no_grad():
        # Undecided, so that eliminating word-vectors decides.
        ours.classifier.bias.sub_(ours.to_stock()(**batch).logits.mean(dim=0))
    stock = ours.to_stock()
    found = agreement.compare(ours, stock, [batch])
    with torch.no_grad():
        answers, expected = ours(**batch).logits, stock(**batch).logits
    assert found.changed_by == pytest.approx((answers - expected).abs().max().item(), abs=1e-5)
    assert found.changed_by > 1e-3
    if measure is None:
        assert found.unchanged is None
        assert found.correlation == pytest.approx(
            np.corrcoef(answers.flatten(), expected.flatten())[0, 1].item(), abs=1e-5
        )
    else:
        assert found.correlation is None
        assert found.unchanged == measure(answers, expected).item() < 1


def test_a_single_value_correlates_with_nothing(host, batch):
    ours = host.make(retention_config=KEEP, num_labels=1)
    one = {name: values[:1] for name, values in batch.items()}
    assert agreement.compare(ours, ours.to_stock(), [one]).correlation is None


@pytest.mark.parametrize(
    # Counted on the development splits themselves.
    ("name", "mean", "median", "padded_to"),
    [("sst2", 25.164, 24.5, 64), ("mrpc", 53.243, 53, 128), ("rte", 68.260, 53, 256), ("imdb", 271.212, 230, 512)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drawn_lengths_are_distributed_as_real_ones(name, mean, median, padded_to, seed):
    drawn, most = lengths.draw_lengths(name, 512, seed)
    assert most == padded_to >= max(drawn)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.01)
    assert np.median(drawn) == pytest.approx(median, abs=1)
    assert drawn == lengths.draw_lengths(name, 512, seed)[0] != lengths.draw_lengths(name, 512, seed + 1)[0]
    # In no order: sorting must not be a gift to those that run as texts arrive.
    assert abs(np.corrcoef(drawn, range(512))[0, 1]) < 0.2


def test_random_inputs_have_their_lengths_and_known_word_pieces():
    made = lengths.random_features([3, 1, 5], vocab_size=4)
    assert [len(row["input_ids"]) for row in made] == [3, 1, 5]
    assert {number for row in made for number in row["input_ids"]} <= {0, 1, 2, 3}


def test_time_is_told_apart_by_encoder(host, batch, monkeypatch):
    """The first encoder takes 1 second, the second 2, the third 4, also where all are one module."""
    readings = itertools.accumulate(itertools.cycle([0, 1, 2, 4]))
    models = {"ours": host.make(retention_config=KEEP), "stock": host.make_stock()}
    # As it does when nobody looks.
    packed = Mock(wraps=models["ours"].base_model._packed_cls)
    monkeypatch.setattr(models["ours"].base_model, "_packed_cls", packed)
    found = profiling.encoder_seconds(models, [batch, batch], repeats=2, clock=lambda: float(next(readings)))
    assert found == {"ours": [2, 4, 8], "stock": [2, 4, 8]}
    assert not [hooks for model in models.values() for m in model.modules() if (hooks := m._forward_hooks)]
    assert packed.call_count == 2 * 3


def test_peak_memory_grows_with_the_batch_and_holds_the_widest_activation(host):
    model = host.make_stock()
    few, many = (
        profiling.peak_memory(model, {"input_ids": torch.ones(size, 32, dtype=torch.long)}) for size in (8, 16)
    )
    assert few > 8 * 32 * 64 * 4
    assert many == pytest.approx(2 * few, rel=0.1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`model` is a configuration and nothing else."""
    monkeypatch.chdir(tmp_path)
    host = Host("bert")
    host.stock_config(**host.fields).save_pretrained("model")
    return tmp_path


CONFIGURED = ["model", "--retention-config", "0.8", "0.5", "0.3"]
QUICK = ["--inputs=6", "--batch-sizes=4", "--repeats=1", "--threads=1"]


def test_command_measures_a_configuration_without_weights(folder, capsys):
    options = [*CONFIGURED, *QUICK, "--lengths", "sst2", "8", "--dtypes", "float32", "bfloat16", "--per-encoder"]
    files = ["--output=speed.json", "--plot=speed.svg"]
    assert cli.main(["benchmark", *options, *files, "--smaller-model=model"]) == 0
    out = capsys.readouterr().out
    assert "keeping 0.8 0.5 0.3 (of an input)" in out
    assert "The weights are random (seed 0)" in out
    assert out.count("(a) stock, padded to 64, arrival order") == 2
    assert out.count("(a) stock, padded to 8, arrival order") == 2
    written = json.loads((folder / "speed.json").read_text())
    assert written["command"] == ["powerbert", "benchmark", *options, *files, "--smaller-model=model"]
    assert written["random_weights"] is True
    assert written["hardware"]["threads"] == 1
    assert [(found["lengths"], found["dtype"]) for found in written["measurements"]] == [
        ("sst2", "float32"),
        ("8", "float32"),
        ("sst2", "bfloat16"),
        ("8", "bfloat16"),
    ]
    for found in written["measurements"]:
        assert list(found["rows"]) == ["a", "b", "c", "e", "ours", "ours-arrival"]
        assert all(len(row["seconds"]) == 1 for row in found["rows"].values())
        assert found["padded_to"] == (64 if found["lengths"] == "sst2" else 8)
        work = found["per_encoder"]["multiply_accumulates"]
        assert sum(work["stock"]) / sum(work["ours"]) == pytest.approx(found["predicted"])
        assert len(found["per_encoder"]["seconds"]["ours"]) == 3
    picture = ElementTree.parse(folder / "speed.svg").getroot()
    said = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    for found in written["measurements"]:
        assert f"{found['lengths']}, {found['dtype']}, batches of {found['batch_size']}" in said
        assert {f"{row['speedup']:.2f}x" for row in found["rows"].values()} <= {*said}


def test_command_reads_texts_in_their_order(folder, tokenizer, capsys):
    tokenizer.save_pretrained("model")
    (folder / "texts.txt").write_text("the plot was good\n\na film\n")
    (folder / "pairs.csv").write_text("one,two,id\nthe plot,was good,1\na film,the cast,2\n")
    for more in (["--texts=texts.txt"], ["--texts=pairs.csv", "--text-columns=one,two"]):
        assert cli.main(["benchmark", *CONFIGURED, *QUICK, *more, "--baselines", "c"]) == 0
    out = capsys.readouterr().out
    assert "texts.txt: 2 texts of 5.0 word-pieces on average, N = 6; batches of 4" in out
    assert "pairs.csv: 2 texts of 7.0 word-pieces on average, N = 7; batches of 4" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model", "--lengths=8"], "needs a retention configuration, got none in model; pass the share"),
        ([*CONFIGURED], "Pass either `--lengths`, such as rte or 128, or `--texts`"),
        ([*CONFIGURED, "--lengths=8", "--texts=texts.txt"], "got both or neither"),
        ([*CONFIGURED, "--lengths=cola"], "`--lengths` must be sst2, mrpc, rte, imdb or whole numbers"),
        ([*CONFIGURED, "--lengths=0"], "or whole numbers of word-pieces, got '0'"),
        ([*CONFIGURED, "--lengths=65"], "at most what the model takes (64), got 65"),
        ([*CONFIGURED, "--lengths=8", "--max-length=65"], "at most what the model takes (64), got 65"),
        ([*CONFIGURED, "--lengths=8", "--inputs=0"], "`--inputs` must be at least 1, got 0"),
        ([*CONFIGURED, "--lengths=8", "--batch-sizes", "4", "0"], "`--batch-sizes` must be at least 1, got 0"),
        ([*CONFIGURED, "--lengths=8", "--repeats=-1"], "`--repeats` must be at least 1, got -1"),
        ([*CONFIGURED, "--lengths=8", "--threads=0"], "`--threads` must be at least 1, got 0"),
        ([*CONFIGURED, "--lengths=8", "--seed=-1"], "`--seed` must be from 0 to 2**32 - 1, got -1"),
        ([*CONFIGURED, "--lengths=8", "--dtypes=int8"], "invalid choice: 'int8'"),
        ([*CONFIGURED, "--lengths=8", "--baselines=e"], "invalid choice: 'e'"),
        ([*CONFIGURED, "--lengths=8", "--lenght=8"], "There is no option --lenght; did you mean --lengths?"),
        ([*CONFIGURED, "--lengths=8", "--output=speed.txt"], "`--output` must end in .json, got speed.txt"),
        ([*CONFIGURED, "--lengths=8", "--plot=speed.jpg"], "A picture must end in .svg or .png, got speed.jpg"),
        ([*CONFIGURED, "--lengths=8", "--output=no/speed.json"], "There is no folder no for the output; make it"),
        ([*CONFIGURED, "--lengths=8", "--output=model/config.json"], "model/config.json is there already"),
        ([*CONFIGURED, "--lengths=8", "--smaller-model=nothing"], "The model nothing cannot be used"),
        ([*CONFIGURED, "--texts=texts.txt"], "There is no file texts.txt"),
        ([*CONFIGURED, "--texts=empty.txt"], "empty.txt must hold texts, one a line, got none"),
        ([*CONFIGURED, "--texts=texts.pdf"], "There is no file texts.pdf"),
        ([*CONFIGURED, "--texts=rows.csv"], "A model needs a tokenizer, got none in model"),
        ([*CONFIGURED, "--texts=rows.csv", "--text-columns=no"], "There is no column 'no'"),
        (["model", "--retention-config", "0.8", "0.5", "--lengths=8"], "one entry per encoder (3), got 2"),
        (["model", "--retention-config", "8", "5", "3", "--lengths=8"], 'use `retention_unit="words"` for counts'),
        (
            ["model", "--retention-unit=words", "--lengths=8"],
            "`--retention-unit` says what `--retention-config` means",
        ),
    ],
)
def test_command_refuses_in_one_sentence(folder, capsys, options, message):
    (folder / "empty.txt").write_text("\n")
    (folder / "rows.csv").write_text("text\na film\n")
    before = sorted(folder.rglob("*"))
    try:
        status = cli.main(["benchmark", *options])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    *said, sentence = captured.err.splitlines()
    assert status == 2
    assert message in sentence
    assert sentence.startswith("powerbert benchmark: ")
    assert not [line for line in said if not line.startswith("usage: ")]
    assert captured.out == ""
    assert sorted(folder.rglob("*")) == before


def test_a_picture_that_nothing_can_make_is_refused_before_anything_runs(folder, capsys, monkeypatch):
    monkeypatch.setattr("powerbert_hf.drawing.find_spec", lambda name: None)
    assert cli.main(["benchmark", *CONFIGURED, "--lengths=8", "--plot=speed.png"]) == 2
    assert "run `pip install 'powerbert_hf[plot]'`" in capsys.readouterr().err


def test_a_refusal_loses_nothing_that_was_measured_before(folder, capsys, monkeypatch):
    compare, calls = agreement.compare, itertools.count()

    def refuse_the_second(*given):
        if next(calls):
            raise ValueError("no")
        return compare(*given)

    monkeypatch.setattr(benchmark, "compare", refuse_the_second)
    options = [*CONFIGURED, *QUICK, "--lengths", "4", "8", "--output=speed.json"]
    assert cli.main(["benchmark", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "powerbert benchmark: no"
    (found,) = json.loads((folder / "speed.json").read_text())["measurements"]
    assert found["lengths"] == "4"


def test_counts_are_a_configuration_too(folder, capsys):
    options = ["model", "--retention-config", "8", "5", "3", "--retention-unit=words", *QUICK, "--lengths=8"]
    assert cli.main(["benchmark", *options]) == 0
    assert "keeping 8 5 3 (word-vectors)" in capsys.readouterr().out


def test_a_configuration_that_its_folder_holds_is_measured_without_weights(folder, capsys):
    host = Host("bert")
    host.config(**host.fields, retention_config=[0.8, 0.5, 0.3], retention_unit="fraction").save_pretrained("model")
    assert cli.main(["benchmark", "model", *QUICK, "--lengths=8"]) == 0
    assert "keeping 0.8 0.5 0.3 (of an input)" in capsys.readouterr().out


def test_a_share_for_each_encoder_is_asked_for(folder, capsys):
    host = Host("albert")
    host.stock_config(**{**host.fields, "inner_group_num": 2}).save_pretrained("model")
    assert cli.main(["benchmark", "model", "--lengths=8"]) == 2
    assert f"each of the {2 * host.fields['num_hidden_layers']} encoders" in capsys.readouterr().err
