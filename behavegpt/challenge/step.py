"""One training step of the evaluator's network: forward, loss, backward and AdamW, the same on
every device.

On a CPU the update happens inside the backward pass, in pieces: a piece of a weight's gradient is
computed and used while it is in the cache, and no gradient is ever stored whole. That saves a third
of a step's time and 205 MB, and gives bit for bit the weights of `torch.optim.AdamW` in its plain
form, which the organizers use (its fused form rounds differently, which moves scores by 1e-3 after
three epochs of 4,700 clients).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behavegpt.challenge.network import UniversalModel

# torch's defaults for AdamW, which the organizers keep
RATE, BETAS, EPSILON, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
# of a weight, for each thread: 2 to 4 MB, small enough for the cache, large enough for a product
PIECE_ROWS = 256

# vectors (B, D), targets (B, O) float32 -> loss, a scalar not yet read
Step = Callable[[Tensor, Tensor], Tensor]


def training_step(model: UniversalModel) -> Step:
    """A function that trains the model on one batch, for the device the model is on."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return _update_in_backward(model) if on_cpu else _update_after_backward(model)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits and targets (B, O), the mean over clients and labels."""
    return F.binary_cross_entropy_with_logits(logits, targets)


def _update_after_backward(model: UniversalModel) -> Step:
    on_gpu = next(model.parameters()).is_cuda
    # fused: one kernel for all parameters; capturable: its step counter lives on the GPU
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=DECAY,
        fused=True,
        capturable=on_gpu,
    )

    def step(vectors: Tensor, targets: Tensor) -> Tensor:  # (B, D), (B, O)
        loss = loss_of(model(vectors), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return RecordedStep(step, optimizer) if on_gpu else step


class RecordedStep:
    """A step as a CUDA graph, replayed for each batch of the first one's shape; others are run as
    they are.

    With 128 clients a batch, launching the kernels one by one takes longer than running them.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        self.step, self.optimizer = step, optimizer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.vectors, self.targets, self.loss = torch.empty(0), torch.empty(0), torch.empty(0)

    def __call__(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """The loss of vectors (B, D) and targets (B, O)."""
        if self.graph is None:
            self._record(vectors, targets)

        # the last batch of an epoch is smaller: a graph has the shapes of its recording
        if self.graph is None or vectors.shape != self.vectors.shape:
            return self.step(vectors, targets)

        # a graph reads and writes the memory of its recording
        self.vectors.copy_(vectors)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.loss.clone()

    def _record(self, vectors: Tensor, targets: Tensor) -> None:
        """Warm up on (B, D) and (B, O), record, and undo what the warm-up learned."""
        self.vectors, self.targets = vectors.clone(), targets.clone()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        before = [p.detach().clone() for p in parameters]

        # CUDA records only what was run before, on a stream that is not the default
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(self.vectors, self.targets)
        torch.cuda.current_stream().wait_stream(stream)

        # recording runs nothing: the parameters are still those after the warm-up
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.step(self.vectors, self.targets)

        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
            for state in self.optimizer.state.values():
                for moment in state.values():
                    moment.zero_()


def _update_in_backward(model: UniversalModel) -> Step:
    adam = _PieceWiseAdamW(model)

    # biases and LayerNorms
    vectors_of = [parameter for parameter in model.parameters() if parameter.dim() == 1]

    def linear(x: Tensor, layer: nn.Linear) -> Tensor:
        # (B, in) -> (B, out)
        return _UpdatingLinear.apply(x, layer.weight, layer.bias, adam)

    def step(vectors: Tensor, targets: Tensor) -> Tensor:  # (B, D), (B, O)
        adam.steps += 1
        loss = loss_of(model(vectors, linear), targets)
        loss.backward()
        for parameter in vectors_of:
            adam.update_vector(parameter)
        return loss.detach()

    return step


class _PieceWiseAdamW:
    """Moments of all parameters, and the update of a piece of one; operations and their order are
    torch's."""

    def __init__(self, model: nn.Module) -> None:
        self.steps = 0
        self.first: dict[Tensor, Tensor] = {
            p: torch.zeros_like(p, requires_grad=False) for p in model.parameters()
        }
        self.second: dict[Tensor, Tensor] = {
            p: torch.zeros_like(p, requires_grad=False) for p in model.parameters()
        }

        self.rows = PIECE_ROWS * torch.get_num_threads()

        # room for the largest piece, shared by all layers: one gradient exists at a time
        size = max(max(len(p), p[: self.rows].numel()) for p in model.parameters())
        self.gradient, self.scale = torch.empty(size), torch.empty(size)

    @torch.no_grad()
    def update_vector(self, parameter: Tensor) -> None:
        """A bias or a LayerNorm parameter (WIDTH,), from its gradient, which is then dropped."""
        assert parameter.grad is not None
        self._update(parameter, parameter.grad, self.first[parameter], self.second[parameter])
        parameter.grad = None

    def update_weight(self, weight: Tensor, output_gradient: Tensor, x: Tensor) -> None:
        """A weight (out, in), from the gradient of the layer's output (B, out) and its input (B,
        in)."""
        whole = (weight, output_gradient.t(), self.first[weight], self.second[weight])

        for w, g, m, v in zip(*(t.split(self.rows) for t in whole), strict=True):
            self._update(w, torch.mm(g, x, out=self.gradient[: w.numel()].view_as(w)), m, v)

    def _update(self, p: Tensor, gradient: Tensor, m: Tensor, v: Tensor) -> None:
        # p, its gradient and moments: a piece (rows, in) of a weight, or a whole vector (out,)
        correction = [1 - beta**self.steps for beta in BETAS]
        # decoupled weight decay first, as torch does it: the order decides the last bit
        p.mul_(1 - RATE * DECAY)
        m.lerp_(gradient, 1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])

        scale = (
            torch.sqrt(v, out=self.scale[: v.numel()].view_as(v))
            .div_(correction[1] ** 0.5)
            .add_(EPSILON)
        )

        p.addcdiv_(m, scale, value=-RATE / correction[0])


class _UpdatingLinear(torch.autograd.Function):
    """A linear layer whose backward pass updates its weight instead of returning the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, adam: _PieceWiseAdamW) -> Tensor:
        ctx.save_for_backward(x)  # (B, in)
        ctx.weight, ctx.adam = weight, adam
        return F.linear(x, weight, bias)

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor, None]:
        """From the gradient (B, out) of the output: those of x (B, in) and of the bias."""
        (x,) = ctx.saved_tensors
        # with the weight of the forward pass
        through = gradient @ ctx.weight if ctx.needs_input_grad[0] else None
        ctx.adam.update_weight(ctx.weight, gradient, x)
        return through, None, gradient.sum(0), None
