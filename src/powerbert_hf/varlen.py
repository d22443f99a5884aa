# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention of packed inputs on CUDA, and the significance without a T * T matrix. Written from torch's source.

Not measured: no CUDA device has run this yet. What is arithmetic in it is tested on a CPU.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

# Flash attention takes head sizes that are multiples of this.
_HEAD_SIZE_STEP = 8
# A log-sum-exp in float32 is the sum of this many bf16 numbers.
_PARTS = 3
# What flash attention takes; the second pass adds one step.
_LARGEST_HEAD = 256

AttentionWithLse = Callable[[Tensor, Tensor, Tensor, Sequence[int], Sequence[int], float], tuple[Tensor, Tensor]]


def takes_varlen(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether `varlen_attention` and `significance_from_lse` run there: torch's flash attention does.

    Args:
        device: of the inputs.
        dtype: of the products.
        head_size: D/H.
    """
    # On ROCm, which goes by the same name, the log-sum-exp has another shape.
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    try:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn  # noqa: F401
    except ImportError:
        return False
    return (
        dtype in (torch.float16, torch.bfloat16)
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and head_size % _HEAD_SIZE_STEP == 0
        and head_size + _HEAD_SIZE_STEP <= _LARGEST_HEAD
    )


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, queries: Sequence[int], keys: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """`torch.nn.attention.varlen.varlen_attn` (torch 2.13), in half precision on CUDA.

    Args:
        query: (Q, H, D/H), those of each input in turn.
        key: (S, H, D/H).
        value: (S, H, D/H).
        queries: how many queries each input has.
        keys: how many keys.
        scale: factor on the scores before the softmax.

    Returns:
        The context (Q, H, D/H), and the log-sum-exp of each query's scores (H, Q) in float32.
    """
    # Here, so that models on a CPU, as code beside a checkpoint, also run on a torch that has none of it.
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    def ends(lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)

    context, lse = varlen_attn(
        query,
        key,
        value,
        ends(queries),
        ends(keys),
        max(queries),
        max(keys),
        scale=scale,
        return_aux=AuxRequest(lse=True),
    )
    return context, lse


def significance_from_lse(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    lengths: Sequence[int],
    scale: float,
    attention: AttentionWithLse = varlen_attention,
) -> Tensor:
    """The significance, by a second pass of attention with queries and keys swapped.

    With `lse_q` the log-sum-exp of query q, the attention that key k receives is the sum over q of
    `exp(scale * q.k - lse_q)`: again the exponential of a log-sum-exp, that of k over the queries, each of them with
    `-lse_q / scale` as one more feature and k with 1 there. Half precision would round that feature away, so it is
    given in parts.

    Args:
        query: (S, H, D/H).
        key: (S, H, D/H).
        lse: (H, S) from `attention` of these.
        lengths: word-vectors of each input.
        scale: factor on the scores before the softmax.
        attention: of packed inputs, see `varlen_attention`.

    Returns:
        (S,) in float32, as `retention.significance` of each input.
    """
    rest = (-lse.T / scale)[..., None]  # (S, H, 1)
    parts = []
    for _ in range(_PARTS):
        parts.append(rest.to(query.dtype))
        rest = rest - parts[-1].float()
    spare = query.new_zeros(*query.shape[:2], _HEAD_SIZE_STEP - _PARTS)
    with_lse = torch.cat([query, *parts, spare], dim=-1)
    with_ones = torch.cat([key, *[torch.ones_like(part) for part in parts], spare], dim=-1)
    _, received = attention(with_ones, with_lse, with_lse, lengths, lengths, scale)  # (H, S)
    own = (query.float() * key.float()).sum(dim=-1).T * scale - lse
    return (received.exp() - own.exp()).sum(dim=0)
