"""Speed and memory of chiasm as ratios, all measured in one run: `make bench`, or python -m chiasm.experiments.bench."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..models import VLM, open_vlm
from ..scenes.errors import UserError
from .bench_memory import peak_in_new_process, probes
from .timing import Ratio, allocation_peak, interleave

IMAGE = 3


@dataclass(frozen=True)
class Row:
    """One line of the table: a ratio and, where there is one, the bar it has to stay under."""

    quantity: str
    against: str
    ratio: Ratio | None
    detail: str = ""
    bar: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.bar is None or self.ratio is None else self.ratio.median <= self.bar


@dataclass(frozen=True)
class Size:
    """How much is run: `FULL` for numbers, `QUICK` to see that everything works (its ratios mean nothing)."""

    rounds: int
    long_rounds: int
    long: int
    scenes: int
    scene_rounds: int
    few: int
    many: int


FULL = Size(rounds=30, long_rounds=7, long=2048, scenes=384, scene_rounds=5, few=200, many=4000)
QUICK = Size(rounds=2, long_rounds=1, long=320, scenes=8, scene_rounds=1, few=8, many=24)


def small_llava(picture: int = 224, positions: int = 512) -> VLM:
    """A random Llava of about ten million parameters: CLIP 6 x 192, Llama 8 x 256; 256 visual tokens at 224 pixels."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=picture,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=1000, max_position_embeddings=positions, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return open_vlm(model=LlavaForConditionalGeneration(config).eval(), device="cpu")


def random_inputs(vlm: VLM, length: int, picture: int = 224):
    """One row of `length` positions: bos, the picture, random words."""
    visual = (picture // 14) ** 2
    words = torch.randint(4, 1000, (1, length - visual - 1), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.ones(1, 1, dtype=torch.long), torch.full((1, visual), IMAGE), words], 1)
    pixels = torch.randn(1, 3, picture, picture, generator=torch.Generator().manual_seed(0))
    return vlm.from_tensors(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)


def forward(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs.tensors, use_cache=False, **options)


# -- the rows ----------------------------------------------------------------------------------------------------------


def residual_rows(size: Size) -> Iterator[Row]:
    """Every layer's residual stream: plain hooks beside nnsight and TransformerLens, same model, same input."""
    vlm = small_llava()
    inputs = random_inputs(vlm, 260)
    sites = ["vision.blocks.*.resid_post", "blocks.*.resid_post"]
    steps: dict[str, Callable[[], object]] = {
        "plain": lambda: forward(vlm.model, inputs),
        "trace": lambda: vlm.trace(inputs, sites),
    }
    missing = []
    for name, make in (("nnsight trace", nnsight_step), ("TransformerLens run_with_cache", transformer_lens_step)):
        try:
            steps[name] = make(vlm, inputs)
        except UserError as error:
            missing.append(Row(f"{name}, the same residuals", "plain forward", None, str(error)))
    found = interleave(steps, size.rounds)
    base = f"plain forward, {vlm.n_parameters / 1e6:.1f} M, T=260"
    yield Row("trace of all residuals", base, found.ratio("trace", "plain"), _ms(found, "trace"), 1.05)
    for name in list(steps)[2:]:
        yield Row(f"{name}, the same residuals", base, found.ratio(name, "plain"), _ms(found, name))
        yield Row("trace of all residuals", name, found.ratio("trace", name), "fastest: below 1", 1.0)
    yield from missing


def nnsight_step(vlm: VLM, inputs) -> Callable[[], object]:
    view, anatomy = vlm.nnsight(), vlm.anatomy
    towers = [*anatomy.layout.vision_blocks, anatomy.layout.blocks]

    def read():
        kept = []
        with torch.no_grad(), view.trace(**inputs.tensors, use_cache=False):
            for path in towers:
                for block in view.get(path):
                    kept.append(block.output.save())
        return kept

    check_reads(read(), vlm, inputs)
    return read


def transformer_lens_step(vlm: VLM, inputs) -> Callable[[], object]:
    bridge = vlm.transformer_lens()
    tensors = dict(inputs.tensors)
    ids = tensors.pop("input_ids")

    def read():
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                ids, names_filter=lambda name: name.endswith(".hook_resid_post"), **tensors
            )
        return [cache[name] for name in sorted(cache, key=_site_order)]

    check_reads(read(), vlm, inputs)
    return read


def _site_order(name: str) -> tuple[bool, int]:
    """The tower first, then the decoder, each by layer."""
    return name.startswith("blocks."), int(next(part for part in name.split(".") if part.isdigit()))


def check_reads(found: list[torch.Tensor], vlm: VLM, inputs) -> None:
    """What another tool reads must be what chiasm reads, or the times compare different work."""
    ours = vlm.trace(inputs, ["vision.blocks.*.resid_post", "blocks.*.resid_post"])
    theirs = [torch.as_tensor(value).reshape(ours[site].shape) for site, value in zip(ours, found, strict=True)]
    worst = max(float((ours[site] - value).abs().max()) for site, value in zip(ours, theirs, strict=True))
    if worst > 1e-3:
        raise UserError(f"it reads other values than chiasm does (by up to {worst:.2g})")


