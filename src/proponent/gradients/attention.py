"""Multi-head attention written out, so that its projections can be seen one by one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None] | None:
    """Do what ``torch.nn.functional.multi_head_attention_forward`` does, in visible steps.

    The arguments are torch's. Returns None for the rare options that are not written out here
    (extra key and value biases, static keys, dropout in training), which the caller then leaves
    to torch.
    """
    rare = (bias_k, bias_v, static_k, static_v)
    if any(option is not None for option in rare) or add_zero_attn or (training and dropout_p > 0):
        return None
    if query.ndim != 3:
        return None
    query_bias, key_bias, value_bias = (
        (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    )
    if use_separate_proj_weight:
        if q_proj_weight is None or k_proj_weight is None or v_proj_weight is None:
            return None
        q = functional.linear(query, q_proj_weight, query_bias)
        k = functional.linear(key, k_proj_weight, key_bias)
        v = functional.linear(value, v_proj_weight, value_bias)
    elif in_proj_weight is None:
        return None
    elif query is key and key is value:
        q, k, v = functional.linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
    else:
        query_weight, key_weight, value_weight = in_proj_weight.chunk(3)
        q = functional.linear(query, query_weight, query_bias)
        k = functional.linear(key, key_weight, key_bias)
        v = functional.linear(value, value_weight, value_bias)
    q, k, v = (_heads(part, num_heads) for part in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    mask = _mask(attn_mask, key_padding_mask, scores)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    mixed = (weights @ v).permute(2, 0, 1, 3).flatten(2)
    output = functional.linear(mixed, out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    return output, weights.mean(1) if average_attn_weights else weights


def _heads(projected: Tensor, num_heads: int) -> Tensor:
    """Turn (length, batch, width) into (batch, heads, length, width / heads)."""
    length, batch, width = projected.shape
    return projected.reshape(length, batch, num_heads, width // num_heads).permute(1, 2, 0, 3)


def _mask(attention: Tensor | None, padding: Tensor | None, scores: Tensor) -> Tensor | None:
    """Return the sum of both masks in the shape of the scores (batch, heads, length, keys)."""
    total: Tensor | None = None
    if attention is not None:
        additive = _additive(attention, scores)
        total = additive if additive.ndim == 2 else additive.view(scores.shape)
    if padding is not None:
        additive = _additive(padding, scores)[:, None, None, :]
        total = additive if total is None else total + additive
    return total


def _additive(mask: Tensor, scores: Tensor) -> Any:
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(mask, -math.inf)
