"""What do visual tokens say when they are read as words?"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..scenes.errors import UserError
from .intervals import powers
from .keys import Kept, sample_keys
from .probe import Probe
from .segment_curves import POST
from .vocabulary import widened
from .vocabulary_table import vocabulary_table
from .word_hits import ANSWER_IDS, KEPT_TOKENS
from .word_readings import MOMENTS, chosen, read_words

KEPT = 256
CHUNK = 1 << 25
"""Logits made at a time, in numbers (128 MB)."""

PAIRINGS = ("mean", "matched")


class VocabularyView(Probe):
    """The logit lens on visual tokens (P) and text tokens (T), layer by layer: how sure, how far apart, which words.

    Source: Shukor and Cord (arXiv 2405.16700). Layer 0 is the input of block 0 (`embed`), l the residual stream after block
    l - 1; each goes once through the final norm and the unembedding, in fp32, so that layer L gives the model's own logits.
    T is the text behind the first picture, answer included.

    The table has one row a value. Columns (empty where they do not apply):

    - quantity: "entropy" (nats; `limit` is ln V, that of a uniform distribution); "to_final" (KL of a token's distribution to
      its own at the last layer, nats); "agreement" (share of tokens whose top word is already that of the last layer);
      "kl" (between groups of tokens of one sample, nats); "hits" (share of visual tokens whose top word is a content word of
      the answer); "word" (share of tokens whose top word is `word`; the `rank`-th most frequent); "skipped" (samples left
      out, `n` of them, `reason`).
    - pair: "P", "T"; for "kl" "P-T", and as its floor "P-P" and "T-T", every second token against the others.
    - variant: for "kl" the `pairing`; for "hits" "own" (the sample's answer), "others" (the answers to other pictures) and
      "difference".
    - layer, site, depth (layer / L); rank, token (id), word (where a tokenizer was given).
    - mean, low, high: the value and its 95 % interval over samples; n: samples; limit.

    KL between groups is by default that of the mean distributions of the two groups, for there is no order in which the
    k-th visual token belongs to the k-th word. `pairing="matched"` takes token t of the picture with token t of the text up
    to the shorter one, and means the divergences, as the source does (every layer against the same layer of both).

    Content words are tokens of the answer, as the model is given it, that stand in at most half of the other kept answers:
    function words and the phrases of a template fall out in any language. Hits and words are of `KEPT` samples, chosen by
    hash, the mismatched ones over all pairs of them.

    Cost: unembedding `tokens` positions of each group a sample, evenly spaced over it, at every layer; logits are made in
    parts and never kept.
    """

    name = "vocabulary_view"
    sites = ("embed", "blocks.*.resid_post")

    def __init__(self, tokenizer=None, *, tokens: int | None = 16, pairing: str = "mean", top: int = 10):
        """tokenizer: names the words. tokens: positions read of each group and sample at most; None reads all, and so does
        pairing="matched". top: words listed a layer. Raises UserError."""
        super().__init__()
        if tokens is not None and tokens < 2:
            raise UserError(f"tokens {tokens} is too few: use 2 or more, or None for all")
        if pairing not in PAIRINGS:
            raise UserError(f"pairing {pairing!r} is not one of {', '.join(PAIRINGS)}")
        if top < 1:
            raise UserError(f"top {top} must be 1 or more")
        self.tokens, self.pairing, self.top = tokens if pairing == "mean" else None, pairing, top
        self._tokenizer = tokenizer

    def attach(self, anatomy) -> None:
        if not anatomy.image_in_sequence:
            raise UserError(
                f"vocabulary_view: the pictures of {anatomy.family} enter by cross-attention and no position holds a visual "
                "token to be read as words: leave this probe out"
            )
        self.use_device_of(anatomy)
        self._anatomy = anatomy
        self.n_states, self._vocabulary = anatomy.n_layers + 1, anatomy.vocab_size
        self._kept = Kept(KEPT, 2 * self.n_states * KEPT_TOKENS + ANSWER_IDS)
        self.add_sum("moments", len(MOMENTS), self.n_states, 3)
        self.add_sum("skipped", 2, dtype=torch.long)
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(self, trace, inputs) -> None:
        spans, device = inputs.spans, self.moments.device
        groups = torch.stack([spans.visual, spans.mask(*POST) & ~spans.visual], 1)
        has = groups.any(2)
        self.skipped += torch.stack([~has[:, 0], has[:, 0] & ~has[:, 1]]).sum(1).to(device)
        use = torch.nonzero(has.all(1)).flatten()
        if not len(use):
            return
        at, real = chosen(groups[use], self.tokens)
        states = [trace["embed"], *trace.select("blocks.*.resid_post")]
        moments, top = read_words(
            [x[use.to(x.device)[:, None, None], at.to(x.device)] for x in states], real,
            widened(self._anatomy.unembedding), widened(self._anatomy.norm), vocabulary=self._vocabulary, chunk=CHUNK,
            matched=self.pairing == "matched",
        )  # fmt: skip
        self.moments += powers(moments).sum(2).to(self.moments)
        self._keep(inputs, use, top, real)

    def _keep(self, inputs, use: Tensor, top: Tensor, real: Tensor) -> None:
        """Offers the samples' top words, and the tokens of their answers, to the bounded choice."""
        at, some = chosen(real, KEPT_TOKENS)
        told = top.gather(-1, at.to(top.device).expand(len(top), -1, -1, -1)).masked_fill(~some.to(top.device), -1)
        told = pad(
            told.permute(1, 2, 0, 3), (0, KEPT_TOKENS - at.shape[2]), value=-1
        ).cpu()  # (B, 2, layers, KEPT_TOKENS)
        ids, answer = inputs.tensors["input_ids"].tolist(), inputs.spans.mask("answer").tolist()
        use, answers = use.cpu(), []
        for b in use.tolist():
            said = sorted({token for token, inside in zip(ids[b], answer[b], strict=True) if inside})[-ANSWER_IDS:]
            answers.append(said + [-1] * (ANSWER_IDS - len(said)))
        marks = torch.zeros(len(ids)).index_copy_(0, use, told[:, 0, -1].sum(1).float())
        keys = sample_keys(inputs, marks)[use]
        store = self.kept[0] if len(self.kept) else self._kept.empty(self.moments.device)
        self.kept = [self._kept.add(store, keys, torch.cat([told.flatten(1), torch.tensor(answers)], 1).float())]

    def compute(self) -> pd.DataFrame:
        kept = self.kept if isinstance(self.kept, Tensor) else torch.cat(self.kept) if self.kept else None
        rows = self._kept.rows(kept).cpu() if kept is not None else torch.zeros(0, self._kept.width)
        return vocabulary_table(
            self.moments.cpu(), rows, self.skipped.cpu(), vocabulary=self._vocabulary, top=self.top, pairing=self.pairing,
            tokenizer=self._tokenizer,
        )  # fmt: skip
