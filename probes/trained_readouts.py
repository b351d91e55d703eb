"""Readouts that are trained: a small network a layer, the networks of all layers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from .embedding_table import Level
from .kept_pictures import Held
from .resampler import Resampler

HIDDEN, WIDTH = 256, 64
EPOCHS, PATIENCE, BATCH = 80, 8, 32
RATES = {"mlp": (1e-3, 1e-4), "resampler": (3e-4, 0.0)}
"""Learning rate and weight decay of AdamW."""
EMA = 0.98


class TokenMLP(nn.Module):
    """LayerNorm, one hidden layer: (B, T, D) -> (B, T, M), each token by itself."""

    def __init__(self, in_dim: int, out_dim: int, hidden: int = HIDDEN):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(in_dim), nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, out_dim)
        )

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.layers(states)


def train_stacked(
    make: Callable[[], nn.Module], states: Tensor, targets: Tensor, weight: Tensor, train: Tensor, validation: Tensor,
    *, rate: float, decay: float, seed: int = 0, epochs: int = EPOCHS, patience: int = PATIENCE, ema: float = 0.0,
) -> Tensor:  # fmt: skip
    """(L, N, T, M) predictions of one network a layer, all trained in one loop.

    states: (L, N, T, D); targets: (N, T, M); weight: (N, T), 0 for a place that is empty; train, validation: indices of
    pictures. make: gives an untrained network `(states, mask) -> (N, T, M)`. Smooth L1, AdamW, gradients of every network
    clipped to norm 1. Each layer keeps the parameters that were best on the validation pictures; training ends when none has
    become better for `patience` epochs. ema: of the parameters that are judged and kept. The caller's random numbers are as
    before.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        networks = [make() for _ in states]
        parameters, buffers = stack_module_state(networks)
        parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        frame, mask = networks[0], weight > 0

        def run(own: dict[str, Tensor], at: Tensor) -> Tensor:
            return vmap(lambda p, b, x: functional_call(frame, (p, b), (x, mask[at])))(own, buffers, states[:, at])

        def losses(own: dict[str, Tensor], at: Tensor) -> Tensor:
            off = nn.functional.smooth_l1_loss(
                run(own, at), targets[at].expand(len(states), -1, -1, -1), reduction="none"
            )
            return (off.mean(-1) * weight[at]).sum((1, 2)) / weight[at].sum()

        optimiser = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=decay)
        judged = {name: value.detach().clone() for name, value in parameters.items()}
        best, lowest, since = {k: v.clone() for k, v in judged.items()}, torch.full((len(states),), torch.inf), 0
        for _ in range(epochs):
            for at in train[torch.randperm(len(train))].split(BATCH):
                optimiser.zero_grad()
                losses(parameters, at).sum().backward()
                _clip_each(parameters)
                optimiser.step()
                for name, value in parameters.items():
                    judged[name].lerp_(value.detach(), 1 - ema)
            with torch.no_grad():
                found = losses(judged, validation)
            better = found < lowest
            lowest, since = torch.where(better, found, lowest), 0 if better.any() else since + 1
            for name, value in judged.items():
                best[name][better] = value[better]
            if since >= patience:
                break
        with torch.no_grad():
            return run(best, torch.arange(states.shape[1]))


def _clip_each(parameters: dict[str, Tensor]) -> None:
    """Every network's gradient to norm 1: a common norm would let one layer slow down the others."""
    norm = sum(value.grad.flatten(1).square().sum(1) for value in parameters.values()).sqrt()
    scale = (1 / norm.clamp(min=1e-12)).clamp(max=1)
    for value in parameters.values():
        value.grad.mul_(scale.view(-1, *[1] * (value.ndim - 1)))


def trained_levels(
    held: Held, kinds: Sequence[str], sites: Sequence[str], seeds: Iterable[int]
) -> Iterator[tuple[Held, list[Level]]]:
    """For each kind and layer: the test pictures, and each seed's predictions of them by a readout that saw none of them.

    The last fold is scored, the one before tells when to stop. True and shuffled targets have networks of their own. Nothing where one of the parts has less than two pictures.
    """
    last = int(held.fold.max())
    test, validation = held.fold == last, held.fold == last - 1
    train = ~(test | validation)
    if min(int(part.sum()) for part in (test, validation, train)) < 2:
        return
    index = [torch.nonzero(part).flatten() for part in (train, validation, test)]
    weight = held.weight.float()
    states = _standardised(held.x["layer"].float(), weight, index[0])
    mean, sd = _moments(held.y.float()[None], weight, index[0])
    targets = _standardised(held.y.float()[None], weight, index[0])[0]
    half = targets.shape[-1] // 2
    for kind in kinds:
        (rate, decay), ema = RATES[kind], EMA if kind == "resampler" else 0.0
        make = _maker(kind, states.shape[-1], half, states.shape[2])
        runs = []
        for seed in seeds:
            parts = [
                train_stacked(make, states, own, weight, *index[:2], rate=rate, decay=decay, seed=seed, ema=ema)
                for own in targets.split(half, -1)
            ]
            runs.append((torch.cat(parts, -1)[:, index[2]] * sd + mean).double())
        part, size = held.at(index[2]), sum(p.numel() for p in make().parameters())
        for layer, site in enumerate(sites):
            told = {"readout": kind, "features": "layer", "layer": layer, "site": site, "width": states.shape[-1]}
            yield part, [Level(run[layer], None, told, size) for run in runs]


def _maker(kind: str, in_dim: int, out_dim: int, places: int) -> Callable[[], nn.Module]:
    if kind == "mlp":
        return lambda: TokenMLP(in_dim, out_dim)
    return lambda: Resampler(in_dim, out_dim, places, width=max(WIDTH, out_dim), normalise_output=False)


def _moments(values: Tensor, weight: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (L, 1, 1, F) of values (L, N, T, F) over the training pictures' tokens."""
    w = weight[train][None, ..., None]
    mean = (values[:, train] * w).sum((1, 2), keepdim=True) / w.sum()
    sd = ((values[:, train] - mean).square() * w).sum((1, 2), keepdim=True).div(w.sum()).sqrt()
    return mean, torch.where(sd > 1e-6, sd, 1)


def _standardised(values: Tensor, weight: Tensor, train: Tensor) -> Tensor:
    mean, sd = _moments(values, weight, train)
    return ((values - mean) / sd).masked_fill(weight[..., None] == 0, 0)
