# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A retention configuration without training: the fastest one that leaves a model's own predictions as they are.

Nothing but forward passes on unlabelled texts is needed. The texts, each counted once however often it is there, are
divided at random:

* On the first part a path of configurations is searched, from full retention on, see [`sensitivity.search_path`].
* On the second part the configurations of the path are tested in their order, from gentle to fast, up to the first
  one whose agreement is not shown to reach what was asked for: its exact (Clopper-Pearson) lower bound at 95 %
  confidence is below. The last one before it is the result.

The order was settled before the second part was looked at, and testing ends with the first failure, so the chance of
a result that changes more predictions than allowed is at most 5 %, with no correction for the number of tests
(fixed-sequence testing, Maurer et al. 1995). This is about different texts like the given ones, drawn independently,
each counted once: where a few are much of what a model reads, whether these stay is for them to see. And it is about
the agreement with the model, not about its accuracy.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import binomtest
from transformers import PreTrainedModel

from .agreement import commonest, same_retention_after
from .benchmark import Features
from .checkpoint import hub_id, load_classifier, load_tokenizer
from .cost import predicted_speedup
from .files import check_free, whole_folder
from .retention_file import RetentionFile, spell_entries
from .sensitivity import check_model, comparison, search_path
from .texts import check_asked, read_texts, tokenize_texts

logger = logging.getLogger(__name__)

_CONFIDENCE = 0.95
# Texts to search on, at most; all others count in the bound.
_SEARCHED = 512


@dataclass(frozen=True)
class Candidate:
    """A configuration that was tested on the second part of the texts.

    Args:
        retention_config: L fractions.
        predicted_speedup: stock's multiply-accumulates over this configuration's, on all texts.
        agreement: share of texts whose prediction is that of the model at full retention.
        bound: the agreement's lower bound, one-sided at 95 % confidence, had this configuration alone been tested; of
            the one that is chosen no more than the target is shown.
    """

    retention_config: list[float]
    predicted_speedup: float
    agreement: float
    bound: float


@dataclass(frozen=True)
class Calibration:
    """What [`calibrate`] found.

    Args:
        chosen: the fastest configuration that was shown to reach `target`.
        tried: all that were tested, in their order; the last one failed, unless the path ended.
        target: the agreement that was asked for.
        searched: texts that the path was searched on.
        tested: texts that the agreement is of.
    """

    chosen: Candidate
    tried: tuple[Candidate, ...]
    target: float
    searched: int
    tested: int


def agreement_bound(agreed: int, tested: int) -> float:
    """The exact (Clopper-Pearson) lower bound of a share, one-sided at 95 % confidence.

    Args:
        agreed: texts whose prediction is the same.
        tested: texts.

    Example:
        >>> round(agreement_bound(299, 299), 4), round(agreement_bound(298, 299), 4)
        (0.99, 0.9842)
    """
    return float(binomtest(agreed, tested, alternative="greater").proportion_ci(_CONFIDENCE).low)


def texts_needed(agreement: float) -> int:
    """The fewest texts that can show an agreement, see [`divide`]: some to search on; of the others none may change.

    Args:
        agreement: in (0, 1).

    Raises:
        ValueError: for another number.

    Example:
        >>> texts_needed(0.99), texts_needed(0.95)
        (598, 118)
    """
    if not 0 < agreement < 1:
        raise ValueError(
            f"`agreement` must lie between 0 and 1, both excluded, got {agreement}; no number of texts can show that "
            "not one prediction in the world changes. 0.99 is the default."
        )
    tested = ceil(log(1 - _CONFIDENCE) / log(agreement))
    # By the bound that is tested, too: in the last bit they differ.
    tested += agreement_bound(tested, tested) < agreement
    return tested + min(tested, _SEARCHED)


