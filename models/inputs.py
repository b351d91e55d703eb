"""One batch, ready for the model: the tensors it takes and the spans of every position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ..scenes.errors import UserError
from ..scenes.sample import IMAGE_MARK
from .anatomy import Anatomy
from .geometry import place, tile_arrangement
from .spans import Spans, find_spans

_KEPT_WITHOUT_IMAGES = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids")


@dataclass(frozen=True)
class Inputs:
    """tensors: what the model takes by keyword; spans: what each position is; samples: where `measure` made the batch, the
    `Sample` of each row, with its id and truth."""

    tensors: dict[str, Tensor]
    spans: Spans
    samples: tuple = ()

    def __len__(self) -> int:
        return len(self.tensors["input_ids"])

    def to(self, device) -> Inputs:
        tensors = {k: v.to(device) if hasattr(v, "to") else v for k, v in self.tensors.items()}
        return replace(self, tensors=tensors, spans=self.spans.to(device))

    def without_images(self) -> Inputs:
        """The same texts with the visual tokens deleted and no pictures; spans keep saying before, after, answer."""
        spans, kept = self.spans.without_images()
        tensors = {}
        for name in _KEPT_WITHOUT_IMAGES:
            if name in self.tensors:
                rows = [self.tensors[name][b][at] for b, at in enumerate(kept)]
                tensors[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Inputs(tensors, spans, self.samples)


@dataclass(frozen=True)
class _Text:
    """One prompt as the model's template writes it. head: what stands before the user's words; tail: what stands after
    the last picture, without the answer."""

    full: str
    head: str
    tail: str
    answer: str


class Writer:
    """Writes prompts and pictures the way one processor wants them."""

    def __init__(self, processor, anatomy: Anatomy):
        self.processor, self.anatomy = processor, anatomy
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        own = (getattr(processor, "boi_token", None), getattr(processor, "image_token", None))
        own += (getattr(self.tokenizer, "image_token", None), self.tokenizer.decode([anatomy.image_token_id]).strip())
        self.literals = tuple(dict.fromkeys(str(token) for token in own if token))
        self.templated = bool(getattr(processor, "chat_template", None))
        self.fronted = not self.templated and anatomy.layout.grid == "none"  # Q-Former families put pictures in front
        self.markers = marker_ids(self.tokenizer, anatomy)

    def __call__(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], answers: Sequence[str | None] | None
    ) -> Inputs:
        answers = [None] * len(prompts) if answers is None else answers
        if not len(images) == len(prompts) == len(answers):
            raise UserError(
                f"{len(images)} lists of images, {len(prompts)} prompts, {len(answers)} answers: give one per sample"
            )
        texts = [self._write(p, len(pictures), a) for p, pictures, a in zip(prompts, images, answers, strict=True)]
        encoded = self.encode([text.full for text in texts], [list(pictures) for pictures in images])
        tensors = {name: value for name, value in encoded.items() if isinstance(value, Tensor)}
        tensors.pop("labels", None)  # PaliGemma's processor makes some; with them the model would compute a loss
        tensors["attention_mask"] = tensors.get("attention_mask", torch.ones_like(tensors["input_ids"]))
        ids, mask = tensors["input_ids"], tensors["attention_mask"]
        self._check_length(mask)
        spans = find_spans(
            ids, mask, self.anatomy.image_token_id, **self.markers, in_sequence=self.anatomy.image_in_sequence
        )
        sizes = [picture.size for pictures in images for picture in pictures]
        names = [self.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
        arrangement = tile_arrangement(self.processor, names, spans, sizes)
        spans = place(spans, self.anatomy, tensors, processor=self.processor, sizes=sizes, tiles_of=arrangement)
        for b, text in enumerate(texts):
            self._mark_text(spans.labels[b], ids[b], text)
        if self.anatomy.family == "paligemma" and "token_type_ids" in tensors:
            # type 0 is a prefix read in both directions: an answer left in it would let its words see each other
            tensors["token_type_ids"] = spans.mask("answer").to(tensors["token_type_ids"])
        return Inputs(tensors, spans)

    def write(self, prompt: str, n_images: int, answer: str | None = None) -> str:
        """The text of one sample as the model's template writes it, up to the answer's last word where there is one."""
        return self._write(prompt, n_images, answer).full

    # -- writing the prompt --------------------------------------------------------------------------------------------

    def _write(self, prompt: str, n_images: int, answer: str | None) -> _Text:
        for literal in self.literals:
            if literal != IMAGE_MARK and literal in prompt:
                raise UserError(
                    f"the prompt holds the model's own image token {literal!r}: write {IMAGE_MARK} where a picture goes, "
                    "or leave it out to have pictures in front"
                )
        marks = prompt.count(IMAGE_MARK)
        if marks not in (0, n_images):
            raise UserError(
                f"{n_images} pictures for {marks} {IMAGE_MARK} in the prompt {_short(prompt)!r}: give as many of each"
            )
        pieces = prompt.split(IMAGE_MARK) if marks else [*[""] * n_images, prompt]
        pieces = [piece.strip() for piece in pieces]
        return self._templated(pieces, answer) if self.templated else self._plain(pieces, answer)

    def _templated(self, pieces: list[str], answer: str | None) -> _Text:
        content = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
        for piece in pieces[1:]:
            content.append({"type": "image"})
            content += [{"type": "text", "text": piece}] if piece else []
        text = self._render(content, None)
        literal = next((token for token in self.literals if token in text), self.literals[0])
        starts = _in_order(text, pieces, literal)
        if starts is None:  # a template that puts pictures first: write the image token into one text instead
            inline = f" {literal} ".join(pieces).strip()
            content = [{"type": "text", "text": inline}]
            text = self._render(content, None)
            starts = _in_order(text, pieces, literal)
        if starts is None or text.count(literal) != len(pieces) - 1:
            raise UserError(
                f"the chat template of this model does not take the prompt {_short(' '.join(pieces))!r} with its pictures"
            )
        full = text
        if answer is not None:
            full = self._render(content, answer)
            full = full[: full.rindex(answer) + len(answer)]
        tail = text.rpartition(literal)[2]
        return _Text(full, text[:starts], tail, full.rpartition(literal)[2] if answer is not None else tail)

    def _render(self, content: list[dict], answer: str | None) -> str:
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)

    def _plain(self, pieces: list[str], answer: str | None) -> _Text:
        if self.fronted:
            if any(pieces[:-1]):
                raise UserError(
                    f"{self.anatomy.family} takes its picture in front of the text: move {IMAGE_MARK} to the front"
                )
            text = pieces[-1]
        else:
            text = self.literals[0].join(pieces)
        full = text if answer is None else f"{text} {answer}"
        cut = self.literals[0]
        return _Text(full, "", text.rpartition(cut)[2], full.rpartition(cut)[2])

    # -- tokens --------------------------------------------------------------------------------------------------------

    def encode(self, texts: list[str], images: list[list[Image.Image]]):
        """The processor's output, left-padded, of texts as the model's template writes them; one list of pictures a text."""
        flat = [picture for pictures in images for picture in pictures]
        nested = self.anatomy.layout.grid in ("tiles", "cross") or self.anatomy.family in ("idefics2", "gemma3")
        bos = self.tokenizer.bos_token
        options = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
        try:
            return self.processor(
                text=texts, images=(images if nested else flat) if flat else None, padding=True, padding_side="left",
                return_tensors="pt", **options,
            )  # fmt: skip
        except (ValueError, TypeError, IndexError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            shapes = ", ".join(f"{p.size[0]}x{p.size[1]}" for p in flat[:4])
            raise UserError(
                f"{type(self.processor).__name__} does not take this prompt with {len(flat)} pictures ({shapes}): {_line(error)}"
            ) from error

    def _check_length(self, mask: Tensor) -> None:
        longest, room = int(mask.sum(1).max()), self.anatomy.max_positions
        if room is not None and longest > room:
            raise UserError(
                f"the sequence has {longest} positions, this {self.anatomy.family} has {room}: shorten the prompt or use "
                "fewer or smaller pictures"
            )

    def _mark_text(self, labels: Tensor, ids: Tensor, text: _Text) -> None:
        """Labels the template's head "system" and the answer "answer", by the tokens those strings make."""
        index = {name: i for i, name in enumerate(Spans.names)}
        real = torch.nonzero(labels >= 0).flatten()
        if text.head:
            head = self._tokens(text.head)
            bos = self.tokenizer.bos_token_id
            if bos is not None and ids[real[0]] == bos and head[:1] != [bos]:
                head = [bos, *head]  # written by the tokenizer or processor, not by the template
            for position, (token, wanted) in zip(real, zip(ids[real].tolist(), head, strict=False), strict=False):
                if token != wanted:
                    break
                if labels[position] == index["before"]:
                    labels[position] = index["system"]
        if text.answer == text.tail:
            return
        n = len(self._tokens(text.answer)) - _common(self._tokens(text.tail), self._tokens(text.answer))
        if n:
            labels[real[-n:]] = index["answer"]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def tensors_to_inputs(anatomy: Anatomy, tensors: dict, tokenizer=None) -> Inputs:
    """Inputs from a processor's output made elsewhere: spans from the ids, places where the tensors tell them."""
    if "input_ids" not in tensors:
        raise UserError(f"from_tensors needs input_ids; it was given {', '.join(tensors) or 'nothing'}")
    tensors = dict(tensors)
    ids = tensors["input_ids"]
    mask = tensors.setdefault("attention_mask", torch.ones_like(ids))
    spans = find_spans(
        ids,
        mask,
        anatomy.image_token_id,
        **marker_ids(tokenizer, anatomy),
        in_sequence=anatomy.image_in_sequence,
    )
    return Inputs(tensors, place(spans, anatomy, tensors))


