"""Samples become batches: the same batches whatever the number of processes, and from any position on."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from typing import Any, NamedTuple

from ..scenes.errors import UserError
from ..scenes.sample import BadSample, Sample


class Skipped(NamedTuple):
    """An item that was not measured: its position in the data, its id, and why."""

    position: int
    id: str
    reason: str


@dataclass
class Batch:
    """One batch, ready for the model.

    items: how many items of the data it stands for, skipped ones included; n: how many of them can be used. inputs: what
    the model takes, as a rule in one part; several where the model's processor does not take the samples together.
    """

    items: int
    n: int = 0
    inputs: list[Any] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


class Data:
    """The data of one measurement: an iterable of samples, possibly larger than memory, read a block at a time.

    samples: anything that yields `Sample` and `BadSample`. A reader's `iterate(start, step, block)` or, of a sequence,
    indexing is used to reach a position; of any other iterable the items in between are read and dropped.
    """

    def __init__(self, samples: Iterable[Sample | BadSample], limit: int | None = None):
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise UserError(f"limit {limit!r} must be a whole number of samples from 1 up, or None for all of them")
        if isinstance(samples, Sample | BadSample | str) or not isinstance(samples, Iterable):
            raise UserError(
                f"samples must be an iterable of Sample, and this is a {type(samples).__name__}: put it in a list"
            )
        self.samples, self.limit = samples, limit
        self.indexed = isinstance(samples, Sequence) or (
            hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
        )
        self._opened = None  # an iterator already begun, to look at its first item
        if not self.indexed and not hasattr(samples, "iterate"):
            iterator = iter(samples)
            self._first = next(iterator, None)
            self._opened = chain([] if self._first is None else [self._first], iterator)
            if self._first is None:
                raise UserError("the data set is empty: give at least one sample")
        if self.indexed and len(samples) == 0:
            raise UserError("the data set is empty: give at least one sample")

    @property
    def total(self) -> int | None:
        """Number of items to read, where it is known without reading."""
        try:
            known = len(self.samples)  # type: ignore[arg-type]
        except TypeError:
            return None  # an upper limit is not a length
        return known if self.limit is None else min(known, self.limit)

    def fingerprint(self) -> str:
        """Tells these data from others: the reader's own fingerprint, or one of the length and of a few items."""
        own = getattr(self.samples, "fingerprint", None)
        if own is not None:
            return own() if callable(own) else str(own)
        if self.indexed:
            length = len(self.samples)
            some = [self.samples[i] for i in sorted({0, length // 3, 2 * length // 3, length - 1})]
            return _digest(str(length), some)
        return _digest("unknown length", [self._first])

    def blocks(self, start: int, step: int, size: int) -> Iterator[tuple[int, list[Sample | BadSample]]]:
        """(position of its first item, items) of every `step`-th block of `size` items, the first one at `start`."""
        items = self._items(start, step, size)
        for k in count():
            position = start + k * step * size
            length = size if self.limit is None else min(size, self.limit - position)
            block = list(islice(items, max(length, 0)))
            if block:
                yield position, block
            if len(block) < size:
                return

    def _items(self, start: int, step: int, size: int) -> Iterator[Sample | BadSample]:
        if hasattr(self.samples, "iterate") and (start or step > 1):
            yield from self.samples.iterate(start, step, block=size)
        elif self.indexed and not hasattr(self.samples, "iterate"):
            for position in range(len(self.samples)):
                if _is_in(position, start, step, size):
                    yield self.samples[position]
        else:
            items, self._opened = self._opened or iter(self.samples), None
            for position, item in enumerate(items):
                if _is_in(position, start, step, size):
                    yield item


def _is_in(position: int, start: int, step: int, size: int) -> bool:
    return position >= start and (position - start) // size % step == 0


def _digest(header: str, items: Sequence[Sample | BadSample]) -> str:
    digest = hashlib.sha256(header.encode())
    for item in items:
        parts = [item.id, getattr(item, "prompt", ""), getattr(item, "answer", None) or ""]
        for image in getattr(item, "images", ()):
            parts += [f"{image.mode} {image.size}", hashlib.sha256(image.tobytes()).hexdigest()]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()


class Loader:
    """Batches of this process, from a position on. Every batch is a block of `batch_size` consecutive positions less the
    items that cannot be used, so neither the number of processes nor an interruption changes any batch.

    strict: a bad item raises UserError instead of being skipped. ahead: how many batches a thread prepares while the
    model is busy; 0 on a CPU, where both want the same cores.
    """

    def __init__(self, vlm, data: Data, batch_size: int, *, start=0, index=0, processes=1, strict=False, ahead=0):
        self.vlm, self.data, self.batch_size, self.strict, self.ahead = vlm, data, batch_size, strict, ahead
        self.start, self.step = start + index * batch_size, processes

    def __iter__(self) -> Iterator[Batch]:
        blocks = self.data.blocks(self.start, self.step, self.batch_size)
        batches = (self.batch(position, items) for position, items in blocks)
        return _prepared_ahead(batches, self.ahead) if self.ahead else batches

    def batch(self, position: int, items: list[Sample | BadSample]) -> Batch:
        """The batch of these items, the first of which stands at `position`."""
        made = Batch(items=len(items))
        good: list[tuple[int, Sample]] = []
        for place, item in enumerate(items, position):
            if isinstance(item, BadSample):
                self._skip(made, place, item.id, item.reason)
            elif isinstance(item, Sample):
                good.append((place, item))
            else:
                raise UserError(
                    f"item {place} of the data is a {type(item).__name__}: readers yield Sample or BadSample"
                )
        made.inputs, good = self._usable(good, made)
        made.n = len(good)
        return made

    def _usable(self, samples: list[tuple[int, Sample]], made: Batch) -> tuple[list[Any], list[tuple[int, Sample]]]:
        """The inputs of these samples, and which of them could be used; the others are skipped.

        One sample spoils a batch and the error need not say which: then each is tried by itself. Processors raise plain
        ValueErrors of their own (a picture too narrow for its patches), so not only UserError counts.
        """
        if not samples:
            return [], []
        with suppress(ValueError, OSError):
            return [self._prepare(samples)], samples
        parts, usable = [], []
        for place, sample in samples:
            try:
                parts.append(self._prepare([(place, sample)]))
                usable.append((place, sample))
            except (ValueError, OSError) as error:
                self._skip(made, place, sample.id, " ".join(str(error).split()) or type(error).__name__)
        if 1 < len(usable) < len(samples):
            with suppress(ValueError, OSError):
                return [self._prepare(usable)], usable
        return parts, usable

    def _prepare(self, samples: list[tuple[int, Sample]]):
        answers = [sample.answer for _, sample in samples]
        inputs = self.vlm.prepare(
            [list(sample.images) for _, sample in samples],
            [sample.prompt for _, sample in samples],
            answers if any(answer is not None for answer in answers) else None,
        )
        return replace(inputs, samples=tuple(sample for _, sample in samples))

    def _skip(self, made: Batch, place: int, name: str, reason: str) -> None:
        if self.strict:
            raise UserError(f"sample {name!r} (number {place + 1}): {reason}")
        made.skipped.append(Skipped(place, name, reason))


def _prepared_ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same batches in the same order, made by one thread up to `depth` ahead of their use."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="chiasm-loader")
    try:
        waiting = deque(pool.submit(next, batches, None) for _ in range(depth))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
