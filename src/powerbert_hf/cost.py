# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a configuration costs on inputs of given lengths: multiply-accumulates, and the speed-up they predict.

Counted are the matrix products of the encoders. With `c` word-vectors in, `q` queries and `k` word-vectors out, one
encoder takes `2cD^2 + qD^2 + 2cqD + k(D^2 + 2DF)`: keys and values, queries, scores and context, output projection and
feed-forward network. Embeddings, pooler, classifier, softmax and the significance are not counted.
"""

from typing import Any

import torch
from torch import Tensor

from .retention import retention_count


def received_and_kept(config: Any, lengths: Tensor, cls_only: bool = True) -> tuple[Tensor, Tensor]:
    """Word-vectors that enter and leave every encoder.

    Args:
        config: a PoWER configuration; all is retained if it is off.
        lengths: (B,) integers, real word-vectors of each input.
        cls_only: whether the model has a classification head.

    Returns:
        Two (L, B) integer tensors.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(active_retention_mode="hard", num_encoders=3, retention_config=[0.5, 0.25, 0.1],
        ...                          retention_unit="fraction")
        >>> [counts.flatten().tolist() for counts in received_and_kept(config, torch.tensor([8]))]
        [[8, 4, 2], [4, 2, 1]]
    """
    lengths = lengths.long()
    kept = [lengths] * config.num_encoders
    if config.active_retention_mode != "off":
        if config.active_retention_mode == "hard":
            kept = [retention_count(entry, lengths, config.retention_unit) for entry in config.retention_config]
        if cls_only:
            kept[-1] = torch.ones_like(lengths)
    return torch.stack([lengths, *kept[:-1]]), torch.stack(kept)


def multiply_accumulates(config: Any, lengths: Tensor, cls_only: bool = True) -> Tensor:
    """Multiply-accumulates of the encoders, per input.

    Args:
        config: a PoWER configuration; the stock model's cost if it is off.
        lengths: (B,) integers, real word-vectors of each input.
        cls_only: whether the model has a classification head.

    Returns:
        (B,) integers.

    Example:
        One encoder of a stock model, D = 2 and F = 4, on 3 word-vectors: 3 * (4 * 4 + 2 * 3 * 2 + 2 * 2 * 4).

        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(active_retention_mode="off", num_encoders=1, hidden_size=2, intermediate_size=4)
        >>> multiply_accumulates(config, torch.tensor([3])).item()
        132
    """
    return encoder_multiply_accumulates(config, lengths, cls_only).sum(dim=0)


def encoder_multiply_accumulates(config: Any, lengths: Tensor, cls_only: bool = True) -> Tensor:
    """Multiply-accumulates of each encoder, per input.

    Args:
        config: a PoWER configuration; the stock model's cost if it is off.
        lengths: (B,) integers, real word-vectors of each input.
        cls_only: whether the model has a classification head.

    Returns:
        (L, B) integers.
    """
    received, kept = received_and_kept(config, lengths, cls_only)
    # An earlier encoder has a single query too where all of a batch keep [CLS] alone, but what an input costs must not
    # depend on the others.
    queried = received.clone()
    if cls_only and config.active_retention_mode != "off":
        queried[-1] = 1
    return multiply_accumulates_of(config, received, queried, kept)


def stock_encoder_multiply_accumulates(config: Any, lengths: Tensor) -> Tensor:
    """Multiply-accumulates of any one encoder of the stock model, per input.

    Args:
        config: a PoWER configuration, of which only the sizes count.
        lengths: (B,), real word-vectors of each input.

    Returns:
        (B,), whole numbers of whole ones.
    """
    # In a small type of integers the products overflow.
    lengths = lengths if lengths.is_floating_point() else lengths.long()
    return multiply_accumulates_of(config, lengths, lengths, lengths)


def multiply_accumulates_of(config: Any, received: Tensor, queried: Tensor, kept: Tensor) -> Tensor:
    """Multiply-accumulates of one encoder, from the numbers of its word-vectors.

    Args:
        config: a PoWER configuration, of which only the sizes count.
        received: c, word-vectors in.
        queried: q, those of them that attend.
        kept: k, word-vectors out.

    Returns:
        Of the shape and type of the numbers, which need not be whole.
    """
    hidden, forward = config.hidden_size, config.intermediate_size
    projections = (2 * received + queried + kept) * hidden**2
    return projections + 2 * received * queried * hidden + 2 * kept * hidden * forward


def predicted_speedup(config: Any, lengths: Tensor, cls_only: bool = True) -> float:
    """How many times fewer multiply-accumulates than the stock model, on unpadded inputs of these lengths.

    Args:
        config: a PoWER configuration.
        lengths: (B,) integers, real word-vectors of each input.
        cls_only: whether the model has a classification head.

    Returns:
        The stock model's multiply-accumulates over this configuration's, at least 1.
    """
    stock = config.num_encoders * stock_encoder_multiply_accumulates(config, lengths)
    return (stock.sum() / multiply_accumulates(config, lengths, cls_only).sum()).item()


def share_kept(config: Any, lengths: Tensor, cls_only: bool = True) -> list[float]:
    """The share of all real word-vectors of these inputs that leaves each encoder.

    Args:
        config: a PoWER configuration.
        lengths: (B,) integers, real word-vectors of each input.
        cls_only: whether the model has a classification head.

    Returns:
        L numbers in (0, 1].
    """
    _, kept = received_and_kept(config, lengths, cls_only)
    return (kept.sum(dim=1) / lengths.sum()).tolist()
