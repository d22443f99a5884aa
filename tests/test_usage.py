"""Where a model is used: `pipeline`, `AutoTokenizer`, accelerate; each with no word of this package but its import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, cpu_offload, dispatch_model, init_empty_weights
from torch.utils.data import DataLoader
from transformers import AlbertTokenizer, AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer, pipeline

from conftest import without_dropout
from powerbert_hf.retention import clamp_retention_weights, retention_mass

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = ["the film was good", "bad", "a very long plot but not awful and the cast is great", "short and bad"]
HARD = {"retention_config": [0.8, 0.5, 0.3], "retention_unit": "fraction"}
SOFT = {"retention_mode": "soft", "retention_length": 24, "retention_unit": "fraction"}
LABELS = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


@pytest.fixture
def ask(host, tokenizer, tmp_path):
    """Save a model with these fields and ask for a pipeline by its folder alone."""

    def make(**fields):
        host.make(**HARD, **fields).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        asked = pipeline("text-classification", model=str(tmp_path))
        assert type(asked.model) is host.classifier
        return asked

    return make


@torch.no_grad()
def logits(asked, texts, second=None, **options):
    """One input at a time, as a check on batches."""
    encoded = [asked.tokenizer(text, second, return_tensors="pt", **options) for text in texts]
    return torch.cat([asked.model(**inputs).logits for inputs in encoded])


def test_pipeline_names_the_labels_and_sorts_all_of_them(ask):
    asked = ask(**LABELS)
    wanted = logits(asked, TEXTS).softmax(1)
    for answer, row in zip(asked(TEXTS), wanted, strict=True):
        assert answer == {"label": ["no", "maybe", "yes"][row.argmax()], "score": pytest.approx(row.max().item())}
    for answers, row in zip(asked(TEXTS, top_k=None), wanted, strict=True):
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
            dict(zip(LABELS["label2id"], row.tolist(), strict=True))
        )
        assert [answer["score"] for answer in answers] == pytest.approx(sorted(row.tolist(), reverse=True))


def test_what_a_search_has_left_answers_in_batches_too(host, tokenizer, tmp_path):
    host.make(**SOFT, **LABELS).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = pipeline("text-classification", model=str(tmp_path))
    assert asked.model.config.active_retention_mode == "soft"
    one_by_one = [asked(text)[0]["score"] for text in TEXTS]
    assert [answer["score"] for answer in asked(TEXTS, batch_size=3)] == pytest.approx(one_by_one, abs=1e-5)


def test_pipeline_answers_alike_one_by_one_in_batches_and_from_a_generator(ask):
    asked = ask(**LABELS)
    one_by_one = [asked(text, top_k=None) for text in TEXTS]
    for answers in (asked(TEXTS, top_k=None, batch_size=3), list(asked((t for t in TEXTS), top_k=None, batch_size=2))):
        for found, wanted in zip(answers, one_by_one, strict=True):
            assert [(row["label"], pytest.approx(row["score"], abs=1e-5)) for row in wanted] == [
                (row["label"], row["score"]) for row in found
            ]


def test_pipeline_takes_pairs_and_cuts_what_is_too_long(ask):
    asked = ask()
    pairs = [{"text": text, "text_pair": "the plot"} for text in TEXTS]
    wanted = logits(asked, TEXTS, "the plot").softmax(1).amax(1)
    assert [answer["score"] for answer in asked(pairs, batch_size=4)] == pytest.approx(wanted.tolist(), abs=1e-5)
    # The model has 64 positions.
    long = "the film was good and " * 50
    cut = logits(asked, [long], truncation=True).softmax(1).max().item()
    assert asked(long, truncation=True)[0]["score"] == pytest.approx(cut)
    shorter = logits(asked, [long], truncation=True, max_length=16).softmax(1).max().item()
    assert asked(long, truncation=True, max_length=16)[0]["score"] == pytest.approx(shorter)
    assert shorter != pytest.approx(cut)


@pytest.mark.parametrize(
    ("fields", "function"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, lambda values: values),
        ({"num_labels": 1}, torch.sigmoid),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.sigmoid),
    ],
    ids=["regression", "one label", "several labels"],
)
def test_pipeline_applies_the_function_that_the_problem_asks_for(ask, fields, function):
    asked = ask(**fields)
    raw = logits(asked, TEXTS)
    for options, applied in (({}, function), ({"function_to_apply": "none"}, lambda values: values)):
        for answers, row in zip(asked(TEXTS, top_k=None, **options), applied(raw), strict=True):
            found = {answer["label"]: answer["score"] for answer in answers}
            assert [found[f"LABEL_{n}"] for n in range(len(row))] == pytest.approx(row.tolist(), abs=1e-5)


@pytest.mark.parametrize("named", [True, False], ids=["tokenizer_config.json", "none"])
def test_auto_tokenizer_loads_the_tokenizer_of_either_host(host, own_tokenizer, tmp_path, named):
    """Older folders do not name the class of their tokenizer; then the model's configuration tells."""
    host.make(**HARD).save_pretrained(tmp_path)
    own_tokenizer.save_pretrained(tmp_path)
    if not named:
        (tmp_path / "tokenizer_config.json").unlink()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is {"bert": BertTokenizer, "albert": AlbertTokenizer}[host.name]
    encoded = loaded("the film was good", "very bad")
    assert encoded["input_ids"] == own_tokenizer("the film was good", "very bad")["input_ids"]
    assert loaded.convert_ids_to_tokens(encoded["input_ids"])[0] == "[CLS]"
    assert own_tokenizer.unk_token_id not in encoded["input_ids"]
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert model(**loaded(TEXTS, padding=True, return_tensors="pt")).logits.isfinite().all()


