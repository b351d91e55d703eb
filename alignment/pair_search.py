"""The search for the pair of each text: masks, pictures in the order of their similarity, fills, checks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..scenes.claims import graph_distance
from ..scenes.errors import UserError
from ..scenes.sample import IMAGE_MARK
from .filters import Filters, edit_similarity
from .infill import Fill, InfillBackend, InfillFailed, Shown
from .masking import KINDS, MaskedText, Masker, choose_spans
from .pair_config import PairConfig
from .pair_files import PairFolder
from .rejected_images import SHOW_ELSE, changed, counterfactuals


@dataclass(frozen=True)
class Item:
    """One item of the data, without its picture, which is in the folder. reason: why no pair can come of it."""

    id: str
    prompt: str = ""
    chosen: str = ""
    picture: str = ""
    truth: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass
class _Open:
    """A text on its way to a pair. tried: the reason against each fill and picture so far."""

    item: Item
    row: int
    kind: str
    masked: MaskedText
    truth: float | None
    neighbours: list[tuple[Shown | Item, str, float | None]]
    tried: Counter = field(default_factory=Counter)


@dataclass
class Search:
    """usable: the items that may be shown; index, cosine: the nearest of each, as `retrieval.nearest` gives them; labels: items that
    share one are never shown for one another. made: pairs so far by kind. encoder: its name."""

    folder: PairFolder
    backend: InfillBackend
    masker: Masker
    filters: Filters
    config: PairConfig
    encoder: str
    usable: Sequence[Item]
    labels: Sequence[Sequence[Any]]
    index: Tensor
    cosine: Tensor
    made: Counter

    def records(self, items: Sequence[tuple[Item, int]]) -> list[dict[str, Any]]:
        """A record of each item: a pair, or the reason why there is none."""
        records: dict[int, dict[str, Any]] = {}
        opened: dict[int, _Open] = {}
        shown = {i: self._shown(item) for i, (item, _) in enumerate(items) if not item.reason}
        chosen = self._chosen(items, shown)
        judged = dict(zip(shown, self.filters.chosen([chosen[i] for i in shown], list(shown.values())), strict=True))
        planned = Counter(self.made)
        for i, (item, row) in enumerate(items):
            reason, truth = judged.get(i, (item.reason, None))
            reason = reason if chosen.get(i) or item.reason else "no_answer"
            kind, masked = (None, None) if reason else self._mask(item, chosen[i], planned)
            if reason is None and masked is None:
                reason = "nothing_to_mask"
            if reason is None:
                planned[kind] += 1
                neighbours = self._neighbours(item, row, kind, shown[i])
                reason = None if neighbours else "no_neighbour"
                opened[i] = _Open(item, row, kind, masked, truth, neighbours)
            if reason:
                records[i] = {"id": item.id, "reason": reason}
                opened.pop(i, None)
        for rank in range(self.config.k):
            tried = {i: one for i, one in opened.items() if i not in records and rank < len(one.neighbours)}
            records |= self._rank(rank, tried, shown)
        for i, one in opened.items():
            if i not in records:
                reason = max(one.tried, key=lambda code: (one.tried[code], code))
                records[i] = {"id": one.item.id, "reason": reason, "kind": one.kind, "tried": dict(one.tried)}
        self.made.update(record["kind"] for record in records.values() if "reason" not in record)
        return [records[i] for i in range(len(items))]

    def _chosen(self, items, shown: dict[int, Shown]) -> dict[int, str]:
        """The chosen text of every usable item, written by the backend where the data have none."""
        texts = {i: items[i][0].chosen for i in shown}
        silent = [i for i in shown if not texts[i]]
        if silent:
            prompts = [items[i][0].prompt for i in silent]
            texts |= dict(
                zip(silent, self.backend.caption([shown[i] for i in silent], prompts, self.config.seed), strict=True)
            )
        return texts

    def _mask(self, item: Item, text: str, planned: Counter) -> tuple[str | None, MaskedText | None]:
        """The kind that is masked, and the text with its masks; None where there is nothing of that kind."""
        spans = self.masker.spans(text)
        kind = self.config.mask
        if kind == "balanced":
            there = {span.kind for span in spans}
            kind = min((k for k in KINDS if k in there), key=lambda k: planned[k], default="all")
        chosen = choose_spans(spans, kind, self.config.rate, self._draw(item, "mask"))
        return kind, MaskedText(text, chosen) if chosen else None

    def _neighbours(
        self, item: Item, row: int, kind: str, shown: Shown
    ) -> list[tuple[Shown | Item, str, float | None]]:
        """Pictures that may become the rejected one, the first to be tried first: the picture, the id of its item, the cosine."""
        how, draw = self.config.rejected_image, self._draw(item, "picture")
        if how == "counterfactual":
            if "scene" not in item.truth:
                raise UserError(
                    "rejected_image 'counterfactual' needs rendered scenes: use --data scenes, or 'retrieved'"
                )
            size = shown.image.width
            return [(one, "", None) for one in counterfactuals(item.truth["scene"], kind, draw, self.config.k, size)]
        if how == "random":
            others = [i for i in range(len(self.usable)) if all(labels[i] != labels[row] for labels in self.labels)]
            chosen = [(i, None) for i in draw.sample(others, min(self.config.k, len(others)))]
        else:
            chosen = [
                (i, c) for i, c in zip(self.index[row].tolist(), self.cosine[row].tolist(), strict=True) if i >= 0
            ]
        return [(self.usable[i], self.usable[i].id, cosine) for i, cosine in chosen]  # pictures are opened when needed

    def _rank(self, rank: int, tried: dict[int, _Open], shown: dict[int, Shown]) -> dict[int, dict[str, Any]]:
        """Tries the neighbour of one rank for every text that has no pair yet; returns the records of those that get one."""
        keys = list(tried)
        seen = {i: self._seen(tried[i].neighbours[rank][0], tried[i].item.prompt) for i in keys}
        reasons = self.filters.rejected_pictures(
            [tried[i].truth for i in keys], [tried[i].masked.text for i in keys], [seen[i] for i in keys]
        )
        truths = {}
        for i, (reason, truth) in zip(keys, reasons, strict=True):
            tried[i].tried.update([reason] if reason else [])
            truths |= {} if reason else {i: truth}
        keys = list(truths)
        if not keys:
            return {}
        fills = self.backend.fill(
            [tried[i].masked for i in keys], [seen[i] for i in keys], [tried[i].item.prompt for i in keys],
            self.config.fills, self.config.seed,
        )  # fmt: skip
        offered = [(i, fill) for i, found in zip(keys, fills, strict=True) for fill in self._offered(tried[i], found)]
        judged = self.filters.rejected_texts(
            [tried[i].truth for i, _ in offered], [fill.text for _, fill in offered], [shown[i] for i, _ in offered]
        )
        records: dict[int, dict[str, Any]] = {}
        for (i, fill), (reason, truth) in zip(offered, judged, strict=True):
            if reason:
                tried[i].tried[reason] += 1
            elif i not in records:
                records[i] = self._record(tried[i], rank, fill, (truth, truths[i]), shown[i], seen[i])
        return records

    def _offered(self, one: _Open, fills: list[Fill] | InfillFailed) -> list[Fill]:
        """The fills whose text is fit to be judged."""
        if isinstance(fills, InfillFailed) or not fills:
            one.tried[fills.code if isinstance(fills, InfillFailed) else "no_fill"] += 1
            return []
        good = []
        for fill in fills:
            reason = self.filters.text(one.masked, fill)
            one.tried.update([reason] if reason else [])
            good += [] if reason else [fill]
        return good

    def _record(self, one: _Open, rank: int, fill: Fill, truths: tuple, shown: Shown, seen: Shown) -> dict[str, Any]:
        _, name, cosine = one.neighbours[rank]
        how, text = self.config.rejected_image, one.masked.text
        scenes = [place.truth.get("scene") for place in (shown, seen)]
        if how not in SHOW_ELSE:
            seen = Shown(changed(shown.image, how, self._draw(one.item, "change")))
        spans = [
            {"start": s.start, "end": s.end, "kind": s.kind, "slot": s.slot, "chosen": before, "rejected": after}
            for s, before, after in zip(one.masked.spans, one.masked.originals, fill.strings, strict=True)
        ]
        return {
            "id": one.item.id, "prompt": one.item.prompt or IMAGE_MARK, "chosen": text, "rejected": fill.text,
            "picture": one.item.picture, "rejected_picture": self.folder.put(seen.image),
            "kind": one.kind, "rejected_image": how, "rejected_id": name, "rank": rank, "cosine": cosine,
            "graph_distance": graph_distance(*scenes) if all(scenes) else None, "spans": spans,
            "edit_similarity": edit_similarity(text, fill.text),
            "length_difference": self.filters.length(fill.text) - self.filters.length(text),
            "truth_chosen": one.truth, "truth_rejected": truths[0], "truth_rejected_image": truths[1],
            "fill_logp": fill.logp,
            "backend": f"{self.backend.name} {self.backend.version}", "judge": self.filters.judge.name,
            "encoder": self.encoder, "seed": self.config.seed,
        }  # fmt: skip

    def _seen(self, neighbour: Shown | Item, asked: str) -> Shown:
        """The picture of a neighbour, asked about as the text's own picture was."""
        return replace(self._shown(neighbour) if isinstance(neighbour, Item) else neighbour, asked=asked)

    def _shown(self, item: Item) -> Shown:
        return Shown(self.folder.picture(item.picture), item.truth, item.prompt)

    def _draw(self, item: Item, what: str) -> random.Random:
        return random.Random(repr((self.config.seed, item.id, what)))
