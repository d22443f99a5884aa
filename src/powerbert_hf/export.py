# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Models for other runtimes: ONNX, in float32 or with linear layers in int8; and back to upstream's own classes."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .agreement import TOLERANCE
from .checkpoint import load_classifier, load_tokenizer
from .files import check_free, whole_folder

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Batch and length, to trace and to check: also one word-vector, and fewer than any configuration would keep.
_TRACED = (5, 12)
_CHECKED = ((1, 1), (3, 1), (2, 2), (4, 5), (3, 12), (2, 40))


def export_onnx(
    model: PreTrainedModel, path: str | Path, int8: bool = False, input_names: Sequence[str] = _INPUTS
) -> float:
    """Write a classifier as one ONNX file for any batch size and length, and check it on ONNX Runtime.

    Args:
        model: a classifier of this package, not in soft mode, or upstream's BERT or ALBERT.
        path: of the file; one that is there is replaced.
        int8: quantise the linear layers, dynamically: weights now, activations as they come.
        input_names: what the file takes, each (batch, length) of int64; it gives `logits`.

    Returns:
        The largest difference between its logits and the model's; relatively where those exceed 1, as a regression's.

    Raises:
        ImportError: where ONNX or its runtime is not installed.
        ValueError: for soft mode, or another dtype than float32; or where the file would not answer as the model does.
            Then nothing is written.
    """
    _check_installed()
    if getattr(model.config, "active_retention_mode", None) == "soft":
        raise ValueError(
            "A model in soft mode eliminates nothing yet, so there is nothing to export; set a configuration with "
            "`set_retention` first."
        )
    if model.dtype != torch.float32:
        raise ValueError(
            f"A model must be in float32 to be exported, got {str(model.dtype).removeprefix('torch.')}; convert it by "
            "`.float()`, and pass `int8=True` for a smaller file."
        )
    path = Path(path)
    with TemporaryDirectory(dir=path.parent) as folder, _only_logits(model):
        whole = Path(folder, "float.onnx")
        _trace(model, input_names).save(whole, external_data=False)
        difference = _difference(model, whole, input_names)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The exported file must answer as the model does, got logits that are {difference:.2g} apart; report "
                "it with the model's configuration."
            )
        if int8:
            whole = _quantized(whole)
            difference = _difference(model, whole, input_names)
        whole.replace(path)
    return difference


@contextmanager
def _only_logits(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode, without what else its configuration may ask for."""
    training, config = model.training, model.config
    asked = {name: getattr(config, name) for name in ("output_hidden_states", "output_attentions", "return_dict")}
    model.eval()
    config.output_hidden_states, config.output_attentions, config.return_dict = False, False, True
    try:
        yield
    finally:
        model.train(training)
        for name, value in asked.items():
            setattr(config, name, value)


def export_folder(model: str | Path, folder: str | Path, int8: bool = False, stock: bool = False) -> float | None:
    """Write a folder, whole or not at all: `model.onnx` and what belongs to it, or a checkpoint of upstream's class.

    Args:
        model: a Hub id or a folder: BERT or ALBERT, stock or ours, with a classification head.
        folder: must not be there, or be empty.
        int8: see [`export_onnx`].
        stock: write the same weights as upstream's BERT or ALBERT, which eliminates nothing, in place of ONNX.

    Returns:
        See [`export_onnx`]; `None` for a checkpoint.

    Raises:
        ImportError: where ONNX or its runtime is not installed.
        ValueError: for a folder or a model that cannot be used, or an export that does not answer as the model does.
    """
    folder = Path(folder)
    check_free(folder)
    if int8 and stock:
        raise ValueError("`--int8` is for ONNX and `--stock` for a checkpoint, got both; leave one out.")
    if not stock:
        _check_installed()
    classifier = load_classifier(model, needs_head=True, dtype="auto" if stock else torch.float32).eval()
    tokenizer = load_tokenizer(model, classifier.config)
    difference = None
    with whole_folder(folder) as partial:
        tokenizer.save_pretrained(partial)
        if stock:
            classifier.to_stock().save_pretrained(partial)
        else:
            classifier.config.save_pretrained(partial)
            names = [name for name in _INPUTS if name in tokenizer.model_input_names]
            difference = export_onnx(classifier, partial / "model.onnx", int8, names)
    return difference


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'To export to ONNX, `pip install "powerbert_hf[onnx]"`; {error.name} is missing.'
        ) from error


def _inputs(config: Any, names: Sequence[str], size: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs: the first fills the length, each of the others is shorter than the one before."""
    length = min(length, config.max_position_embeddings)
    shape, generator = (size, length), torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.arange(length, length - size, -1).clamp(min=1)[:, None]
    kinds = torch.arange(length) * config.type_vocab_size // length
    inputs = {
        "input_ids": torch.randint(config.vocab_size, shape, generator=generator),
        "attention_mask": mask.long(),
        "token_type_ids": kinds * mask,
    }
    return {name: inputs[name] for name in names}


def _trace(model: PreTrainedModel, names: Sequence[str]) -> Any:
    """`torch.onnx.ONNXProgram` of a model."""
    sample = {name: values.to(model.device) for name, values in _inputs(model.config, names, *_TRACED).items()}
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    attention = model.config._attn_implementation
    # Attention as plain products: the graph computes them once for the context and for the significance.
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            shapes = dict.fromkeys(sample, free)
            program = torch.export.export(model, (), sample, dynamic_shapes=shapes, strict=False)
    finally:
        model.set_attn_implementation(attention)
    for node in program.graph.nodes:
        # The exporter knows only the other one; in ONNX it is stable, too.
        if node.target is torch.ops.aten.sort.stable:
            node.target = torch.ops.aten.sort.default
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "stable"}
    traced: Any = torch.onnx.export(
        program, (), kwargs=sample, input_names=list(names), output_names=["logits"], verbose=False
    )
    graph = traced.model.graph
    for value in [value for node in graph for value in node.inputs if value is not None]:
        # onnxscript 0.7 forgets these constants where it makes one Clip of a Min and a Max.
        if value.producer() is None and value.const_value is not None and value.name not in graph.initializers:
            graph.register_initializer(value)
    return traced


@torch.inference_mode()
def _difference(model: PreTrainedModel, path: Path, names: Sequence[str]) -> float:
    """See `export_onnx`; over shapes. Of two draws the better: a near tie may fall either way once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def of_a_draw(shape: tuple[int, int], seed: int) -> float:
        inputs = _inputs(model.config, names, *shape, seed)
        (found,) = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        wanted = model(**{name: values.to(model.device) for name, values in inputs.items()}).logits.cpu()
        return ((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)).item()

    return max(min(of_a_draw(shape, seed) for seed in (1, 2)) for shape in _CHECKED)


def _quantized(whole: Path) -> Path:
    """The same with linear layers in int8, beside it."""
    from onnxruntime.quantization import quantize_dynamic

    path = whole.with_name("int8.onnx")
    # It recommends a step that is for networks of convolutions.
    logging.getLogger().addFilter(_no_preprocessing)
    try:
        # Weights of seven bits: with eight, sums saturate on processors without VNNI.
        quantize_dynamic(whole, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True)
    finally:
        logging.getLogger().removeFilter(_no_preprocessing)
    return path


def _no_preprocessing(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
