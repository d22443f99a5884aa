"""`sentence_transformers.CrossEncoder` on our models: the same scores as stock, saved, reloaded, fine-tuned."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

from conftest import without_dropout

HARD = {"retention_config": [0.8, 0.5, 0.3], "retention_unit": "fraction"}
FULL = {"retention_config": [1.0, 1.0, 1.0], "retention_unit": "fraction"}
PAIRS = [
    ("the film", "a great plot"),
    ("the film", "it was not very good and the cast was long but the plot is great"),
    ("bad", "short"),
    ("the cast", "the cast was very good and long"),
]


@pytest.fixture
def folder(own_tokenizer, tmp_path):
    """Save a model and its tokenizer as the Hub has them: nothing in the folder names sentence_transformers."""

    def save(model, name="model"):
        model.save_pretrained(tmp_path / name)
        own_tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_with_all_word_vectors_are_those_of_the_stock_model(host, folder, labels):
    ours = host.make(num_labels=labels, **FULL)
    stock = CrossEncoder(folder(ours.to_stock(), "stock"))
    encoder = CrossEncoder(folder(ours))
    assert type(stock.model) is host.stock
    assert type(encoder.model) is host.classifier
    assert encoder.predict(PAIRS).shape == ((4,) if labels == 1 else (4, 3))
    np.testing.assert_allclose(encoder.predict(PAIRS), stock.predict(PAIRS), atol=1e-5)
    if labels == 1:
        documents = [document for _, document in PAIRS]
        ranked, wanted = encoder.rank("the film", documents), stock.rank("the film", documents)
        assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in wanted]


def test_what_is_eliminated_does_not_depend_on_the_batch(host, folder):
    encoder = CrossEncoder(folder(host.make(num_labels=1, **HARD)))
    together = encoder.predict(PAIRS)
    np.testing.assert_allclose(encoder.predict(PAIRS, batch_size=1), together, atol=1e-5)
    np.testing.assert_allclose([encoder.predict(pair) for pair in PAIRS], together, atol=1e-5)
    encoder.model.set_retention(None)
    assert abs(encoder.predict(PAIRS) - together).max() > 1e-3


def test_the_model_receives_what_the_tokenizer_made(host, folder, own_tokenizer, monkeypatch):
    """Padded inputs with a mask of two dimensions; nothing packed, as it is for base models on flash attention."""
    encoder = CrossEncoder(folder(host.make(num_labels=1, **HARD)))
    received, forward = {}, type(encoder.model).forward

    # The encoder calls `forward` itself, so a hook would see nothing, and reads its signature, so it stays a method.
    def spy(model, *args, **inputs):
        received.update(inputs)
        return forward(model, *args, **inputs)

    monkeypatch.setattr(type(encoder.model), "forward", spy)
    encoder.predict(PAIRS)
    by_length = sorted(PAIRS, key=lambda pair: -len(" ".join(pair)))
    wanted = own_tokenizer([a for a, _ in by_length], [b for _, b in by_length], padding=True, return_tensors="pt")
    for name, values in wanted.items():
        assert torch.equal(received[name], values), name


def test_a_saved_encoder_is_a_faster_one_when_it_is_loaded_again(host, folder, tmp_path):
    encoder = CrossEncoder(folder(host.make(num_labels=1, **FULL)))
    encoder.model.set_retention(HARD["retention_config"], unit="fraction")
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"))
    assert type(again.model) is host.classifier
    assert again.model.config.retention_config == HARD["retention_config"]
    np.testing.assert_array_equal(again.predict(PAIRS), encoder.predict(PAIRS))
    # What it saved is a folder of transformers too.
    alone = host.classifier.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        logits = alone(**encoder.tokenizer(*PAIRS[0], return_tensors="pt")).logits
    assert torch.sigmoid(logits).item() == pytest.approx(encoder.predict(PAIRS[0]), abs=1e-5)


def test_an_encoder_is_fine_tuned_with_word_vectors_removed(host, folder, rows, tmp_path):
    encoder = CrossEncoder(folder(host.make(num_labels=1, **HARD)))
    without_dropout(encoder)
    labels = [float(row["label"] == "positive") for row in rows]
    data = Dataset.from_dict(
        {"query": ["the plot"] * len(rows), "text": [row["text"] for row in rows], "label": labels}
    )
    args = CrossEncoderTrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=8,
        learning_rate=1e-3,
        per_device_train_batch_size=16,
        logging_steps=4,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=0,
    )
    trainer = CrossEncoderTrainer(encoder, args, train_dataset=data, loss=BinaryCrossEntropyLoss(encoder))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert encoder.model.config.retention_config == HARD["retention_config"]
