"""Are words that a model makes up the ones for which it looks at the encoder's outliers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch

from ..models.patch_scores import check_kind, score_kinds, score_site
from ..scenes.errors import UserError
from .outlier_maps import QUANTITIES, Setting, batch_maps, decoder_sites, describe, looked_at, pictures_of
from .outliers import check_rule
from .probe import Probe

DIAGNOSTICS = (*QUANTITIES, "image_share")


class Mention(NamedTuple):
    """An object word in an answer. token: the place of its first token among the answer's, from 0; word: what it names;
    grounded: whether that is in the picture."""

    token: int
    word: str
    grounded: bool


class OutlierWords(Probe):
    """Attention diagnostics at every object word of given answers: a_t of the query that predicts the word's first token,
    the mean map over heads and blocks 2 to the last (see `OutlierOverlap`).

    Source of the claim: Gong et al., "DAMRO" (EMNLP 2024, arXiv 2410.04514). Table: one row a mention, with sample (its
    id), picture (number of the sample), token, position (token over the answer's length), word, grounded, and the
    diagnostics, whose names are `OutlierOverlap`'s quantities. State: these few numbers a mention. Mentions in samples
    that are not in the data, or have no picture, give no row.
    """

    name = "outlier_words"
    sites = ("blocks.*.attn_rows",)

    def __init__(
        self, mentions: Mapping[str, Sequence[Mention]], *, score: str | None = None, mode: str = "headmean",
        layer: int | None = None, rule: str = "ratio", value: float | None = None, tiles: str = "all",
    ):  # fmt: skip
        """mentions: of every sample's answer, by the sample's id. The rest as in `OutlierOverlap`. Raises UserError."""
        super().__init__()
        if not any(mentions.values()):
            raise UserError("no answer mentions an object: give mentions of at least one, or more answers")
        self.mentions = {str(name): [Mention(*one) for one in some] for name, some in mentions.items()}
        self.score, self.mode, self.layer, self.tiles = score, mode, layer, tiles
        self.rule, self.value = check_rule(rule, value)

    def attach(self, anatomy) -> None:
        self.use_device_of(anatomy)
        score = check_kind(anatomy, self.score or score_kinds(anatomy)[0])
        self._anatomy, self._setting = anatomy, Setting(score, self.mode, self.layer, self.rule, self.value, self.tiles)
        self.sites = (*decoder_sites(anatomy), score_site(anatomy, score, self.layer))
        self._numbers = {name: i for i, name in enumerate(self.mentions)}
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, trace, inputs) -> None:
        lengths = (inputs.spans.predicting() >= 0).sum(1).tolist()
        asked = [
            [i for i, one in enumerate(self.mentions.get(sample.id, ())) if one.token < length]
            for sample, length in zip(inputs.samples, lengths, strict=True)
        ]
        if not any(asked):
            return
        tokens = [[self.mentions[s.id][i].token for i in some] for s, some in zip(inputs.samples, asked, strict=True)]
        queries = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(some, dtype=torch.long) for some in tokens], batch_first=True, padding_value=-1
        ).to(self.device)
        pictures = pictures_of(trace, inputs, self._anatomy, self._setting)
        for maps in batch_maps(trace, looked_at(pictures, self._setting), self._anatomy, queries):
            values = torch.cat([describe(maps.attention[:, -1:], maps.chosen, maps.scores), maps.share[None, :, -1:]])
            for p, row in enumerate(maps.rows.tolist()):
                number = self._numbers[inputs.samples[row].id] if asked[row] else -1
                for q, mention in enumerate(asked[row]):
                    told = torch.tensor([number, mention, lengths[row]], dtype=self.wide, device=self.device)
                    self.rows.append(torch.cat([told, values[:, p, 0, q].to(self.wide)])[None])

    def compute(self) -> pd.DataFrame:
        parts = self.rows if isinstance(self.rows, list) else [self.rows]
        names, rows = list(self.mentions), []
        for number, mention, length, *values in torch.cat(parts).tolist() if parts else ():
            sample = names[int(number)]
            one = self.mentions[sample][int(mention)]
            told = {"sample": sample, "picture": int(number), "token": one.token, "position": one.token / length}
            told |= {"word": one.word, "grounded": one.grounded}
            rows.append(told | dict(zip(DIAGNOSTICS, values, strict=True)))
        columns = ["sample", "picture", "token", "position", "word", "grounded", *DIAGNOSTICS]
        return pd.DataFrame(rows, columns=columns).sort_values(["picture", "token"], ignore_index=True)