def marker_ids(tokenizer, anatomy: Anatomy) -> dict[str, frozenset[int]]:
    """Ids that belong to a picture when they touch it, and those that name tiles: see `find_spans`."""
    config = anatomy.model.config
    fields = (
        "vision_start_token_id",
        "vision_end_token_id",
        "boi_token_index",
        "eoi_token_index",
        "boi_token_id",
        "eoi_token_id",
    )
    names = {i: str(token).lower() for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    words = ("image", "img", "vision", "tile", "row_", "global")
    markers = {getattr(config, field, None) for field in fields} - {None}
    markers |= {i for i, name in names.items() if any(word in name for word in words)}
    return {
        "markers": frozenset(markers - {anatomy.image_token_id}),
        "continued": frozenset(i for i, name in names.items() if re.fullmatch(r"<row_\d+_col_\d+>", name)),
        "closing": frozenset(i for i, name in names.items() if name == "<global-img>"),
    }


def _in_order(text: str, pieces: list[str], literal: str) -> int | None:
    """Where the user's words begin in the rendered text, if its pieces and pictures stand in the order given."""
    at, start = 0, None
    for k, piece in enumerate(pieces):
        for token in ([literal] if k else []) + ([piece] if piece else []):
            found = text.find(token, at)
            if found < 0:
                return None
            start = found if start is None else start
            at = found + len(token)
    return start


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _short(text: str, n: int = 60) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


def _line(error: Exception) -> str:
    return _short(" ".join(str(error).split()), 200)
