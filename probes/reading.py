"""Reading single positions in one forward pass: the hook keeps what was asked for and drops the rest at once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.inputs import Inputs
from ..models.trace import Recorder

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")


class PositionReader(Recorder):
    """A `Recorder` that keeps (N, ...) the given rows and columns of every site in place of (B, T, ...)."""

    def __init__(self, anatomy, sites: Sequence[str], spans, rows: Tensor, columns: Tensor):
        super().__init__(anatomy, sites, spans)
        self.at = rows, columns
        self.taken: dict[str, Tensor] = {}

    def _keep(self, site: str, value: Tensor | tuple) -> None:
        super()._keep(site, value)
        for whole in self.read.pop(site, ()):
            self.taken[site] = whole[tuple(index.to(whole.device) for index in self.at)].detach()


def continued(vlm, inputs: Inputs, answers: Sequence[Sequence[int]], *, side: str = "left") -> tuple[Inputs, list[int]]:
    """A batch with token ids put behind every row, and the column at which each row's answer begins.

    Rows may be padded on either side; the new ones are padded on `side`. Nothing is tokenised again: what is read is what was
    generated, to the token.
    """
    tensors, real = dict(inputs.tensors), inputs.tensors["attention_mask"].bool()
    total = [int(mask.sum()) + len(answer) for mask, answer in zip(real, answers, strict=True)]
    for name in PER_TOKEN:
        if name not in tensors:
            continue
        rows = []
        for mask, row, answer in zip(real, tensors[name], answers, strict=True):
            row = row[mask]
            new = torch.tensor(answer, dtype=row.dtype, device=row.device) if name == "input_ids" else None
            if new is None:
                new = _type_of_answers(vlm, row) if "type" in name else row[-1:]
                new = new.expand(len(answer), *row.shape[1:])
            gap = row.new_zeros(max(total) - len(row) - len(answer), *row.shape[1:])
            rows.append(torch.cat([gap, row, new] if side == "left" else [row, new, gap]))
        tensors[name] = torch.stack(rows)
    begins = [(max(total) if side == "left" else n) - len(answer) for answer, n in zip(answers, total, strict=True)]
    return vlm.from_tensors(**tensors), begins


def read_positions(
    vlm, inputs: Inputs, begins: Sequence[int], offsets: Sequence[Sequence[int]], sites: Sequence[str]
) -> dict[str, Tensor]:  # fmt: skip
    """By site (B, D), for every row the mean over its offsets o of the state that predicts the o-th token of the answer.

    That state stands one position before the token, so offset 0 is the last one of the prompt. Offsets may go one beyond the
    answer that was fed. The mean is taken in fp32.
    """
    row = [b for b, at in enumerate(offsets) for _ in at]
    column = [begin + o - 1 for begin, at in zip(begins, offsets, strict=True) for o in at]
    row, column = torch.tensor(row), torch.tensor(column)
    reader = PositionReader(vlm.anatomy, sites, inputs.spans, row, column)
    options = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(vlm.anatomy.model.forward).parameters:
        options["logits_to_keep"] = 1  # nobody reads the logits of this pass
    with reader(), torch.no_grad():
        vlm.forward(inputs, **options)
    n = torch.bincount(row, minlength=len(offsets))[:, None]
    means = {}
    for site in reader.sites:
        taken = reader.taken[site].float()
        sums = taken.new_zeros(len(offsets), taken.shape[1]).index_add_(0, row.to(taken.device), taken)
        means[site] = sums / n.to(taken.device)
    return means


def _type_of_answers(vlm, row: Tensor) -> Tensor:
    """Token type of what is generated: 0, but in PaliGemma 0 is a prefix that is read in both directions."""
    return row.new_full((1,), int(vlm.anatomy.family == "paligemma"))
