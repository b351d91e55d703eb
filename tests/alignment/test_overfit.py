"""Sixteen rendered pairs are learnt by rDPO with LoRA on the organism, and what was logged can be read again."""

from __future__ import annotations

import random
import struct

import pytest
from chiasm.alignment.adapters import language_lora
from chiasm.alignment.event_log import crc32c
from chiasm.experiments.run import Run, load_run
from chiasm.models import open_vlm
from chiasm.scenes.captions import caption
from chiasm.scenes.render import render
from chiasm.scenes.world import make_scene, split_seeds
from datasets import Dataset

from .pairs import trainer


def rendered_pairs(n: int) -> Dataset:
    """The caption of a scene against that of another, and its picture against that of the other."""
    scenes = [make_scene(seed) for seed in split_seeds("train", n + 1)]
    pictures = [render(scene).pil for scene in scenes]
    texts = [caption(scene, rng=random.Random(0)) for scene in scenes]
    return Dataset.from_list(
        [
            {
                "images": [pictures[i]],
                "rejected_images": [pictures[i + 1]],
                "prompt": "describe the picture",
                "chosen": texts[i],
                "rejected": texts[i + 1],
            }
            for i in range(n)
        ]
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("tuned")
    organism, data = open_vlm("organism"), rendered_pairs(16)
    with Run.create("tuning", {}, folder / "runs") as run:
        made = trainer(
            folder / "out", organism, None, data, peft_config=language_lora(organism.model, rank=8, dropout=0.0),
            learning_rate=3e-3, max_steps=16, eval_dataset=data, run=run, report_to=["tensorboard"],
            reference_cache_dir=str(folder / "cache"), per_device_eval_batch_size=8,
        )  # fmt: skip
        made.train()
        made.final = made.evaluate()
    return made, run, folder


def test_lora_rdpo_learns_sixteen_pairs(tuned):
    made, _, _ = tuned
    losses = [h["loss"] for h in made.state.log_history if "loss" in h]
    assert losses[0] == pytest.approx(1.386, abs=1e-2) and sum(losses[-4:]) < sum(losses[:4]) and losses[-1] < 1.2
    assert made.final["eval_rewards/accuracies"] == 1.0
    assert made.final["eval_rewards/visual_margins"] > 0


def test_the_run_keeps_the_metrics_of_every_step(tuned):
    _, run, _ = tuned
    table = load_run(run.path).read_table("training")
    assert table["loss"].notna().sum() == 16
    assert {"rewards/visual_margins", "kl/chosen", "eval_rewards/accuracies"} <= set(table)
    assert load_run(run.path).manifest["training"]["visual_weight"] == 1.0
    assert "step 16" in (run.path / "log.txt").read_text()


def numbers(data: bytes) -> list[tuple[int, bytes | int]]:
    """The fields of a protocol buffer, read by hand."""
    found, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        size = {1: 8, 5: 4}.get(kind) or varint()
        if kind == 0:
            found.append((key >> 3, size))
        else:
            found.append((key >> 3, data[at : at + size]))
            at += size
    return found


def test_metrics_are_written_as_tensorboard_reads_them(tuned):
    assert crc32c(b"123456789") == 0xE3069283  # the checksum's published check value
    (path,) = (tuned[2] / "out" / "runs").glob("events.out.tfevents.*")
    data, at, scalars = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        message = data[at + 12 : at + 12 + length]
        crc = crc32c(message)
        assert (
            struct.unpack("<I", data[at + 12 + length : at + 16 + length])[0]
            == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
        )
        fields = dict(numbers(message))
        for _, value in numbers(fields.get(5, b"")):
            entry = dict(numbers(value))
            scalars.setdefault(entry[1].decode(), {})[fields[2]] = struct.unpack("<f", entry[2])[0]
        at += 16 + length
    wanted = {h["step"]: h["loss"] for h in tuned[0].state.log_history if "loss" in h}
    assert scalars["train/loss"] == pytest.approx(wanted, rel=1e-6)
    assert set(scalars["eval/rewards/visual_margins"]) == {16}
