"""From preference pairs to one batch of rows: chosen | image, rejected | image, chosen | rejected image."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.data_utils import is_conversational, prepare_multimodal_messages

from ..models.anatomy import Anatomy
from ..models.inputs import Writer
from ..scenes.errors import UserError
from ..scenes.sample import IMAGE_MARK
from .losses import IGNORED

logger = logging.getLogger("chiasm")

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps", "ref_visual_logps")
"""Optional columns of a data set: the reference's log-probabilities of the three branches, in nats."""

NEEDED = ("prompt", "chosen", "rejected")
TOKEN_KEYS = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")
"""What a processor gives for every token besides its id."""


@dataclass(frozen=True)
class _Pair:
    """One example as text and pictures; completions hold the end-of-turn token."""

    images: list[Image.Image]
    rejected_images: list[Image.Image] | None
    prompt: str
    full: tuple[str, str]
    name: str


@dataclass
class VisualPreferenceCollator:
    """Makes batches of preference rows. A row of the data set (a dict) must have

    - `images`: a list of pictures (PIL), or `image`: one;
    - `rejected_images` (or `rejected_image`): as many; needed where `visual` is true;
    - `prompt`, `chosen`, `rejected`: conversations (lists of role/content; pictures stand in front of the first user turn
      unless its text holds an `<image>` for each), or plain strings. A plain prompt is written by the model's own chat
      template if it has one, `<image>` says where a picture goes, and the answers get the end-of-turn token: the ids are
      those of `vlm.prepare(images, prompts, answers)` and that token;
    - optionally `ref_chosen_logps`, `ref_rejected_logps`, `ref_visual_logps`: floats.

    The batch of N pairs has 3N rows (2N without `visual`), right-padded, in the order chosen, rejected, visual:
    input_ids, attention_mask, completion_mask (1 on completions and their end-of-turn token), labels (unshifted, -100
    elsewhere), branch (0, 1, 2 for each row), and what the processor gives for the pictures, in row order; with
    `distinct_images` each picture once, those of N images and then those of N rejected images. A stock DPOTrainer refuses
    such a batch, since it passes `labels` itself.

    A completion starts where the ids of the whole conversation leave those of the prompt, so that no token differs from what
    the model sees when the conversation is tokenised at once. Raises UserError, one line, for a missing column or picture,
    unequal numbers of pictures, an empty completion, a prompt that is not the beginning of the conversation, and a row whose
    completion or image tokens fall beyond `max_length`.
    """

    processor: Any
    anatomy: Anatomy
    max_length: int | None = None
    visual: bool = True
    distinct_images: bool = False
    merged: int = field(default=0, init=False)
    """Completions whose first token was one with the prompt's last."""
    completions: int = field(default=0, init=False)

    def __post_init__(self):
        self.writer = Writer(self.processor, self.anatomy)
        self.tokenizer = self.writer.tokenizer

    @property
    def branches(self) -> int:
        return 3 if self.visual else 2

    def settings(self) -> dict[str, Any]:
        """What decides the ids and pixels of a row, as JSON values: a cache of log-probabilities holds for these only."""
        pictures = getattr(self.processor, "image_processor", None)
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return {
            "template": getattr(self.processor, "chat_template", None),
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "pictures": json.loads(pictures.to_json_string()) if pictures is not None else None,
            "max_length": self.max_length,
            "branches": self.branches,
        }

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        pairs = [self._read(example) for example in examples]
        n = len(pairs)
        shown = [pair.images for pair in pairs]
        encoded_rows = shown if self.distinct_images else shown * 2
        if self.visual:
            encoded_rows = encoded_rows + [pair.rejected_images for pair in pairs]
        texts = [pair.prompt for pair in pairs] * (len(encoded_rows) // n)
        encoded = {k: v for k, v in self.writer.encode(texts, encoded_rows).items() if isinstance(v, Tensor)}
        encoded.pop("labels", None)  # PaliGemma's processor makes some
        order = list(range(n)) * 2 if self.distinct_images else list(range(2 * n))
        if self.visual:
            order += range(len(encoded_rows) - n, len(encoded_rows))
        which = [(k % n, 1 if k // n == 1 else 0) for k in range(self.branches * n)]
        completions = self._completions(pairs)
        ids, mask = encoded.pop("input_ids"), encoded.pop("attention_mask", None)
        per_token = {name: encoded.pop(name) for name in TOKEN_KEYS if name in encoded}
        rows: dict[str, list[Tensor]] = {name: [] for name in ("input_ids", "completion_mask", *per_token)}
        for row, (i, answer) in zip(order, which, strict=True):
            tail, dropped, prompt_end = completions[i][answer]
            real = torch.ones_like(ids[row], dtype=torch.bool) if mask is None else mask[row].bool()
            prompt = ids[row][real]
            if dropped and prompt[-dropped:].tolist() != prompt_end:
                raise UserError(f"the prompt {pairs[i].name!r} does not end with its own last tokens: end it on a word")
            keep = len(prompt) - dropped
            whole = torch.cat([prompt[:keep], torch.tensor(tail, dtype=prompt.dtype)])
            scored = torch.cat([torch.zeros(keep), torch.ones(len(tail))]).long()
            self._check_cut(whole, scored, pairs[i].name)
            rows["input_ids"].append(whole[: self.max_length])
            rows["completion_mask"].append(scored[: self.max_length])
            for name, values in per_token.items():
                longer = self._extend(name, values[row][real][:keep], len(tail))
                rows[name].append(longer[: self.max_length])
        fill = {"input_ids": self.tokenizer.pad_token_id}
        batch = {k: pad_sequence(v, batch_first=True, padding_value=fill.get(k, 0)) for k, v in rows.items()}
        lengths = torch.tensor([len(row) for row in rows["input_ids"]])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        batch["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
        batch["branch"] = torch.arange(self.branches).repeat_interleave(n)
        for name in REFERENCE_COLUMNS[: self.branches]:
            if examples[0].get(name) is not None:
                batch[name] = torch.tensor([float(example[name]) for example in examples])
        return batch | encoded

    # -- one pair ------------------------------------------------------------------------------------------------------

    def _read(self, example: dict[str, Any]) -> _Pair:
        missing = [name for name in NEEDED if not example.get(name)]
        if missing:
            raise UserError(
                f"a preference pair has no {' and no '.join(missing)}: it needs {', '.join(NEEDED)} and images"
            )
        name = _short(example["prompt"])
        images = _pictures(example, "images", "image")
        rejected = _pictures(example, "rejected_images", "rejected_image")
        if self.visual:
            if rejected is None:
                raise UserError(
                    f"the pair {name!r} has no rejected_images: add the column, set visual_weight=0 for plain DPO, or use "
                    "VisualDPOTrainer (a stock DPOTrainer drops the column)"
                )
            if not images:
                raise UserError(f"the pair {name!r} has no image, and the visual term compares two: give it one")
            if len(rejected) != len(images):
                raise UserError(
                    f"the pair {name!r} has {len(images)} images and {len(rejected)} rejected_images: give as many"
                )
        write = self._conversation if is_conversational(example) else self._plain
        prompt, full = write(example, images or [], name)
        for text in full:
            if not text.startswith(prompt):
                raise UserError(
                    f"the prompt {name!r} as the chat template writes it is not the beginning of the conversation with its "
                    "answer: use a template that writes the prompt the same way in both"
                )
        return _Pair(images or [], rejected, prompt, full, name)

    def _plain(self, example: dict, images: list, name: str) -> tuple[str, tuple[str, str]]:
        full, eos = [], self.tokenizer.eos_token or ""
        for answer in (example["chosen"], example["rejected"]):
            if not answer.strip():
                raise UserError(f"the pair {name!r} has an empty completion: drop it")
            text = self.writer.write(example["prompt"], len(images), answer)
            full.append(text if text.endswith(eos) else text + eos)
        return self.writer.write(example["prompt"], len(images)), tuple(full)

    def _conversation(self, example: dict, images: list, name: str) -> tuple[str, tuple[str, str]]:
        if not self.writer.templated:
            raise UserError(
                f"this {self.anatomy.family} has no chat template for the conversation {name!r}: give plain strings"
            )
        asked = prepare_multimodal_messages(_placed(example["prompt"], len(images)), images=[None] * len(images))
        options = {"tokenize": False, **(example.get("chat_template_kwargs") or {})}
        if example.get("tools"):
            tools = example["tools"]
            options["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        render = self.processor.apply_chat_template
        full = []
        for answer in (example["chosen"], example["rejected"]):
            turns = prepare_multimodal_messages(answer)
            if not any(part.get("text") and part["text"].strip() for turn in turns for part in turn["content"] or []):
                raise UserError(f"the pair {name!r} has an empty completion: drop it")
            full.append(render([*asked, *turns], add_generation_prompt=False, **options))
        return render(asked, add_generation_prompt=True, **options), tuple(full)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _completions(self, pairs: list[_Pair]) -> list[list[tuple[list[int], int, list[int]]]]:
        """For each pair and each of its answers: the ids after the prompt, how many of the prompt's last ids they replace
        (0 unless tokens merge across the boundary), and which those are."""
        texts = [text for pair in pairs for text in (pair.prompt, *pair.full)]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        found = []
        for i, pair in enumerate(pairs):
            prompt, *answers = ids[3 * i : 3 * i + 3]
            found.append([])
            for whole in answers:
                kept = next((k for k, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
                tail, dropped = whole[kept:], len(prompt) - kept
                if not tail:
                    raise UserError(f"the pair {pair.name!r} has a completion without tokens: drop it")
                if self.anatomy.image_token_id in tail:
                    raise UserError(
                        f"a completion of {pair.name!r} holds the image token: pictures belong in the prompt"
                    )
                if dropped and not self.merged:
                    logger.warning(
                        "the last token of the prompt %r is one with the first of its completion; the completion starts with "
                        "the token they share, as when the conversation is tokenised at once", pair.name
                    )  # fmt: skip
                self.completions += 1
                self.merged += bool(dropped)
                found[-1].append((tail, dropped, prompt[kept:]))
        return found

    def _extend(self, name: str, values: Tensor, n: int) -> Tensor:
        """A processor's values for the prompt's tokens, carried on over n tokens of a completion."""
        if name == "cross_attention_mask":  # what follows the picture sees it
            return torch.cat([values, values[-1:].expand(n, *values.shape[1:])])
        # PaliGemma reads tokens of type 0 in both directions: an answer must not be one of them.
        after = int(name == "token_type_ids" and self.anatomy.family == "paligemma")
        return torch.cat([values, values.new_full((n,), after)])

    def _check_cut(self, ids: Tensor, scored: Tensor, name: str) -> None:
        if self.max_length is None or len(ids) <= self.max_length:
            return
        if (ids[self.max_length :] == self.anatomy.image_token_id).any():
            raise UserError(
                f"max_length {self.max_length} cuts image tokens of {name!r} ({len(ids)} tokens): raise it, or leave it out"
            )
        if not scored[: self.max_length].any():
            raise UserError(
                f"max_length {self.max_length} cuts a whole completion of {name!r} ({len(ids)} tokens), so nothing would be "
                "learnt from it: raise it, or leave it out"
            )


def _pictures(example: dict, several: str, one: str) -> list[Image.Image] | None:
    found = example.get(several)
    if found is None:
        found = None if example.get(one) is None else [example[one]]
    return None if found is None else [_open(picture) for picture in found]


def _open(picture) -> Image.Image:
    """A picture as a column of `datasets` may hold it: a PIL image, or bytes and a path that were not decoded."""
    if isinstance(picture, dict):
        picture = Image.open(io.BytesIO(picture["bytes"]) if picture.get("bytes") else picture["path"])
    if not isinstance(picture, Image.Image):
        raise UserError(f"a picture of a preference pair is a {type(picture).__name__}: give PIL images")
    return picture


def _placed(messages: list[dict], n_images: int) -> list[dict]:
    """Messages with a part for each `<image>` in their text, if there are as many as pictures."""
    marks = sum(m["content"].count(IMAGE_MARK) for m in messages if isinstance(m.get("content"), str))
    if not marks:
        return messages
    if marks != n_images:
        raise UserError(f"{n_images} pictures for {marks} {IMAGE_MARK} in a conversation: give as many of each")
    placed = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            first, *rest = (piece.strip() for piece in content.split(IMAGE_MARK))
            parts = [{"type": "text", "text": first}] if first else []
            for piece in rest:
                parts += [{"type": "image"}, *([{"type": "text", "text": piece}] if piece else [])]
            content = parts
        placed.append({**message, "content": content})
    return placed


def _short(prompt, n: int = 60) -> str:
    if not isinstance(prompt, str):
        prompt = " ".join(str(turn.get("content")) for turn in prompt if isinstance(turn, dict))
    return prompt if len(prompt) <= n else prompt[: n - 1] + "…"
