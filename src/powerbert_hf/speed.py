# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `powerbert benchmark`: which model, on which inputs."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from .arguments import BenchmarkArguments
from .benchmark import Features, Measurement, benchmark, hardware, make_batches
from .checkpoint import FETCH_AGAIN, load_classifier, load_config, load_tokenizer, reading
from .configuration_powerbert import RETENTION_FIELDS
from .cost import encoder_multiply_accumulates, stock_encoder_multiply_accumulates
from .drawing import check_picture
from .files import check_new
from .lengths import draw_lengths, random_features
from .modeling_power import RetentionSequenceClassifierMixin
from .profiling import encoder_seconds, peak_memory
from .retention_file import shape_of
from .texts import read_texts, tokenize_texts


def run_benchmarks(options: BenchmarkArguments) -> Iterator[dict[str, Any]]:
    """Measure a model with each dtype, on each kind of inputs, in batches of each size.

    Args:
        options: what was asked for.

    Yields:
        First what all measurements share, then one after the other, as `json` can write them.

    Raises:
        ValueError: for input that cannot be used; but for models that do not agree, before anything is measured.
    """
    check_options(options)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        yield from _measurements(options)
    finally:
        torch.set_num_threads(threads)


def _measurements(options: BenchmarkArguments) -> Iterator[dict[str, Any]]:
    ours, has_weights = load_ours(options)
    smaller = None if options.smaller_model is None else _load_stock(options.smaller_model, options.seed)
    named = list(_inputs(options, ours, smaller))
    config = ours.config
    yield {
        "model": options.model,
        "model_type": config.model_type,
        "encoders": config.num_encoders,
        "hidden_size": config.hidden_size,
        "random_weights": not has_weights,
        "smaller_model": options.smaller_model,
        "retention_config": config.retention_config,
        "retention_unit": config.retention_unit,
        "seed": options.seed,
        "hardware": hardware(torch.device(options.device)),
    }
    compiled = ["ours-compiled"] if "d" in options.baselines else []
    ways = [*options.baselines, "e" if smaller is not None else "c", "ours", "ours-arrival", *compiled]
    for dtype in options.dtypes:
        model = copy.deepcopy(ours).to(options.device, getattr(torch, dtype))
        for name, features, padded_to in named:
            for batch_size in options.batch_sizes:
                measured = benchmark(
                    model, features, batch_size, ways, None, smaller, padded_to, repeats=options.repeats
                )
                yield {"lengths": name, **measured.to_dict(), **_profile(options, model, features, measured)}


def check_options(options: BenchmarkArguments) -> None:
    """Refuse options that cannot be used.

    Raises:
        ValueError: with the rule, the value received and the remedy.
        ImportError: for a png where nothing can make one.
    """
    for name in ("batch_sizes", "inputs", "repeats", "threads", "max_length"):
        values = getattr(options, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, got {value}.")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"`--seed` must be from 0 to 2**32 - 1, got {options.seed}.")
    if (options.texts is None) == (options.lengths is None):
        raise ValueError(
            "Pass either `--lengths`, such as rte or 128, or `--texts` with a file of your own, got both or neither: "
            "speed depends on lengths."
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a CUDA device, got none that torch can use; leave it out.")
    if options.output is not None and Path(options.output).suffix.lower() != ".json":
        raise ValueError(f"`--output` must end in .json, got {options.output}; choose another name.")
    if options.plot is not None:
        check_picture(options.plot)
    for path in (options.output, options.plot):
        if path is not None:
            check_new(Path(path), options.overwrite)


def _is_config_only(model: str) -> bool:
    folder = Path(model)
    return folder.is_dir() and not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir())


def _load_stock(name: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    with reading(f"The model {name}", FETCH_AGAIN):
        if _is_config_only(name):
            model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(name)).float()
        else:
            model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32)
    return model.to_stock() if isinstance(model, RetentionSequenceClassifierMixin) else model


