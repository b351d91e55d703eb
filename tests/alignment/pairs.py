"""Tiny models with their processors, preference pairs for them, and a trainer with settings for tests."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from chiasm.alignment.config import VisualDPOConfig
from chiasm.alignment.trainer import VisualDPOTrainer
from datasets import Dataset
from PIL import Image
from transformers.trainer_callback import PrinterCallback

from ..models.families import build
from ..models.processors import PROCESSORS

THINGS = ("cat", "dog", "table", "picture")
ENDED = (  # a template that ends the assistant's turn, as real ones do
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}MARK{% else %}"
    "{{ c['text'] }}{% endif %} {% endfor %}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def tiny(family: str = "llava", scale: float = 3.0):
    """(model, processor); weights are scaled so that a random model's answers depend on its picture."""
    model, _ = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    processor = PROCESSORS[family]()
    if family == "llava":
        processor.chat_template = ENDED.replace("MARK", "<image>")
    return model, processor


def moved(model, seed: int = 1, by: float = 0.02):
    """A copy a little way off, as a policy is from its reference."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return copied


def rows(n: int = 4, *, plain: bool = False, sizes=((32, 32), (32, 32)), seed: int = 0) -> list[dict]:
    """Pairs of unequal length that part at their third or fourth word; sizes: of the image and of the rejected image."""
    random, made = np.random.default_rng(seed), []
    for i in range(n):
        pictures = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
        chosen, rejected = THINGS[i % 4], THINGS[(i + 1) % 4]
        texts = [
            "what is in the picture ?",
            f"this is a {chosen} on the table",
            f"this is {'a red' if i % 2 else 'a'} {rejected}",
        ]
        roles = ("user", "assistant", "assistant")
        if not plain:
            texts = [[{"role": role, "content": text}] for role, text in zip(roles, texts, strict=True)]
        pair = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
        made.append({"images": pictures[:1], "rejected_images": pictures[1:], **pair})
    return made


def dataset(n: int = 4, **options) -> Dataset:
    return Dataset.from_list(rows(n, **options))


def config(folder: Path | str, **options) -> VisualDPOConfig:
    settings = dict(
        output_dir=str(folder), per_device_train_batch_size=4, per_device_eval_batch_size=4, max_steps=3, logging_steps=1,
        learning_rate=2e-3, lr_scheduler_type="constant", use_cpu=True, save_strategy="no", disable_tqdm=True, seed=0,
        gradient_checkpointing=False,
    )  # fmt: skip
    return VisualDPOConfig(**settings | options)


def trainer(
    folder, model, processor, data=None, *, ref_model=None, peft_config=None, eval_dataset=None, run=None, **options
):
    made = VisualDPOTrainer(
        model, args=config(folder, **options), train_dataset=dataset() if data is None else data,
        processing_class=processor, ref_model=ref_model, peft_config=peft_config, eval_dataset=eval_dataset, run=run,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made


def batch_of(made: VisualDPOTrainer, examples=None) -> dict:
    return made._prepare_inputs(dict(made.data_collator(list(made.train_dataset) if examples is None else examples)))


def loss_of(made: VisualDPOTrainer, batch=None) -> torch.Tensor:
    made.model.train()
    return made._compute_loss(made.model, batch_of(made) if batch is None else batch, False)