@pytest.mark.parametrize("fields", [HARD, SOFT], ids=["hard", "soft"])
def test_a_training_loop_of_ones_own_with_accelerate(host, tokenizer, rows, fields):
    accelerator = Accelerator(cpu=True)
    model = without_dropout(host.make(**fields))
    named = [(tokenizer(row["text"]), int(row["label"] == "positive")) for row in rows]
    loader = DataLoader(
        [{**encoded, "labels": label} for encoded, label in named],
        batch_size=16,
        collate_fn=lambda batch: tokenizer.pad(batch, return_tensors="pt"),
    )
    retention = [model.retention_weights] if fields is SOFT else []
    others = [parameter for parameter in model.parameters() if all(parameter is not weights for weights in retention)]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": retention, "lr": 0.03}], lr=3e-3, weight_decay=0.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    weights = accelerator.unwrap_model(model).retention_weights
    model.train()
    losses = []
    for _ in range(8):
        for batch in loader:
            outputs = model(**batch)
            loss = outputs.loss
            losses.append(loss.item())
            if weights is not None:
                loss = loss + 0.1 * outputs.retention_penalty
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if weights is not None:
                clamp_retention_weights(weights)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    if weights is not None:
        # Encoder L hands on [CLS] alone, so nothing is learned of it.
        masses = retention_mass(weights.detach())
        assert (masses[:2] < 16).all()
        assert masses[2] == pytest.approx(24, abs=0.2)
        assert 0 <= weights.min() <= weights.max() <= 1


def test_a_model_is_built_without_memory_and_then_loaded(host, batch, tmp_path):
    ours = host.make(**HARD)
    ours.save_pretrained(tmp_path)
    with init_empty_weights():
        empty = host.classifier(ours.config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map="cpu").eval()
    assert torch.equal(loaded(**batch).logits, ours(**batch).logits)


@pytest.mark.parametrize("fields", [HARD, SOFT], ids=["hard", "soft"])
def test_hooks_of_accelerate_change_no_answer(host, batch, fields):
    """As with weights that lie elsewhere: word-vectors, and what is known of them, pass through every hook."""
    wanted = host.make(**fields)(**batch)
    dispatched = dispatch_model(host.make(**fields), device_map={"": "cpu"}, force_hooks=True)
    offloaded = cpu_offload(host.make(**fields), execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    for model in (dispatched, offloaded):
        outputs = model(**batch, output_kept_positions=True)
        torch.testing.assert_close(outputs.logits, wanted.logits, atol=1e-6, rtol=0)
        assert len(outputs.kept_positions) == 3


@pytest.mark.slow
def test_examples_run_under_accelerate_launch(tmp_path):
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1", "--cpu"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no"]
    subprocess.run(
        [*launch, str(EXAMPLES / "with_your_own_trainer.py"), "--smoke", f"--output-dir={out}"],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert AutoModelForSequenceClassification.from_pretrained(out).config.active_retention_mode == "hard"