def load_ours(options: BenchmarkArguments) -> tuple[PreTrainedModel, bool]:
    """The model in hard mode, and whether its weights are those of a checkpoint."""
    config = load_config(options.model)
    fields: dict[str, Any] = {"retention_mode": None}
    if options.retention_config is not None:
        unit, entries = options.retention_unit or "fraction", options.retention_config
        whole = unit == "words" and all(entry.is_integer() for entry in entries)
        fields |= {"retention_config": [int(entry) for entry in entries] if whole else entries}
        fields |= {"retention_unit": unit}
    elif options.retention_unit is not None:
        raise ValueError("`--retention-unit` says what `--retention-config` means, got none of these; pass both.")
    elif getattr(config, "retention_config", None) is None:
        raise ValueError(
            f"A benchmark needs a retention configuration, got none in {options.model}; pass the share that each of "
            f"the {shape_of(config)[1]} encoders keeps of its word-vectors, such as `--retention-config 0.9 0.6 "
            "0.4` for three."
        )
    # Speed does not depend on what the weights are.
    torch.manual_seed(options.seed)
    if not _is_config_only(options.model):
        return load_classifier(options.model, **fields), True
    own = {name: getattr(config, name) for name in RETENTION_FIELDS if hasattr(config, name)}
    return load_classifier(_load_stock(options.model, options.seed), **{**own, **fields}), False


def _inputs(
    options: BenchmarkArguments, ours: PreTrainedModel, smaller: PreTrainedModel | None
) -> Iterator[tuple[str, Features, int]]:
    """Each kind of inputs: its name, the inputs, and N."""
    configs = [model.config for model in (ours, smaller) if model is not None]
    vocab_size = min(config.vocab_size for config in configs)
    longest = min(config.max_position_embeddings for config in configs)
    limit = options.max_length or longest
    if limit > longest:
        raise ValueError(f"`--max-length` must be at most what the model takes ({longest}), got {limit}; lower it.")
    if options.texts is not None:
        data, columns = read_texts(options.texts, options.text_columns, options.inputs, options.seed)
        tokenizer = load_tokenizer(options.model, ours.config)
        fits = min(limit, tokenizer.model_max_length)
        features = tokenize_texts(data, columns, tokenizer, ours.config, fits)
        largest = max(max(row["input_ids"]) for row in features)
        if largest >= vocab_size:
            raise ValueError(
                f"`--smaller-model` must know the word-pieces of the model's tokenizer, got {vocab_size} where one "
                f"has number {largest}; choose one with the same tokenizer."
            )
        yield Path(options.texts).name, features, options.max_length or max(len(row["input_ids"]) for row in features)
    for name in options.lengths or []:
        lengths, padded_to = draw_lengths(name, options.inputs, options.seed)
        if name.isdecimal() and padded_to > limit:
            raise ValueError(f"`--lengths` must be at most what the model takes ({limit}), got {name}; lower it.")
        padded_to = min(options.max_length or padded_to, limit)
        lengths = [min(length, padded_to) for length in lengths]
        yield name, random_features(lengths, vocab_size, options.seed), padded_to


def _profile(
    options: BenchmarkArguments, ours: PreTrainedModel, features: Features, measured: Measurement
) -> dict[str, Any]:
    """What is measured in passes of its own, where it was asked for."""
    found: dict[str, Any] = {}
    if not (options.per_encoder or options.peak_memory):
        return found
    models = {"stock": ours.to_stock(), "ours": ours.eval()}
    by_length = sorted(features, key=lambda row: len(row["input_ids"]))
    batches = make_batches(by_length, measured.batch_size, ours.device)
    if options.per_encoder:
        lengths = torch.tensor([len(row["input_ids"]) for row in features])
        stock_cost = [stock_encoder_multiply_accumulates(ours.config, lengths).sum().item()] * ours.config.num_encoders
        found["per_encoder"] = {
            "seconds": encoder_seconds(models, batches, options.repeats),
            "multiply_accumulates": {
                "stock": stock_cost,
                "ours": encoder_multiply_accumulates(ours.config, lengths).sum(dim=1).tolist(),
            },
        }
    if options.peak_memory:
        # The longest inputs are in the last batch that is full.
        batch = batches[-1] if len(batches) == 1 else batches[len(features) // measured.batch_size - 1]
        found["peak_memory"] = {name: peak_memory(model, batch) for name, model in models.items()}
    return found
