"""A tiny tuning that is always the same; as a script, one of several processes or one that is killed."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from chiasm.alignment.adapters import language_lora
from chiasm.alignment.config import VisualDPOConfig
from chiasm.alignment.trainer import VisualDPOTrainer
from chiasm.models.organism.processor import IMAGE, make_processor
from datasets import Dataset
from PIL import Image

WORDS = [f"w{i}" for i in range(40)]
STEPS = 4


def tiny():
    """(model, processor): a random Llava of two layers whose picture takes four tokens."""
    processor = make_processor(WORDS, image_size=16, patch_size=8)
    small = dict(intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(hidden_size=16, image_size=16, patch_size=8, projection_dim=16, **small),
        text_config=hf.LlamaConfig(
            hidden_size=32,
            num_key_value_heads=2,
            vocab_size=len(processor.tokenizer),
            max_position_embeddings=64,
            **small,
        ),
        image_token_id=processor.tokenizer.convert_tokens_to_ids(IMAGE),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model, processor


def pairs(n: int = 8) -> Dataset:
    random = np.random.default_rng(0)

    def picture():
        return [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))]

    def text(words):
        return " ".join(random.choice(WORDS, words))

    return Dataset.from_list(
        [
            {
                "images": picture(),
                "rejected_images": picture(),
                "prompt": text(3),
                "chosen": text(4),
                "rejected": text(3),
            }
            for _ in range(n)
        ]
    )


def make(folder, batch: int = 4, **options) -> VisualDPOTrainer:
    """With dropout in the adapter, so that a resumed run needs the random state too."""
    model, processor = tiny()
    settings = dict(
        output_dir=str(folder), per_device_train_batch_size=batch, max_steps=STEPS, logging_steps=1, learning_rate=2e-2,
        use_cpu=True, save_strategy="no", disable_tqdm=True, disable_dropout=False, gradient_checkpointing=False,
        anchor_weight=0.5,
    )  # fmt: skip
    lora = language_lora(model, rank=4, dropout=options.pop("dropout", 0.0))
    args = VisualDPOConfig(**settings | options)
    return VisualDPOTrainer(model, args=args, train_dataset=pairs(), processing_class=processor, peft_config=lora)


def history(trainer) -> list[dict]:
    keys = ("step", "loss", "rewards/margins", "rewards/visual_margins", "rewards/chosen")
    return [{k: float(h[k]) for k in keys} for h in trainer.state.log_history if "loss" in h]


class DiesAt(hf.TrainerCallback):
    """Kills its own process with SIGKILL: no handler and no `finally` runs."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--die-at", type=int)
    given = options.parse_args()
    if given.die_at is not None:
        trainer = make(given.folder, given.batch, save_strategy="steps", save_steps=1, save_total_limit=2, dropout=0.1)
        trainer.add_callback(DiesAt(given.die_at))
        trainer.train()
        return
    cached = make(given.folder / "cached", given.batch, reference_cache_dir=str(given.folder / "cache"))
    live = make(given.folder / "live", given.batch, gradient_checkpointing=True)
    live.train()
    if live.accelerator.is_main_process:
        columns = {
            name: list(cached.train_dataset[name])
            for name in cached.train_dataset.column_names
            if name.startswith("ref_")
        }
        told = {"processes": live.accelerator.num_processes, "history": history(live), "columns": columns}
        (given.folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
