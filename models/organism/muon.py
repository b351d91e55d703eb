"""Muon in fp32, all matrices of one shape at once.

torch.optim.Muon does the same in bf16, matrix by matrix: on a CPU without bf16 units that takes three times as long as the
whole forward and backward pass of a model of this size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # a quintic that drives singular values near one within five steps


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, rows, columns) -> the same singular vectors with singular values near one (0.7 to 1.2), by Newton and Schulz."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised, for 2-D parameters; the size of an update is that of AdamW's.

    lr, weight_decay (decoupled), momentum (Nesterov's). Source: Jordan et al. 2024, and Liu et al. (arXiv 2502.16982) for
    the factor 0.2 sqrt(max(rows, columns)).
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float = 0.01, momentum: float = 0.95):
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                updates = torch.stack([self._momentum(matrix, group["momentum"]) for matrix in matrices])
                size = 0.2 * max(shape) ** 0.5 * group["lr"]
                for matrix, update in zip(matrices, orthogonalised(updates), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(buffer, momentum)
