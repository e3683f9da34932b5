"""Causal attention inside each history of a packed row: one function, interchangeable back ends.

Shape letters: B rows, R positions a row, T = B * R tokens, H heads, D head width.

`plan_attention` turns the documents of a batch into what the chosen back end needs, once per
forward; `attend` runs it. All back ends give the same numbers (tests/model/test_attention.py).
Packed input has no key-value cache: it would let histories see each other; cache.py serves one
history a row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

# queries that a varlen kernel works on at once
TILE = 128
# the count of boundaries is rounded up to it: torch.compile would make a kernel for every new count
BOUNDARY_BLOCK = 256


class Piece(NamedTuple):
    """Neighboring tokens of one history, or of padding."""

    length: int
    padding: bool


class AttentionPlan(NamedTuple):
    """What a back end needs to know of a batch; only the fields of the chosen one are filled."""

    backend: str
    mask: torch.Tensor | None = None  # (B, 1, R, R) bool, True where a query may look
    # (histories + 1,) int32 token index where each begins, then T again
    boundaries: torch.Tensor | None = None
    longest: int = 0  # no history has more events
    pieces: tuple[Piece, ...] = ()  # the histories of all rows, and padding, one after the other
    block_mask: Any = None  # FlexAttention's


def choose_backend(device: torch.device, half: bool, window: int) -> str:
    """The fastest back end that works here: flash-attn, else torch's varlen kernel, else SDPA.

    `half`: whether attention runs in fp16 or bf16; the varlen kernels take nothing else. They work
    in tiles of 128 queries, of which a short history fills a part: up to that `window`, SDPA on
    whole rows is faster (on an H200, with windows of 90: 422 against 343 thousand events a second;
    benchmarks/results/gpu_pass.jsonl). On a CPU too: rows of 1,024 cost four times as much as their
    histories, rows of 128 less.
    """
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8

    if ampere and half and window > TILE:
        if importlib.util.find_spec("flash_attn"):
            return "flash_attention_2"
        if importlib.util.find_spec("torch.nn.attention.varlen"):
            return "varlen"
    if device.type == "cpu" and window > TILE:
        return "by_history"
    # older GPUs, fp32, short windows
    return "sdpa"


def plan_attention(document: torch.Tensor, backend: str) -> AttentionPlan:
    """Plan for documents (B, R) int64; equal neighbors in a row are one history, each row starts a
    new one; padding is negative."""
    if backend in ("flash_attention_2", "varlen"):
        starts = _starts(document)
        # at least one T is appended: the end of the last history. Further ones are empty histories
        empty = BOUNDARY_BLOCK - len(starts) % BOUNDARY_BLOCK
        boundaries = torch.cat([starts, starts.new_full((empty,), document.numel())])
        # the longest history's length would have to come from the device; the row bounds it
        return AttentionPlan(backend, boundaries=boundaries.int(), longest=document.shape[1])

    if backend == "flex_attention":
        return AttentionPlan(backend, block_mask=_flex_mask(document))

    # a graph has to serve other histories than those that it is traced with
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if backend == "by_history" and not traced:
        starts = _starts(document)
        lengths = starts.diff(append=starts.new_tensor([document.numel()]))
        padding = document.flatten()[starts] < 0
        pieces = zip(lengths.tolist(), padding.tolist(), strict=True)
        return AttentionPlan(backend, pieces=tuple(map(Piece._make, pieces)))

    backend = "sdpa" if backend == "by_history" else backend
    length = document.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()  # (R, R)
    same = document[:, :, None] == document[:, None, :]  # (B, R, R)
    return AttentionPlan(backend, mask=(same & causal)[:, None])


def _starts(document: torch.Tensor) -> torch.Tensor:
    """(histories,) index among the T tokens where each one begins: where the document (B, R)
    changes, and at the first column of every row."""
    begins = torch.ones_like(document, dtype=torch.bool)  # (B, R)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return begins.flatten().nonzero().flatten()


def usable(backend: str, x: torch.Tensor) -> str:
    """`backend`, or SDPA where x (B, R, C) is computed in full precision and the back end is for
    half precision alone."""
    # autocast turns a float32 x into half precision before the kernel sees it
    half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type)
    return backend if half or backend not in ("flash_attention_2", "varlen") else "sdpa"


def plan_cached(mask: torch.Tensor, backend: str) -> AttentionPlan:
    """Plan for queries (B, H, R, D) that look at S cached keys by a mask (B, 1, R, S) bool."""
    # there the formula is twice as fast
    one_query_on_a_cpu = mask.shape[2] == 1 and mask.device.type == "cpu"
    return AttentionPlan("eager" if backend == "eager" or one_query_on_a_cpu else "sdpa", mask=mask)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """Softmax attention of (B, H, R, D) queries, keys and values -> (B, H, R, D)."""
    return BACKENDS[plan.backend](query, key, value, plan)


def by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, R, C) -> (B, H, R, D), the channels dealt to H heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """The formula, for reference: softmax(q k' / sqrt(D)) v."""
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5  # (B, H, R, R)
    assert plan.mask is not None

    # the smallest finite number, not -inf: a query that sees nothing would give NaN
    scores = scores.masked_fill(~plan.mask, torch.finfo(scores.dtype).min)
    return scores.float().softmax(-1).to(value.dtype) @ value


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """torch's own kernels, on whole rows with a mask (B, 1, R, R)."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=plan.mask)


def _by_history(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """torch's own kernels, on one history after the other: no mask, no work between histories."""
    lengths = [piece.length for piece in plan.pieces]
    split = [_tokens(x).split(lengths) for x in (query, key, value)]  # each (n, H, D)

    parts = []
    for (_, padding), *tokens in zip(plan.pieces, *split, strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in tokens)  # (1, H, n, D)
        if padding:
            parts.append(torch.zeros_like(tokens[2]))
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            parts.append(out[0].transpose(0, 1))

    return _rows(torch.cat(parts), query)


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """torch's own variable-length Flash Attention (CUDA, fp16 or bf16)."""
    from torch.nn.attention.varlen import varlen_attn

    # 2.10 had `is_causal`, 2.11 replaced it by a window of (all before, none after)
    causal: dict[str, Any] = (
        {"window_size": (-1, 0)} if torch.__version__ >= "2.11" else {"is_causal": True}
    )

    q, k, v = _tokens(query), _tokens(key), _tokens(value)
    # queries and keys have the same boundaries and lengths: this is self-attention
    ends = plan.boundaries
    assert ends is not None

    out = varlen_attn(q, k, v, ends, ends, plan.longest, plan.longest, **causal)
    assert isinstance(out, torch.Tensor)
    return _rows(out, query)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """flash-attn's variable-length kernel (CUDA, fp16 or bf16)."""
    from flash_attn import flash_attn_varlen_func

    q, k, v = _tokens(query), _tokens(key), _tokens(value)
    ends = plan.boundaries

    return _rows(
        flash_attn_varlen_func(q, k, v, ends, ends, plan.longest, plan.longest, causal=True), query
    )


def _flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> torch.Tensor:
    """FlexAttention of (B, H, R, D) with a block mask (CUDA; on a CPU it has no backward)."""
    out = _flex_kernel(query.device.type)(query, key, value, block_mask=plan.block_mask)
    assert isinstance(out, torch.Tensor)
    return out


@cache
def _flex_kernel(device: str) -> Callable[..., Any]:
    """FlexAttention as one kernel on a GPU; not compiled, it would hold all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=False) if device == "cuda" else kernel


def _flex_mask(document: torch.Tensor) -> Any:
    """The block mask of documents (B, R): causal, and within one history."""
    from torch.nn.attention.flex_attention import create_block_mask

    # the block mask is made from this predicate on index tensors; h is not used, heads see alike
    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (document[b, q] == document[b, k])

    rows, length = document.shape
    return create_block_mask(visible, rows, None, length, length, device=str(document.device))


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, H, R, D) -> (T, H, D)"""
    return x.transpose(1, 2).flatten(0, 1)


def _rows(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(T, H, D) -> (B, H, R, D)"""
    rows, heads, length, width = like.shape
    return x.view(rows, length, heads, width).transpose(1, 2)


BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "by_history": _by_history,
    "varlen": _varlen,
    "flash_attention_2": _flash,
    "flex_attention": _flex,
}

# transformers knows the other names; these become valid choices of `set_attn_implementation`
AttentionInterface.register("varlen", _varlen)
AttentionInterface.register("by_history", _by_history)
