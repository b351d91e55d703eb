"""A tiny random VLM, samples and two small probes; as a script, one measurement (to be killed, or one of several)."""

from __future__ import annotations

import argparse
import os
import signal

import pandas as pd
import torch
import transformers as hf
from chiasm.experiments.machine import peak_memory_mb
from chiasm.experiments.run import Run, load_run
from chiasm.models import open_vlm
from chiasm.models.organism.processor import IMAGE, make_processor
from chiasm.probes.measure import measure
from chiasm.probes.processes import join_processes, n_processes
from chiasm.scenes.sample import BadSample, Sample
from PIL import Image
from torchmetrics import Metric

WORDS = [f"w{i}" for i in range(90)]
POSITIONS = 64


def tiny_vlm():
    """A random Llava of three layers, always the same one, with 64 positions of which a picture takes 16."""
    processor = make_processor(WORDS, image_size=32, patch_size=8)
    tokenizer = processor.tokenizer
    small = dict(intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(hidden_size=24, image_size=32, patch_size=8, projection_dim=16, **small),
        text_config=hf.LlamaConfig(
            hidden_size=32, num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **small
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.LlavaForConditionalGeneration(config)
    return open_vlm(model=model, processor=processor)


def sample(i: int) -> Sample:
    """The i-th sample: a plain picture and a prompt whose length varies, so that batches are padded."""
    color = (37 * i % 256, 91 * i % 256, 13 * i % 256)
    prompt = " ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(2 + i % 5))
    return Sample(f"s{i}", prompt, (Image.new("RGB", (40, 32), color),))


class Stream:
    """Samples made as they are asked for, not indexable and of unknown length, like a data set larger than memory."""

    def __init__(self, n: int, bad: tuple[int, ...] = ()):
        self.n, self.bad = n, bad

    def __iter__(self):
        for i in range(self.n):
            yield BadSample(f"s{i}", "damaged on purpose") if i in self.bad else sample(i)


class Norms(Metric):
    """Mean norm of the residual stream at real positions, by layer; a maximum; counts; and a list of one number a sample."""

    name, sites, text_only = "norms", ("blocks.*.resid_post",), False

    def attach(self, anatomy) -> None:
        layers = anatomy.n_layers
        self.add_state("total", torch.zeros(layers, dtype=torch.float64), "sum")
        self.add_state("largest", torch.zeros(layers, dtype=torch.float64), "max")
        self.add_state("count", torch.zeros((), dtype=torch.long), "sum")
        self.add_state("lengths", [], "cat")

    def update(self, trace, inputs) -> None:
        real = inputs.spans.real
        norms = torch.stack([x[real].double().norm(dim=-1) for x in trace.select("blocks.*.resid_post")])
        self.total += norms.sum(1)
        self.largest = torch.maximum(self.largest, norms.amax(1))
        self.count += norms.shape[1]
        self.lengths.append(real.sum(1))

    def compute(self) -> pd.DataFrame:
        lengths = torch.cat([x.flatten() for x in self.lengths]) if isinstance(self.lengths, list) else self.lengths
        table = pd.DataFrame({"layer": range(len(self.total)), "mean": self.total / self.count, "max": self.largest})
        return table.assign(n=int(self.count), spread=lengths.double().var(correction=0).item(), rows=len(lengths))


class Contrast(Metric):
    """Mean of the last layer with and without pictures, and a random draw, which must not depend on what ran before."""

    name, sites, text_only = "contrast", ("blocks.2.resid_post", "blocks.*.attn_mass"), True

    def attach(self, anatomy) -> None:
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), "sum")
        self.add_state("n", torch.zeros((), dtype=torch.long), "sum")

    def update(self, trace, inputs) -> None:
        def mean(t):
            return t["blocks.2.resid_post"][t.inputs.spans.real].double().abs().mean()

        mass = trace["blocks.0.attn_mass"][..., inputs.spans.names.index("image")].double().sum()
        draw = torch.rand((), dtype=torch.float64)
        self.sums += torch.stack([mean(trace), mean(trace.text_only), mass, draw])
        self.n += len(inputs)

    def compute(self) -> pd.DataFrame:
        return pd.DataFrame(
            {"quantity": ["with", "without", "mass", "draw"], "mean": self.sums / self.n, "n": int(self.n)}
        )


N, BAD, SETUP = 30, (4, 11), dict(batch_size=3, checkpoint_every=2)
"""What the script measures: 30 samples, two of them damaged, in batches of 3, with a checkpoint every 6 samples."""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--fresh", help="measure into a new run under this folder")
    options.add_argument("--resume", help="go on with this run")
    options.add_argument("--die-at", type=int, help="kill this process when so many samples were read")
    options.add_argument(
        "--memory", type=int, nargs="*", default=[], help="print the peak memory after so many samples"
    )
    given = options.parse_args()
    samples = Stream(N, BAD) if given.die_at is None else Deadly(N, BAD, given.die_at)
    join_processes()
    print(n_processes(), "processes")
    if given.fresh:
        with Run.create("test", {}, given.fresh) as run:
            measure(tiny_vlm(), samples, [Norms(), Contrast()], run=run, **SETUP)
    if given.resume:
        with load_run(given.resume).resume() as run:
            measure(tiny_vlm(), samples, [Norms(), Contrast()], run=run, **SETUP)
    for n in given.memory:
        measure(tiny_vlm(), Stream(n), [Contrast()], batch_size=32)
        print(peak_memory_mb()["process"])


class Deadly(Stream):
    """Kills its own process with SIGKILL when a sample is asked for: no handler and no `finally` runs."""

    def __init__(self, n: int, bad: tuple[int, ...], at: int):
        super().__init__(n, bad)
        self.at = at

    def __iter__(self):
        for i, item in enumerate(super().__iter__()):
            if i == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


if __name__ == "__main__":
    main()
