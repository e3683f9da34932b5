"""All attention back ends give the numbers of the formula."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from behavegpt.batch import PADDING
from behavegpt.model.attention import (
    BACKENDS,
    BOUNDARY_BLOCK,
    attend,
    choose_backend,
    plan_attention,
    usable,
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


@pytest.mark.parametrize("backend", ["eager", "sdpa", "by_history"])
def test_a_backend_is_the_formula_with_its_gradients(backend):
    real = (DOCUMENT != PADDING)[:, None, :, None]  # what stands at padding is nobody's
    results = []
    for run in (lambda q, k, v: attend(q, k, v, plan_attention(DOCUMENT, backend)), None):
        q, k, v = (x.requires_grad_() for x in inputs())
        out = (run(q, k, v) if run else formula(q, k, v, DOCUMENT)) * real
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_traced_graph_serves_other_histories():
    def run(q, k, v, document):
        return attend(q, k, v, plan_attention(document, "by_history"))

    q, k, v = inputs()
    traced = torch.jit.trace(run, (q, k, v, torch.zeros_like(DOCUMENT)))
    torch.testing.assert_close(
        traced(q, k, v, DOCUMENT),
        run(q, k, v, DOCUMENT).where(
            (DOCUMENT != PADDING)[:, None, :, None], traced(q, k, v, DOCUMENT)
        ),
    )


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


# compute capability, half precision, window, what is installed -> back end
CHOICES = {
    ("cuda", 8, True, 129, "flash_attn"): "flash_attention_2",
    ("cuda", 9, True, 1024, "flash_attn varlen"): "flash_attention_2",
    ("cuda", 9, True, 1024, "varlen"): "varlen",
    ("cuda", 9, True, 1024, ""): "sdpa",
    ("cuda", 9, True, 128, "flash_attn varlen"): "sdpa",
    ("cuda", 9, False, 1024, "flash_attn varlen"): "sdpa",
    ("cuda", 7, True, 1024, "flash_attn varlen"): "sdpa",
    ("cpu", 9, True, 129, "flash_attn varlen"): "by_history",
    ("cpu", 9, False, 128, ""): "sdpa",
}


@pytest.mark.parametrize("case", CHOICES)
def test_kernels_for_long_windows_are_taken_where_they_run(case, monkeypatch):
    kind, capability, half, window, installed = case
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name.split(".")[-1] in installed.split() or None
    )
    assert choose_backend(torch.device(kind), half, window) == CHOICES[case]


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_for_half_precision_give_way_in_full_precision(backend):
    half_alone = backend in ("flash_attention_2", "varlen")
    assert usable(backend, torch.zeros(1)) == ("sdpa" if half_alone else backend)
    for dtype in (torch.float16, torch.bfloat16):
        assert usable(backend, torch.zeros(1, dtype=dtype)) == backend
    with torch.autocast("cpu", torch.bfloat16):
        assert usable(backend, torch.zeros(1)) == backend


def varlen_formula(q, k, v, ends, other_ends, longest, other_longest, *, causal=False, **options):
    """What the kernels for variable lengths compute: tokens (T, H, D), histories by boundaries."""
    assert torch.equal(ends, other_ends) and longest == other_longest == 32
    assert causal or options in ({"window_size": (-1, 0)}, {"is_causal": True})
    tokens = torch.arange(len(q), dtype=torch.int32)
    document = torch.searchsorted(ends, tokens, right=True)[None]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return formula(q, k, v, document)[0].transpose(0, 1).contiguous()


@pytest.mark.parametrize("backend", ["flash_attention_2", "varlen"])
def test_variable_lengths_are_the_formula_on_rows(backend, monkeypatch):
    """The kernels run on GPUs alone: what goes in and comes out, with formulas in their place."""
    for module, name in (
        ("flash_attn", "flash_attn_varlen_func"),
        ("torch.nn.attention.varlen", "varlen_attn"),
    ):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: varlen_formula}))
    q, k, v = inputs()
    found = attend(q, k, v, plan_attention(DOCUMENT, backend))
    torch.testing.assert_close(found, formula(q, k, v, DOCUMENT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("histories", [255, 256, 257])
def test_boundaries_end_at_the_last_token_however_many_there_are(histories):
    boundaries = plan_attention(torch.arange(histories)[None], "varlen").boundaries
    assert len(boundaries) == (256 if histories < 256 else 512)
    assert boundaries[: histories + 1].tolist() == list(range(histories + 1))
    assert (boundaries[histories:] == histories).all()
