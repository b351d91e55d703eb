"""What a step of preference tuning costs beside TRL's own DPO step and beside the published way of separate forwards."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator

import torch

from ..models import VLM, open_vlm
from .bench import Row, Size, small_llava
from .timing import Ratio, allocation_peak, interleave

PICTURE, PAIRS, ANSWER = 336, 2, 60
"""Pixels a side (24 x 24 patches of 14 pixels: 576 image tokens), pairs a step, words of an answer."""


def llava(side: int = PICTURE) -> VLM:
    """The random Llava of about ten million parameters of the other rows, with a processor; 576 visual tokens at 336 pixels."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    from ..models.organism.processor import make_tokenizer

    vlm = small_llava(picture=side, positions=1024)
    tokenizer = make_tokenizer(f"w{i}" for i in range(6, 1000))
    vlm.model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return open_vlm(model=vlm.model, processor=processor)


def pairs(vlm: VLM, side: int, pictures: int):
    """Pairs of so many random pictures, with answers that share no beginning."""
    import numpy as np
    from datasets import Dataset
    from PIL import Image

    random = np.random.default_rng(0)
    known = vlm.tokenizer.convert_ids_to_tokens(range(6, min(len(vlm.tokenizer), 900)))
    words = [word for word in known if word.isalnum()]

    def text(n: int) -> str:
        return " ".join(random.choice(words, n))

    def drawn() -> list[Image.Image]:
        return [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(pictures)]

    rows = []
    for k in range(PAIRS):
        rows.append(
            {
                "images": drawn(), "rejected_images": drawn(), "prompt": [{"role": "user", "content": text(8)}],
                "chosen": [{"role": "assistant", "content": text(ANSWER + k)}],
                "rejected": [{"role": "assistant", "content": text(ANSWER - k)}],
            }
        )  # fmt: skip
    return Dataset.from_list(rows)


def steps(vlm: VLM, side: int, pictures: int, folder: str) -> dict[str, Callable[[], torch.Tensor]]:
    """One training step (loss and gradients; the optimiser's part is the same for all) by each way, same pairs and adapter."""
    from trl import DPOConfig, DPOTrainer

    from ..alignment.adapters import language_lora
    from ..alignment.branches import plain_logits
    from ..alignment.config import VisualDPOConfig
    from ..alignment.losses import sequence_logps, visual_dpo
    from ..alignment.trainer import VisualDPOTrainer

    data = pairs(vlm, side, pictures)
    settings = dict(
        output_dir=folder, report_to="none", bf16=False, gradient_checkpointing=False, max_length=None, disable_tqdm=True,
        use_cpu=True, per_device_train_batch_size=PAIRS,
    )  # fmt: skip
    lora = language_lora(vlm.model, rank=8, dropout=0.0)
    common = dict(train_dataset=data, processing_class=vlm.processor, peft_config=lora)

    def ours(**options):
        args = VisualDPOConfig(**settings, **options)
        return VisualDPOTrainer(copy.deepcopy(vlm.model), args=args, **common)

    trainers = {
        "rows": ours(prefix_sharing=False),
        "features": ours(prefix_sharing=False, share_vision_features=True),
        "shared": ours(prefix_sharing=True),
        "cached": ours(prefix_sharing=True, reference_cache_dir=f"{folder}/cache"),
        "stock": DPOTrainer(copy.deepcopy(vlm.model), args=DPOConfig(**settings), **common),
    }

    def step(trainer) -> Callable[[], torch.Tensor]:
        examples = list(trainer._remove_unused_columns(trainer.train_dataset, "training"))
        batch = trainer._prepare_inputs(dict(trainer.data_collator(examples)))
        trainer.model.train()

        def run():
            trainer.model.zero_grad()
            loss = trainer._compute_loss(trainer.model, dict(batch), False)
            loss.backward()
            return loss.detach()

        return run

    whole = trainers["rows"]
    batch = whole._prepare_inputs(dict(whole.data_collator(list(data))))
    branches = [{k: v.chunk(3)[i] for k, v in batch.items()} for i in range(3)]

    def separate():
        """Three forwards of the policy and three of the reference, as published, without their three more for labels."""
        model = whole.model
        model.zero_grad()
        with torch.no_grad(), model.disable_adapter():
            kept = [sequence_logps(plain_logits(model, b), b["labels"]) for b in branches]
        policy = [sequence_logps(plain_logits(model, b), b["labels"]) for b in branches]
        loss = visual_dpo(policy, kept, beta=0.1)[0].mean()
        loss.backward()
        return loss.detach()

    return {name: step(trainer) for name, trainer in trainers.items()} | {"separate": separate}


TIMES = (
    ("3N rows", "rows", "stock", 1.5),
    ("3N rows, shared features", "features", "stock", 1.5),
    ("shared prefix", "shared", "stock", 1.5),
    ("shared prefix, cached reference", "cached", "stock", 0.9),
    ("shared prefix", "shared", "separate", None),
    ("shared prefix, cached reference", "cached", "separate", 0.6),
)
"""What, its step, the step it is compared with, and the bar."""


def rows(size: Size) -> Iterator[Row]:
    """rDPO steps as ratios to TRL's DPO step and to separate forwards, on a random Llava at 576 image tokens and the organism."""
    quick = size.rounds <= 2  # two rounds only show that everything works
    side, several = (56, 1) if quick else (PICTURE, 9)  # nine pictures of 64 tokens are 576 as well
    models = {
        "Llava 10 M": (lambda: llava(side), side, 1),
        "organism": (lambda: open_vlm("organism", device="cpu"), 64, several),
    }
    for name, (make, pixels, pictures) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            vlm = make()
            every = steps(vlm, pixels, pictures, folder)
            found = interleave(every, max(2, size.rounds // 5), warm=1)
            peaks = {kind: allocation_peak(every[kind]) for kind in ("rows", "shared", "stock")}
        tokens = pictures * (pixels // vlm.anatomy.vision_config.patch_size) ** 2
        what = f"{name}, {tokens} image tokens"
        against = {"stock": f"TRL's DPO step, {what}", "separate": f"3 + 3 separate forwards, {what}"}
        for label, step, base, bar in TIMES:
            spent = f"{found.milliseconds(step):.0f} ms"
            yield Row(f"rDPO step, {label}: time", against[base], found.ratio(step, base), spent, bar)
        for label, step in (("3N rows", "rows"), ("shared prefix", "shared")):
            megabytes = f"{peaks[step] / 2**20:.0f} of {peaks['stock'] / 2**20:.0f} MiB"
            ratio = Ratio.of([peaks[step] / peaks["stock"]])
            yield Row(f"rDPO step, {label}: peak memory", against["stock"], ratio, megabytes, 1.5)