def mass_rows(size: Size) -> Iterator[Row]:
    """Attention mass per segment at T positions, against the plain fused forward and against materialised attention."""
    vlm = small_llava(positions=size.long)
    eager = copy.deepcopy(vlm.model)
    eager.set_attn_implementation("eager")
    inputs = random_inputs(vlm, size.long)
    sites = ["blocks.*.attn_mass"]
    steps: dict[str, Callable[[], object]] = {
        "sdpa": lambda: forward(vlm.model, inputs),
        "mass": lambda: vlm.trace(inputs, sites),
        "eager": lambda: forward(eager, inputs, output_attentions=True),
    }
    found = interleave(steps, size.long_rounds, warm=1)
    peaks = {name: allocation_peak(step) for name, step in steps.items()}
    extra = {name: peaks[name] - peaks["sdpa"] for name in ("mass", "eager")}
    what, mib = f"segment mass, 8 layers, T={size.long}", 2**20
    yield Row(f"{what}: time", "plain sdpa forward", found.ratio("mass", "sdpa"), _ms(found, "mass"), 1.6)
    yield Row(
        f"{what}: time", "eager + output_attentions", found.ratio("mass", "eager"), _ms(found, "eager", "eager"), 0.4
    )
    ratio = Ratio.of([max(extra["mass"], 0) / extra["eager"]])
    detail = f"{extra['mass'] / mib:.1f} of {extra['eager'] / mib:.0f} MiB above plain (allocator's count)"
    yield Row(f"{what}: extra memory", "eager + output_attentions", ratio, detail, 0.1)


def measure_rows(size: Size) -> Iterator[Row]:
    """`measure` with both probes on the organism, against plain forwards of the same batches, prepared the same way."""
    from ..probes.measure import measure
    from ..scenes.benchmarks import scene_samples

    vlm = open_vlm("organism", device="cpu")
    samples, width = list(scene_samples(size.scenes, "test")), 8
    batches = [samples[i : i + width] for i in range(0, len(samples), width)]

    def plain(text_only: bool) -> None:
        for batch in batches:
            inputs = vlm.prepare_samples(batch)
            forward(vlm.model, inputs)
            if text_only:
                forward(vlm.model, inputs.without_images())

    twice = any(probe.text_only for probe in probes())
    steps: dict[str, Callable[[], object]] = {
        "measure": lambda: measure(vlm, samples, probes(), batch_size=width, progress=False),
        "once": lambda: plain(False),
        "both": lambda: plain(twice),
    }
    found = interleave(steps, size.scene_rounds, warm=1)
    what = f"measure, both probes, {size.scenes} scenes"
    passes = "with the pictures and without" if twice else "one pass"
    yield Row(
        what,
        f"plain forwards of the same batches ({passes})",
        found.ratio("measure", "both"),
        _ms(found, "measure"),
        1.35,
    )
    if twice:
        yield Row(
            what, "plain forwards with the pictures only", found.ratio("measure", "once"), _ms(found, "once", "plain")
        )


def growth_rows(size: Size) -> Iterator[Row]:
    """Peak memory of `measure` on many samples over few, each the peak resident size of a process of its own."""
    few, many = (peak_in_new_process(n) for n in (size.few, size.many))
    detail = f"{many / 2**20:.0f} and {few / 2**20:.0f} MiB resident, each its own process"
    yield Row(
        f"peak memory of measure, {size.many:,} samples", f"{size.few:,} samples", Ratio.of([many / few]), detail, 1.03
    )


def _ms(found, step: str, name: str | None = None) -> str:
    return f"{name + ' ' if name else ''}{found.milliseconds(step):.1f} ms"


def part(module: str) -> Callable[[Size], Iterator[Row]]:
    """The rows of a bench that lives in a file of its own."""
    return lambda size: import_module(f".bench_{module}", __package__).rows(size)


PARTS = {
    "residuals": residual_rows,
    "mass": mass_rows,
    "measure": measure_rows,
    "growth": growth_rows,
    **{
        name: part(name)
        for name in ("lenses", "outliers", "embeddings", "concepts", "contrast", "compute", "retrieval", "tuning")
    },
}


def table(rows: list[Row], size: Size) -> Table:
    shown = Table(title="chiasm bench: ratios of medians of paired rounds, smaller is better", title_justify="left")
    for name in ("what", "against", "ratio", "middle half", "bar", "", "detail"):
        shown.add_column(name, justify="right" if name in ("ratio", "middle half", "bar") else "left")
    for row in rows:
        met = "" if size == QUICK else {None: "", True: "[green]met[/]", False: "[red]NOT MET[/]"}[row.met]
        spread = (
            "" if row.ratio is None or row.ratio.low == row.ratio.high else f"{row.ratio.low:.3f}–{row.ratio.high:.3f}"
        )
        ratio = f"{row.ratio.median:.3f}" if row.ratio else "not run" if row.against else ""
        bar = "" if row.bar is None else f"≤ {row.bar:g}"
        shown.add_row(row.quantity, row.against, ratio, spread, bar, met, row.detail)
    if size == QUICK:
        shown.caption = "--quick: sizes too small for the ratios to mean anything"
    return shown


def main(
    part: Annotated[list[str] | None, typer.Option(help=f"only these: {', '.join(PARTS)}")] = None,
    quick: Annotated[bool, typer.Option(help="tiny sizes: does everything run?")] = False,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 2,
) -> None:
    """Prints speed and memory ratios beside their bars. Exit code 1 if a bar is not met."""
    if unknown := set(part or ()) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    torch.set_num_threads(threads)
    size, console, rows = QUICK if quick else FULL, Console(), []
    console.width = max(console.width, 170)  # a narrow pipe would wrap every cell
    for name in part or PARTS:
        with console.status(f"measuring: {name}"):
            rows += PARTS[name](size)
    console.print(table(rows, size))
    if not quick and any(row.met is False for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    # Under its own name, so that `Size` and `FULL` exist once, for the parts in files of their own as well.
    from .bench import main as run

    typer.run(run)
