# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading the user's model: configuration, tokenizer, weights; what cannot be used is said in a sentence."""

import hashlib
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .modeling_poweralbert import PoWERAlbertForSequenceClassification
from .modeling_powerbert import PoWERBertForSequenceClassification
from .retention_file import final_model, hub_reason

_CLASSIFIERS: dict[str, type[PreTrainedModel]] = {
    "bert": PoWERBertForSequenceClassification,
    "powerbert": PoWERBertForSequenceClassification,
    "albert": PoWERAlbertForSequenceClassification,
    "poweralbert": PoWERAlbertForSequenceClassification,
}
FETCH_AGAIN = "check its name or folder, or fetch it again"
# Of the files of a model: its weights, and what they and its tokenizer need.
_WEIGHTS = ("safetensors", "bin")
_ENDINGS = (*_WEIGHTS, "json", "txt", "model")
# Upstream makes a name for each when it reads a configuration.
_MOST_LABELS = 100_000
# Weights that a checkpoint need not hold: a head begins anew, and retention weights are learned.
_NEW = re.compile(r"^classifier\.|\.pooler\.|retention_weights$")


def _class_for(model_type: str, model: Any) -> type[PreTrainedModel]:
    if model_type not in _CLASSIFIERS:
        raise ValueError(f"Only BERT and ALBERT models can be made faster here, got {model_type!r}: {model}.")
    return _CLASSIFIERS[model_type]


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever the reader of a file raises into one sentence: for a broken file libraries raise anything at all.

    Args:
        what: is read; the sentence begins with it.
        remedy: the sentence ends with it.

    Raises:
        ValueError: in place of any other error.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        # These say where they were; their cause says what was wrong.
        while isinstance(cause, (StrictDataclassError, DatasetGenerationError)) and cause.__cause__:
            cause = cause.__cause__
        reason = hub_reason(cause)
        if reason is not None:
            # Its remedy is in it.
            raise ValueError(f"{what} cannot be used: {reason}.") from error
        reason = textwrap.shorten(str(cause).partition(". Errors:")[0], 300, placeholder=" ...").rstrip(".")
        if isinstance(cause, LookupError):
            reason = f"{type(cause).__name__} {reason}"
        # A plain one is this package's, or as complete.
        remedy = "" if type(cause) is ValueError else f"; {remedy}"
        raise ValueError(f"{what} cannot be used: {reason}{remedy}.") from error


def hub_id(name: str | Path) -> str | None:
    """The name if it is one of the Hub, or `None` for a path of this machine, which is nobody else's business.

    Example:
        >>> hub_id("google-bert/bert-base-uncased"), hub_id("../weights/bert"), hub_id("")
        ('google-bert/bert-base-uncased', None, None)
    """
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return None
    return None if not name or Path(name).exists() else str(name)


def digest_of(model: str | Path) -> str | None:
    """What tells a model in a folder, and its tokenizer, from others that take their place there.

    Args:
        model: a folder; of a Hub id nothing is known.
    """
    found = hashlib.sha256()
    files = sorted(path for ending in _ENDINGS for path in Path(model).glob(f"*.{ending}"))
    for path in files:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest() if files else None


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Args:
        model: a Hub id or a folder: BERT or ALBERT, stock or ours.

    Raises:
        ValueError: for any other architecture, or for a configuration that cannot be read or run.
    """
    with reading(f"The configuration of {model}", FETCH_AGAIN):
        # Not by `AutoConfig`: it would ask whether to trust the code of an architecture that is of no use here.
        fields = PreTrainedConfig.get_config_dict(model)[0]
        found = fields.get("model_type")
    if found is None:
        final = final_model(model)
        remedy = f"{FETCH_AGAIN}." if final is None else f"did you mean {final}?"
        raise ValueError(f"A model must have a `config.json` with a `model_type`, got none in {model}; {remedy}")
    _class_for(found, model)
    labels = fields.get("num_labels", 2)
    if isinstance(labels, int) and labels > _MOST_LABELS:
        raise ValueError(
            f"A model must have at most {_MOST_LABELS:,} labels, got `num_labels` {labels} in {model}; correct it."
        )
    with reading(f"The configuration of {model}", FETCH_AGAIN):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    if config.id2label and set(config.id2label) != set(range(config.num_labels)):
        raise ValueError(
            f"`id2label` must name the labels from 0 on, got {', '.join(map(str, config.id2label))} in {model}; "
            "correct it."
        )
    return config


def load_tokenizer(model: str | Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Args:
        model: a Hub id or a folder.
        config: its configuration.

    Raises:
        ValueError: where there is none, or one that this model or a batch cannot do with.
    """
    with reading(f"The tokenizer of {model}", FETCH_AGAIN):
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except ValueError as error:
            if "tiktoken" not in str(error) or find_spec("sentencepiece"):
                raise
            # Upstream asks for a package that cannot read it either.
            raise ValueError(
                "it has no `tokenizer.json`; copy that, or, if it has a `spiece.model`, `pip install sentencepiece`"
            ) from error
    remedy = "save the tokenizer that the model was trained with beside it"
    # Without its files upstream makes one that knows no words.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"A model needs a tokenizer, got none in {model}; {remedy}.")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer must know no more word-pieces than the model ({config.vocab_size}), got {len(tokenizer)} "
            f"in {model}; {remedy}."
        )
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer must have a `pad_token` to make batches, got none in {model}; set one.")
    # On the left it would come to lie where classifiers read [CLS].
    tokenizer.padding_side = "right"
    # Where its files do not say, it would truncate nothing.
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return tokenizer


