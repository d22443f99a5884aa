"""Every example runs, and the code in README is what it says."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import powerbert_hf
from powerbert_hf import arguments, cli, demo, parsing
from powerbert_hf.trainer import PoWERTrainingArguments

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(example, tmp_path):
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, str(example), "--smoke", f"--output-dir={out}"],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if example.stem == "selection_ablation":
        assert list(json.loads((out / "ablation.json").read_text())) == ["significance", "first", "random"]
        return
    if example.stem == "own_csv":
        assert "<!DOCTYPE html>" in (out / "report.html").read_text(encoding="utf-8")
        out = out / "final"
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert isinstance(model, powerbert_hf.PoWERBertForSequenceClassification)
    assert model.config.active_retention_mode == "hard"


def test_a_static_selection_keeps_the_same_with_and_without_padding(host, batch):
    if host.name != "bert":
        pytest.skip("the ablation replaces BERT's attention")
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "examples" / "selection_ablation.py")
    ablation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ablation)
    with pytest.raises(ValueError, match="written for BERT alone, got a run of albert"):
        ablation.main(ablation.Options(run=str(ROOT / "results" / "sst2-albert-l12-h384")))
    model = host.make(retention_config=[6, 3, 1])
    usual = model(**batch).logits
    ablation.rank_by(model, torch.arange(64, 0, -1).float())
    padded = model(**batch, output_kept_positions=True)
    assert padded.kept_positions[0][0].tolist() == [0, 1, 2, 3, 4, 5]
    assert not torch.allclose(padded.logits, usual, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, padded.logits, atol=1e-5, rtol=0)


def test_python_in_readme_compiles_and_names_what_there_is():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        compile(block, "README.md", "exec")
        for names in re.findall(r"from powerbert_hf import (.*)", block):
            assert all(hasattr(powerbert_hf, name.strip()) for name in names.split(","))


def test_commands_in_readme_are_ones_that_the_parser_takes(monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    sweeps = re.findall(r"^powerbert sweep (.*)$", text, flags=re.MULTILINE)
    assert len(sweeps) == 1
    kinds = [arguments.SweepArguments, arguments.DataArguments, PoWERTrainingArguments]
    assert parsing.parse("sweep", sweeps[0].split(), kinds)[0].speedups == [1.5, 2, 3]
    calibrations = re.findall(r"^powerbert calibrate (.*)$", text, flags=re.MULTILINE)
    assert len(calibrations) == 1
    options = parsing.parse_for_model("calibrate", calibrations[0].split(), arguments.CalibrateArguments)
    assert options.texts == "texts.txt"
    for command, kind, number in (
        ("publish", arguments.PublishArguments, 3),
        ("find", arguments.FindArguments, 1),
        ("apply", arguments.ApplyArguments, 1),
        ("predict", arguments.PredictArguments, 1),
        ("export", arguments.ExportArguments, 2),
        ("benchmark", arguments.BenchmarkArguments, 1),
    ):
        typed = re.findall(rf"^powerbert {command} (.*?)(?: +#.*)?$", text, flags=re.MULTILINE)
        assert len(typed) == number
        for one in typed:
            parsing.parse_for_model(command, one.split(), kind)
    looks = [
        shlex.split(line, comments=True)[2:] for line in re.findall(r"^powerbert inspect .*$", text, re.MULTILINE)
    ]
    asked = [
        parsing.parse_for_model("inspect", words, arguments.InspectArguments, ("model", "text", "second_text"))
        for words in looks
    ]
    assert [one.model for one in asked] == ["runs/demo/final", "runs/demo/final", "runs/mrpc/final"]
    assert asked[1].second_text == "and its pair"
    commands = re.findall(r"^powerbert (train) (.*)$", text, flags=re.MULTILINE)
    assert len(commands) == 2
    taken = []
    monkeypatch.setattr(cli, "run_training", lambda *parsed: taken.append(parsed[0].model))
    for command, options in commands:
        assert cli.main([command, *options.split()]) == 0
    assert taken == ["bert-base-uncased", "my/fine-tuned-bert"]


def test_readmes_first_six_lines_predict(host, tokenizer, tmp_path):
    """With a small checkpoint in the place of the one on the Hub."""
    if host.name != "bert":
        pytest.skip("README shows BERT")
    host.make_stock().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    block = re.sub(r'name = ".*?"', f"name = {str(tmp_path)!r}", block)
    block = re.sub(r"keep = \[.*?\]", "keep = [0.9, 0.6, 0.5]", block)
    out = subprocess.check_output([sys.executable, "-c", block], text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert "'label': 'LABEL_" in out


def test_demo_texts_vary_in_length_and_few_words_decide(tmp_path):
    import numpy as np

    reviews = demo.make_reviews(2000, np.random.default_rng(0))
    lengths = [len(text.split()) for text, _ in reviews]
    assert min(lengths) < 10
    assert max(lengths) > 50
    # Words that are not opinions say nothing of the class; those that are leave some doubt, the wrong labels.
    opinions = {**dict.fromkeys(demo._GOOD, 1), **dict.fromkeys(demo._BAD, -1)}
    right = 0
    for text, label in reviews:
        words = text.split()
        said = sum(
            opinions.get(word, 0) * (-1 if "not" in words[max(0, place - 2) : place] else 1)
            for place, word in enumerate(words)
        )
        right += (said > 0) == (label == "good")
    assert right / len(reviews) == pytest.approx(1 - demo._WRONG_LABELS, abs=0.02)
    assert demo.make_demo(tmp_path / "demo", 1) == demo.make_demo(tmp_path / "demo", 1)


def test_the_working_folder_may_be_that_of_the_demo(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    asked = []
    monkeypatch.setattr(cli, "_train", asked.extend)
    assert cli.main(["demo", "--output-dir=."]) == 0
    assert f"--output-dir={tmp_path / 'here'}" in asked
    assert (tmp_path / "here-inputs-0").is_dir()


def test_tables_of_results_are_what_the_runs_say():
    subprocess.run([sys.executable, str(ROOT / "results" / "render.py"), "--check"], check=True)
