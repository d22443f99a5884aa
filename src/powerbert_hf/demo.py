# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A task and a model small enough to show all three steps offline: invented hotel reviews, most of them small talk.

A review has one to six sentences. One or two of them say something good or bad, sometimes by its negation; the rest is
filler. A few words of a text decide its class; a share of the labels is wrong, as in life, so no model can get all of
them right.
"""

import csv
from pathlib import Path

import numpy as np
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, set_seed

from .files import whole_folder


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(",")]


_THINGS = _phrases(
    "room, bed, shower, balcony, breakfast, lobby, pool, elevator, bar, garden, staff, manager, driver, waiter, "
    "window, kitchen, coffee, bathroom, terrace, parking"
)
_PEOPLE = _phrases("we, they, my sister, our friends, the children, a colleague, my parents, the group")
_DID = _phrases(
    "arrived, walked, drove, called, looked, stopped, waited, went, sat, talked, checked, ate, unpacked, returned"
)
_WHERE = _phrases(
    "near the station, after the conference, on the second floor, before the long drive, during the week, "
    "by the river, around noon, in the old town, next to the church, late in the evening, with two large bags"
)
_GOOD = _phrases("wonderful, friendly, spotless, quiet, delicious, generous, charming, comfortable, excellent, superb")
_BAD = _phrases("dirty, rude, noisy, broken, awful, cold, stale, cramped, terrible, smelly")
_HOW = _phrases("really, very, quite, rather, simply")

TRAIN_ROWS, EVAL_ROWS = 12000, 1000
_WRONG_LABELS = 0.06


def make_reviews(rows: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Invented reviews with their class.

    Args:
        rows: how many.
        rng: where they come from.

    Returns:
        Pairs of text and `"good"` or `"bad"`.
    """

    def pick(words: list[str]) -> str:
        return words[rng.integers(len(words))]

    def filler() -> str:
        sentence = f"{pick(_PEOPLE)} {pick(_DID)} {pick(_WHERE)}"
        if rng.random() < 0.5:
            sentence += f" and {pick(_DID)} {pick(_WHERE)}"
        return sentence

    def opinion(good: bool) -> str:
        negated = rng.random() < 0.2
        word = pick(_GOOD if good != negated else _BAD)
        return f"the {pick(_THINGS)} was {'not ' if negated else ''}{pick(_HOW)} {word}"

    reviews = []
    for _ in range(rows):
        good = bool(rng.integers(2))
        said = [good] * (1 + int(rng.random() < 0.4))
        sentences = [opinion(one) for one in said] + [filler() for _ in range(rng.integers(0, 5))]
        rng.shuffle(sentences)
        label = good != (rng.random() < _WRONG_LABELS)
        reviews.append((" . ".join(sentences) + " .", "good" if label else "bad"))
    return reviews


def make_demo(folder: Path, seed: int = 0) -> list[str]:
    """Write the demo's inputs: two csv files and an untrained BERT with its tokenizer.

    Args:
        folder: where; made anew unless it is there already.
        seed: of texts and first weights.

    Returns:
        The options of `powerbert train` that train on them.

    Raises:
        ValueError: for a negative seed.
    """
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}; leave it out for the default.")
    folder = folder.with_name(f"{folder.name}-{seed}")
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            rng = np.random.default_rng(seed)
            words: set[str] = set()
            for name, rows in (("train", TRAIN_ROWS), ("eval", EVAL_ROWS)):
                reviews = make_reviews(rows, rng)
                words.update(word for text, _ in reviews for word in text.split())
                with open(partial / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([("text", "label"), *reviews])
            special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            vocabulary = {word: number for number, word in enumerate([*special, *sorted(words)])}
            BertTokenizer(vocab=vocabulary, model_max_length=128).save_pretrained(partial / "model")
            set_seed(seed)
            config = BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=512,
                max_position_embeddings=128,
                attention_probs_dropout_prob=0.0,
                initializer_range=0.05,
            )
            BertForSequenceClassification(config).save_pretrained(partial / "model")
    return [
        f"--model={folder / 'model'}",
        f"--train-file={folder / 'train.csv'}",
        f"--eval-file={folder / 'eval.csv'}",
        "--num-train-epochs=3",
        "--learning-rate=5e-4",
    ]
