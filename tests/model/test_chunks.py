"""The loss that is made in chunks against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.losses.base import CrossEntropy
from behavegpt.model import chunks
from behavegpt.model.chunks import Scored, chunked_loss, linear_loss

N, WIDTH, CLASSES = 31, 5, 13
TARGET = torch.randint(CLASSES, (N,), generator=torch.Generator().manual_seed(0))


def layer(**frozen: bool) -> nn.Linear:
    torch.manual_seed(1)
    made = nn.Linear(WIDTH, CLASSES)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(not frozen.get(name, False))
    return made


def states() -> torch.Tensor:
    return torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()


@pytest.mark.parametrize("logits_at_once", [1, 40, 1 << 21])
@pytest.mark.parametrize("frozen", [{}, {"weight": True}, {"weight": True, "bias": True}])
def test_a_linear_layers_loss_is_the_one_of_torch(
    logits_at_once: int, frozen: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", logits_at_once)
    ours, theirs = layer(**frozen), layer(**frozen)
    criterion = CrossEntropy(torch.ones(CLASSES))
    mine, yours = states(), states()

    made = linear_loss(ours, criterion, mine, TARGET)
    wanted = F.cross_entropy(theirs(yours), TARGET, reduction="sum")
    torch.testing.assert_close(made.total, wanted)
    torch.testing.assert_close(made.class_loss.sum(), wanted)
    assert made.class_count.tolist() == torch.bincount(TARGET, minlength=CLASSES).tolist()

    (3 * made.total).backward()
    (3 * wanted).backward()
    torch.testing.assert_close(mine.grad, yours.grad)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (not a.requires_grad)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_no_chunk_is_larger_than_asked_for_and_none_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 4 * CLASSES)
    sizes: list[int] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return super().forward(x)

    linear, criterion = Watched(WIDTH, CLASSES), CrossEntropy(torch.ones(CLASSES))
    loss = linear_loss(linear, criterion, states(), TARGET).total
    assert max(sizes) == 4 and sum(sizes) == N
    loss.backward()
    assert sum(sizes) == N  # nothing is computed again for the gradient
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()
    with torch.no_grad():  # scoring holds no more either
        sizes.clear()
        again = linear_loss(linear, criterion, states(), TARGET).total
    assert max(sizes) == 4 and torch.allclose(again, loss)


def test_inputs_beside_the_states_are_cut_along_and_ids_have_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids, found = torch.arange(N) % 3, []
    for logits_at_once in (1 << 20, 7 * CLASSES):
        monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", logits_at_once)
        linear, table = layer(), nn.Parameter(torch.ones(3, CLASSES))
        hidden = states()

        def score(
            part: slice,
            pieces: tuple[torch.Tensor, ...],
            sink: object,
            linear: nn.Linear = linear,
            table: torch.Tensor = table,
        ) -> torch.Tensor:
            return linear(pieces[0]) + table[pieces[1]]

        scored = Scored(score, (hidden, ids), (*linear.parameters(), table))
        chunked_loss(scored, CrossEntropy(torch.ones(CLASSES)), TARGET, CLASSES).total.backward()
        found.append([hidden.grad, table.grad, linear.weight.grad])
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces)
