"""All attention back ends give the numbers of the formula."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from behavegpt.batch import PADDING
from behavegpt.model.attention import (
    BACKENDS,
    BOUNDARY_BLOCK,
    attend,
    choose_backend,
    plan_attention,
)

DOCUMENT = torch.tensor([[0] * 5 + [1] * 20 + [2] + [PADDING] * 6, [0] * 32])


def formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, document: torch.Tensor
) -> torch.Tensor:
    """One query at a time."""
    out = torch.zeros_like(v)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])):
        seen = (document[b] == document[b, t]) & (torch.arange(q.shape[2]) <= t)
        weight = torch.softmax(k[b, h, seen] @ q[b, h, t] / q.shape[3] ** 0.5, 0)
        out[b, h, t] = weight @ v[b, h, seen]
    return out


def inputs(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, 32, 16).to(device, dtype) for _ in range(3)]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_backend_is_the_formula(backend):
    q, k, v = inputs()
    found = attend(q, k, v, plan_attention(DOCUMENT, backend))
    torch.testing.assert_close(found, formula(q, k, v, DOCUMENT), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_flex_attention_runs_forward_on_a_cpu():
    q, k, v = inputs()
    found = attend(q, k, v, plan_attention(DOCUMENT, "flex_attention"))
    torch.testing.assert_close(found, formula(q, k, v, DOCUMENT), atol=1e-5, rtol=1e-5)


def test_boundaries_name_each_history_and_start_anew_in_each_row():
    plan = plan_attention(DOCUMENT, "varlen")
    starts = [0, 5, 25, 26, 32]
    assert plan.boundaries.tolist() == starts + [64] * (BOUNDARY_BLOCK - len(starts))
    assert plan.longest == 32


def test_the_backend_of_a_cpu_is_sdpa():
    assert choose_backend(torch.device("cpu"), half=True, window=1024) == "sdpa"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
def test_gpu_backends_agree_in_bf16_with_gradients(backend):
    if backend == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    document = DOCUMENT.cuda()
    results = []
    for name in ("eager", backend):
        q, k, v = (x.requires_grad_() for x in inputs("cuda", torch.bfloat16))
        out = attend(q, k, v, plan_attention(document, name))
        gradients = torch.autograd.grad(out.float().square().sum(), (q, k, v))
        results.append([out, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=5e-2, rtol=5e-2)
