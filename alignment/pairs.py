"""Preference pairs with rejected images: mask what a text says of its picture, find a similar picture, fill the masks as that one
suggests, and keep what can be shown to be false. Source: Re-Align (arXiv 2502.13146), section 3, with the checks it lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..probes.loader import Data
from ..probes.progress import Meter
from ..probes.record_file import RecordFile
from ..scenes.errors import UserError
from ..scenes.sample import BadSample, Sample
from .encoders import Encoder
from .filters import REASONS, Filters
from .giveaway import giveaway
from .infill import InfillBackend
from .judges import Judge
from .masking import KINDS, Masker
from .pair_card import counts
from .pair_config import PairConfig
from .pair_files import PairFolder, load_pairs
from .pair_search import Item, Search
from .rejected_images import SHOW_ELSE
from .retrieval import nearest

READ = 64  # items embedded, and kept, together


@dataclass(frozen=True)
class Pairs:
    """path: the data set's folder. report: pairs, items read, dropped by reason, kinds, giveaway, mean length difference."""

    path: Path
    report: dict[str, Any]

    def dataset(self):
        return load_pairs(self.path)


def build_pairs(
    samples: Iterable[Sample | BadSample],
    out: str | Path,
    *,
    backend: InfillBackend,
    encoder: Encoder,
    judge: Judge,
    masker: Masker,
    config: PairConfig | None = None,
    length: tuple[str, Callable[[str], int]] | None = None,
    similarity: tuple[str, Callable[[str, str], float], float] | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Pairs:
    """Makes the pairs of a data set, at most one an item, and writes them to the folder `out` (see `pair_files`).

    samples: one picture each; where there is no answer the backend writes one. length: name and function that counts tokens
    (default: words). similarity: name, function and the value at which two texts are too similar (see `Filters`). Calling again after
    a stop, even by kill -9, goes on behind the last whole chunk to the same pairs; calling again when all is done returns them. The
    same seed gives the same pairs. Raises UserError, one line, for data, folder or settings that cannot be used.
    """
    config, data = config or PairConfig(), Data(samples, limit)
    setup = {
        "data": data.fingerprint(), "limit": limit, "backend": f"{backend.name} {backend.version}", "encoder": encoder.name,
        "judge": judge.name, "masker": masker.name, "length": length[0] if length else "words",
        "similarity": f"{similarity[0]} below {similarity[2]}" if similarity else None, "config": asdict(config),
    }  # fmt: skip
    folder = PairFolder(out, setup)
    if folder.finished:
        return Pairs(folder.out, folder.report())
    items, vectors = _read(data, folder, encoder, progress)
    usable = [item for item in items if not item.reason]
    labels = [[item.picture for item in usable], [_graph(item) for item in usable]]
    index, cosine = nearest(vectors, config.k, labels) if usable else (torch.zeros(0, 1), torch.zeros(0, 1))
    counted = {"length": length[1]} if length else {}
    filters = Filters(
        judge, config.margin, config.max_length_difference, similarity=similarity[1:] if similarity else None,
        check_picture=config.rejected_image in SHOW_ELSE, enforced=config.filters, **counted,
    )  # fmt: skip
    kept = RecordFile(folder.records, config.chunk)
    made = Counter(record["kind"] for record in kept.records if "reason" not in record)
    search = Search(
        folder, backend, masker, filters, config, encoder.name, usable, labels, index, cosine, made
    )  # fmt: skip
    rows = {position: row for row, position in enumerate(p for p, item in enumerate(items) if not item.reason)}
    with Meter(len(items), done=len(kept.records), show=progress) as meter:
        for start in range(len(kept.records), len(items), config.chunk):
            positions = range(start, min(start + config.chunk, len(items)))
            found = search.records([(items[p], rows.get(p, -1)) for p in positions])
            kept.add(found)
            meter.advance(len(found), sum("reason" in record for record in found))
    _finish(folder, kept.records, config)
    return Pairs(folder.out, folder.report())


def _read(data: Data, folder: PairFolder, encoder: Encoder, progress: bool) -> tuple[list[Item], Tensor | None]:
    """All items without their pictures, and the vectors of the usable ones; vectors kept from before are not computed again."""
    items: list[Item] = []
    vectors: list[Tensor] = []
    with Meter(data.total, show=progress) as meter:
        for part, (_, block) in enumerate(data.blocks(0, 1, READ)):
            found = [_item(sample, folder) for sample in block]
            good = [(sample, item) for sample, item in zip(block, found, strict=True) if not item.reason]
            if good:
                rows = folder.vectors(part, encoder.name)
                if rows is None or len(rows) != len(good):
                    rows = encoder([s.images[0] for s, _ in good], [item.truth for _, item in good])
                    folder.keep_vectors(part, encoder.name, rows)
                vectors.append(rows)
            items += found
            meter.advance(len(block), len(block) - len(good))
    return items, torch.cat(vectors) if vectors else None


def _item(sample: Sample | BadSample, folder: PairFolder) -> Item:
    if isinstance(sample, BadSample):
        return Item(sample.id, reason="unreadable")
    if len(sample.images) != 1:
        return Item(sample.id, reason="several_images" if sample.images else "no_image")
    truth = {"scene": sample.truth["scene"]} if "scene" in sample.truth else {}
    return Item(sample.id, sample.prompt, (sample.answer or "").strip(), folder.put(sample.images[0]), truth)


def _finish(folder: PairFolder, records: list[dict[str, Any]], config: PairConfig) -> None:
    """Drops the least fluent, counts, and writes the data set."""
    kept = [record for record in records if "reason" not in record]
    dropped = [record for record in records if "reason" in record]
    scored = sorted((record["fill_logp"], i) for i, record in enumerate(kept) if record["fill_logp"] is not None)
    least = {i for _, i in scored[: int(config.fluency * len(scored))]}
    dropped += [{"id": kept[i]["id"], "reason": "disfluent", "kind": kept[i]["kind"]} for i in sorted(least)]
    kept = [record for i, record in enumerate(kept) if i not in least]
    reasons = counts([record["reason"] for record in dropped], list(REASONS))
    if not kept:
        told = ", ".join(f"{code} {count}" for code, count in reasons.items())
        raise UserError(
            f"none of the {len(records)} items gave a pair ({told}): give more or other data, or another --backend, --mask or "
            f"--encoder; every reason is in {str(folder.records)!r}"
        )
    texts = ([record[name] for record in kept] for name in ("chosen", "rejected", "picture"))
    report = {
        "n": len(kept), "read": len(records),
        "dropped": reasons,
        "kinds": counts([record["kind"] for record in kept], (*KINDS, "all")),
        "giveaway": giveaway(*texts, seed=config.seed),
        "length_difference": sum(record["length_difference"] for record in kept) / max(len(kept), 1),
    }  # fmt: skip
    folder.finish(kept, dropped, report, config.chat)


def _graph(item: Item) -> Any:
    """Equal for scenes with equal graphs; of other pictures the picture itself."""
    return item.truth["scene"].graph if "scene" in item.truth else item.picture