def classifier_config(model: str | Path | PreTrainedModel, **fields: Any) -> PreTrainedConfig:
    """The configuration of a classifier of this package for a checkpoint, without its weights.

    Args:
        model: a Hub id, a folder or a model: BERT or ALBERT, stock or ours.
        fields: to set in it.

    Raises:
        ValueError: for any other architecture, or for fields that contradict it.
    """
    config = model.config if isinstance(model, PreTrainedModel) else load_config(model)
    return _class_for(config.model_type, model).config_class(**{**config.to_dict(), **fields})


def load_classifier(
    model: str | Path | PreTrainedModel,
    needs_head: bool = False,
    dtype: torch.dtype | str = torch.float32,
    **fields: Any,
) -> PreTrainedModel:
    """A classifier of this package with some fields of its configuration set.

    Args:
        model: a Hub id, a folder or a model: BERT or ALBERT, stock or ours.
        needs_head: refuse a checkpoint without a classification head, rather than begin with a new one.
        dtype: of the weights of a checkpoint; `"auto"` is what they are kept in.
        fields: of the configuration. Weights that do not fit them, such as a head for other labels, begin anew.

    Raises:
        ValueError: for any other architecture, for fields that contradict it, or for weights that are missing.
    """
    planned = classifier_config(model, **fields)
    ours = _class_for(planned.model_type, model)
    misfits = {}
    if isinstance(model, PreTrainedModel):
        loaded = ours(planned)
        wanted = {name: weight.shape for name, weight in loaded.state_dict().items()}
        weights = {name: w for name, w in model.state_dict().items() if w.shape == wanted.get(name)}
        missing = set(loaded.load_state_dict(weights, strict=False).missing_keys)
    else:
        with reading(f"The checkpoint {model}", FETCH_AGAIN):
            _check_size(model, ours, planned)
            loaded, info = ours.from_pretrained(
                model, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **fields
            )
        misfits = {key: (held, wanted) for key, held, wanted in info["mismatched_keys"]}
        missing = {*info["missing_keys"], *misfits}
    beyond_head = sorted(name for name in missing if not _NEW.search(name))
    if beyond_head:
        raise ValueError(
            f"The checkpoint must hold all weights of its encoders, got {len(beyond_head)} missing or of another "
            f"shape than its configuration says, such as {beyond_head[0]}, in {model}; fetch or save it again."
        )
    if needs_head and "classifier.weight" in misfits:
        held, wanted = (shape[0] for shape in misfits["classifier.weight"])
        raise ValueError(
            f"The model's head must have as many labels as its configuration says, got {held} where that has {wanted} "
            f"in {model}; correct `id2label` there."
        )
    # Of a model that labels each token there is a classifier, but no pooler that it was trained on.
    if needs_head and any(name.startswith("classifier") or ".pooler." in name for name in missing):
        raise ValueError(
            f"The model must have a trained classification head, got none in {model}; fine-tune it first."
        )
    # What reads outputs here does so by name; a tuple has none.
    loaded.config.return_dict = True
    return loaded


def _check_size(model: str | Path, ours: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Make sure, before memory is taken for them, that a folder holds the weights that its configuration speaks of.

    Raises:
        ValueError: where even at a byte a weight its files could not.
    """
    files = [path for ending in _WEIGHTS for path in Path(model).glob(f"*.{ending}")]
    if not files:
        # On the Hub, or missing: upstream says so.
        return
    with torch.device("meta"):
        promised = ours(config)
    needed = sum(weight.numel() for name, weight in promised.named_parameters() if not _NEW.search(name))
    held = sum(path.stat().st_size for path in files)
    if needed > held:
        raise ValueError(
            f"its configuration speaks of {needed:,} weights, its files hold {held:,} bytes; correct it, or fetch the "
            "model again"
        )