def divide(texts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to search on, half of all but at most 512, and those to test on.

    Args:
        texts: how many there are.
        seed: of the draw.
    """
    drawn = np.random.default_rng(seed).permutation(texts)
    searched = min(_SEARCHED, (texts + 1) // 2)
    return drawn[:searched], drawn[searched:]


def calibrate(
    model: PreTrainedModel,
    features: Features,
    agreement: float = 0.99,
    batch_size: int = 32,
    bf16: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = logger.info,
) -> Calibration:
    """Find the fastest configuration that leaves a model's predictions as they are, and set it.

    Args:
        model: a classifier of this package that keeps all word-vectors, fine-tuned; it is put into evaluation mode,
            and has the configuration that was found when this returns.
        features: inputs as a tokenizer returns them, unpadded: texts like those the model is to be used on.
        agreement: share of predictions that must stay, in (0, 1): the class, or with several labels a text all of
            them.
        batch_size: inputs that the model reads at once.
        bf16: compute in bfloat16, here as in use.
        seed: of the draw that divides the texts.
        say: told what is going on, a line at a time.

    Raises:
        ValueError: for a model or an agreement that cannot be calibrated, for too few inputs, or where one answer to
            all of them would do; the model stays as it was.
    """
    check_model(model.config)
    needed = texts_needed(agreement)
    check_asked(features, batch_size=batch_size)
    given, features = len(features), _different(features)
    if len(features) < given:
        say(f"{given - len(features)} of {given} texts are there more than once, and count once")
    if len(features) < needed:
        best = floor(1000 * (1 - _CONFIDENCE) ** (1 / max(1, len(divide(len(features), seed)[1])))) / 1000
        raise ValueError(
            f"To show an agreement of {agreement:g}, at least {needed} different texts are needed, got "
            f"{len(features)}; pass more, or ask for a lower `agreement`: {best:g} would need all predictions to stay."
        )
    model.eval()
    first, second = ([features[row] for row in rows] for rows in divide(len(features), seed))
    lengths = torch.tensor([len(row["input_ids"]) for row in features])
    tried: list[Candidate] = []
    with same_retention_after(model):
        compare, answers = comparison(model, second, batch_size, bf16)
        alike = commonest(answers, model.config.problem_type)
        if agreement_bound(alike, len(second)) >= agreement:
            raise ValueError(
                f"`agreement` must be more than one answer to every text would reach, got {agreement:g} where "
                f"{alike / len(second):.2%} of the predictions are the same; ask for more than that, or pass texts of "
                "which more have another prediction."
            )
        model.set_retention(None)
        path = search_path(model, first, batch_size, bf16, say)
        for config in (point.retention_config for point in path):
            same, _ = compare(config)
            share, bound = same.double().mean().item(), agreement_bound(int(same.sum()), len(second))
            tried.append(Candidate(config, predicted_speedup(model.config, lengths), share, bound))
            say(
                f"testing: {spell_entries(config)}: {tried[-1].predicted_speedup:.2f}x predicted, "
                f"{share:.2%} agreement, at least {bound:.2%}"
            )
            if bound < agreement:
                break
    # The first one keeps everything, so it was not the one to fail.
    chosen = tried[-1] if tried[-1].bound >= agreement else tried[-2]
    model.set_retention(chosen.retention_config, unit="fraction")
    return Calibration(chosen, tuple(tried), agreement, len(first), len(second))


def _drawn(texts: Dataset, inputs: int, seed: int, say: Callable[[str], None]) -> Dataset:
    """So many of the different rows, each as likely as any other, in their order; how many are copies is said."""
    first: dict[tuple, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(tuple(text.values()), row)
    if len(first) < len(texts):
        say(f"{len(texts) - len(first)} of {len(texts)} texts are there more than once, and count once")
    drawn = np.random.default_rng(seed).permutation(list(first.values()))[:inputs]
    return texts.select(np.sort(drawn))


def _different(features: Features) -> Features:
    """Each input once: a copy shows nothing, and one that was searched on is none to test on."""
    return list({tuple((name, tuple(row[name])) for name in sorted(row)): row for row in features}.values())


def calibrate_folder(
    model: str | Path,
    texts: str | Path,
    output_dir: str | Path | None = None,
    text_columns: Sequence[str] | None = None,
    agreement: float = 0.99,
    inputs: int = 4096,
    max_length: int | None = None,
    batch_size: int = 32,
    bf16: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = logger.info,
) -> Calibration:
    """Calibrate a checkpoint on the texts of a file, and write it with the configuration that was found.

    Args:
        model: a Hub id or a folder: BERT or ALBERT with a trained classification head.
        texts: txt with a text a line, csv, tsv, json, jsonl, parquet or arrow.
        output_dir: a new folder for weights, configuration and tokenizer; `None` writes nothing.
        text_columns: one, or two for pairs; `None` where there is but one column of texts.
        agreement: see [`calibrate`].
        inputs: texts to use, at most; of more, so many are drawn.
        max_length: word-pieces to truncate to; `None` is what tokenizer and model take.
        batch_size: see [`calibrate`].
        bf16: see [`calibrate`].
        seed: of the draws.
        say: see [`calibrate`].

    Raises:
        ValueError: for files, columns, texts or a model that cannot be used; nothing is written.
    """
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None:
        check_free(folder)
    needed = texts_needed(agreement)
    if inputs < needed:
        raise ValueError(f"`--inputs` must be at least {needed} for an agreement of {agreement:g}, got {inputs}.")
    data, columns = read_texts(texts, text_columns)
    data = _drawn(data.select_columns(columns), inputs, seed, say)
    classifier = load_classifier(model, needs_head=True, dtype="auto")
    saved_as = classifier.dtype
    classifier.float()
    check_model(classifier.config)
    tokenizer = load_tokenizer(model, classifier.config)
    features = tokenize_texts(data, columns, tokenizer, classifier.config, max_length)
    if len(data) == inputs and (left := len(_different(features))) < needed:
        raise ValueError(
            f"To show an agreement of {agreement:g}, at least {needed} different inputs are needed, got {left} of "
            f"{inputs} texts, alike as they are cut; draw more by `--inputs`, or cut later by `--max-length`."
        )
    if torch.accelerator.is_available():
        classifier.to(torch.accelerator.current_accelerator())
    found = calibrate(classifier, features, agreement, batch_size, bf16, seed, say)
    if folder is not None:
        with whole_folder(folder) as partial:
            classifier.to(saved_as).save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            told = RetentionFile.of(
                classifier.config,
                base_model=hub_id(model),
                metric={
                    "name": "agreement",
                    "final": found.chosen.agreement,
                    "bound": found.target,
                    "inputs": found.tested,
                    "seed": seed,
                },
                speedup={"predicted": found.chosen.predicted_speedup},
            )
            told.save(partial)
    return found


def format_calibration(found: Calibration) -> str:
    """What the command prints at the end."""
    chosen = found.chosen
    ended = "the next one failed"
    if chosen is found.tried[-1]:
        ended = "the search, which goes down to a tenth of an input, found none that is faster"
    return (
        f"retention_config {spell_entries(chosen.retention_config)} (of an input)\n"
        f"{chosen.predicted_speedup:.2f}x fewer multiply-accumulates than stock on inputs of these lengths\n"
        f"{chosen.agreement:.2%} of {found.tested} predictions are those at full retention; shown for texts like "
        f"these, each counted once, at 95 % confidence: at least {found.target:.4g}\n"
        f"{len(found.tried)} configurations tested, searched on {found.searched} other texts; {ended}"
    )
