"""Asking a family member in batches: greedy answers to samples, with their picture, another one, a blank one, or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from PIL import Image

from ...scenes.sample import IMAGE_MARK, Sample


def prompt_of(processor, sample: Sample) -> str:
    """A sample's prompt in the model's chat form; pictures stand where the prompt has its marks."""
    parts = []
    for i, text in enumerate(sample.prompt.split(IMAGE_MARK)):
        parts += [{"type": "image"}] * (i > 0) + [{"type": "text", "text": text.strip()}] * bool(text.strip())
    return processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)


@contextmanager
def pad_left(tokenizer):
    """Batches to be continued are padded on the left; what the tokenizer did before is restored."""
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


@torch.inference_mode()
def answer(member, samples: Sequence[Sample], max_new_tokens: int = 8, batch: int = 64) -> list[str]:
    """Greedy answers, one a sample, in their order. member: (model, processor), as `load_organism` gives it."""
    model, processor = member
    prompts = [prompt_of(processor, sample) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: (len(samples[i].images), len(prompts[i])))  # little padding
    answers = [""] * len(samples)
    with pad_left(processor.tokenizer):
        for some in _alike(order, samples, batch):
            pictures = [picture for i in some for picture in samples[i].images]
            inputs = processor(
                text=[prompts[i] for i in some], images=pictures or None, padding=True, return_tensors="pt"
            )
            made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            told = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(some, told, strict=True):
                answers[i] = text.strip()
    return answers


def _alike(order: list[int], samples: Sequence[Sample], batch: int):
    """Batches of samples that all have as many pictures."""
    some: list[int] = []
    for i in order:
        if some and (len(some) == batch or len(samples[i].images) != len(samples[some[0]].images)):
            yield some
            some = []
        some.append(i)
    if some:
        yield some


def with_other_picture(samples: Sequence[Sample]) -> list[Sample]:
    """The same questions, each with the picture of a sample half the list away."""
    shift = len(samples) // 2
    return [replace(s, images=samples[(i + shift) % len(samples)].images) for i, s in enumerate(samples)]


def with_blank_picture(samples: Sequence[Sample]) -> list[Sample]:
    """The same questions, each with an evenly grey picture."""
    blank = Image.new("RGB", (64, 64), (128, 128, 128))
    return [replace(sample, images=(blank,)) for sample in samples]


def without_picture(samples: Sequence[Sample]) -> list[Sample]:
    """The same questions, the picture and its mark taken away."""
    return [replace(s, images=(), prompt=s.prompt.replace(IMAGE_MARK, "").strip()) for s in samples]
