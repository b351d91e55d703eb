"""Experiment: what do pruning, exiting and skipping visual tokens save, and what do they cost? Measured time and estimated FLOPs of a
prompt against answers that stay right; and how early all visual tokens could leave, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..models import VLM
from ..scenes.benchmarks import skill_set
from ..scenes.sample import Sample
from ..steering import PruneVisual, RemoveVisual, SkipBlock, SkipFFN, VisualExit, steer
from ..steering.cost import report
from ..steering.safe_exit import earliest_safe_exit
from .figures import compute as figures
from .figures.rows import pick
from .lineage import check_organism, score
from .options import open_model
from .page import Claim, number
from .run import Run
from .steering_sweep import estimate
from .steering_tasks import APART
from .study import Study, keep_figures
from .timing import interleave

KINDS = ("existence", "colour", "position")
QUESTIONS, TIMED, COUNTED, ROUNDS = 60, 12, 4, 7
"""Questions of each kind where nothing else is asked; prompts in the batch that is timed, and in that whose FLOPs are counted; rounds."""

SHARES = (0.5, 0.25, 0.1)
LITTLE = 0.05
"""A loss of accuracy of less than so much counts as little."""

PRUNING, EXIT, SKIPPING = "arXiv 2412.01818", "DyVTE", "arXiv 2405.16700, section 5"


@dataclass(frozen=True)
class Setting:
    """method: the operator, a family of settings; setting: which of them, in words."""

    method: str
    setting: str
    change: object | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.setting}".strip()

    @property
    def changes(self) -> tuple:
        return () if self.change is None else (self.change,)


def settings(depth: int, tokens: int, seed: int = 0) -> list[Setting]:
    """The plain model, and what is tried on a decoder of so many blocks that is given so many visual tokens. Random tokens, the
    control, pay for the scores that they do not use, so that the two differ in what is chosen alone."""
    made = [Setting("plain", "")]
    made += [Setting("prune", f"{share:g}", PruneVisual(share)) for share in SHARES]
    for share in SHARES:
        gone = tokens - round(share * tokens)
        made.append(Setting("random tokens", f"{share:g}", RemoveVisual(k=gone, which="random", seed=seed)))
    after = sorted({0, depth // 4, depth // 2 - 1, 3 * depth // 4 - 1} - {-1, depth - 1})
    made += [Setting("exit", f"after {layer}", VisualExit(layer)) for layer in after]
    for method, skip in (("skip FFN", SkipFFN), ("skip block", SkipBlock)):
        for first in sorted({depth // 4, depth // 2, 3 * depth // 4}):
            made.append(Setting(method, f"from {first}", skip(layers=range(first, depth))))
    return made


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = TIMED, growth=None,
) -> Path:  # fmt: skip
    """Times the organism's prompts and scores its answers at every setting, and writes a run; returns its folder. Questions with
    known answers are part of the task: data and growth are not used. Raises UserError for another model."""
    check_organism(model, "compute")
    vlm = open_model(model, device=device, dtype=dtype)
    return study(vlm, limit=limit, seed=seed, root=root, batch_size=batch_size).path


def study(
    vlm: VLM, *, limit: int | None = None, seed: int = 0, root: str | Path = "runs", batch_size: int = TIMED,
    rounds: int = ROUNDS,
) -> Study:  # fmt: skip
    """`run` for an open model, with what the report needs. limit: questions of each of three kinds. batch_size: prompts timed."""
    check_organism(vlm, "compute")
    asked = questions(limit or QUESTIONS, seed)
    tokens = int(vlm.prepare_samples(mixed(asked)[:1]).spans.visual.sum())
    tried = settings(vlm.anatomy.n_layers, tokens, seed)
    with Run.create("compute", {"model": vlm.name, "limit": limit, "seed": seed, "rounds": rounds}, root) as kept:
        kept.note_model(vlm)
        right = {one.name: answered(vlm, asked, one) for one in tried}
        spent = costs(vlm, mixed(asked)[:batch_size], tried, rounds, seed)
        exits = earliest_safe_exit(vlm, mixed(asked), batch_size=64)
        tables = {
            "settings": quality(right, tried).merge(spent, on=["method", "setting"]),
            "against_random": against_random(right),
            "safe_exits": exits.layers,
            "safe_exit_samples": exits.samples,
        }
        for name, table in tables.items():
            kept.table(name, table)
        pictures = keep_figures(kept, [figures.pareto(tables["settings"]), figures.safe_exits(tables["safe_exits"])])
        kept.note(n=sum(map(len, asked.values())))
    return Study(
        "Compute against quality", kept.path, intro(vlm, tables), found(tables), claims(tables), pictures, tables
    )  # fmt: skip


def questions(n: int, seed: int = 0) -> dict[str, list[Sample]]:
    """`n` questions of each kind, every one about a scene of its own."""
    return {kind: skill_set(kind, n, "test", seed, start=i * APART) for i, kind in enumerate(KINDS)}


def mixed(asked: dict[str, Sequence[Sample]]) -> list[Sample]:
    """All questions, the kinds in turn."""
    return [sample for together in zip(*asked.values(), strict=True) for sample in together]


def answered(vlm: VLM, asked: dict[str, list[Sample]], setting: Setting) -> Tensor:
    """(N,) 1 where the answer is right, kind after kind."""
    with steer(vlm, *setting.changes):
        return torch.from_numpy(np.concatenate(list(score(vlm, asked).values())))


def quality(right: dict[str, Tensor], tried: Sequence[Setting]) -> pd.DataFrame:
    """A row a setting: accuracy over all questions with Wilson's interval, and the paired difference from the plain model."""
    rows = []
    for one in tried:
        accuracy, lost = estimate(right[one.name]), _difference(right[one.name], right["plain"])
        rows.append({
            "method": one.method, "setting": one.setting, "accuracy": accuracy["mean"], "low": accuracy["low"], "high": accuracy["high"],
            "n": accuracy["n"], "difference": lost["mean"], "difference_low": lost["low"], "difference_high": lost["high"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def against_random(right: dict[str, Tensor]) -> pd.DataFrame:
    """Pruning by the encoder's attention minus keeping as many random tokens, on the same questions."""
    pairs = [(share, right[f"prune {share:g}"], right[f"random tokens {share:g}"]) for share in SHARES]
    return pd.DataFrame([{"keep": share, **_difference(pruned, random)} for share, pruned, random in pairs])


def _difference(a: Tensor, b: Tensor) -> dict:
    return estimate(a - b, share=True, difference=True)


def costs(vlm: VLM, samples: Sequence[Sample], tried: Sequence[Setting], rounds: int, seed: int = 0) -> pd.DataFrame:
    """A row a setting: milliseconds of one pass over the batch's prompts, its ratio to the plain one (median over interleaved rounds,
    with their middle half), and the decoder's FLOPs as estimated from the rows its layers were given."""
    inputs, counted = (
        vlm.prepare([one.images for one in some], [one.prompt for one in some]) for some in (samples, samples[:COUNTED])
    )
    found = interleave({one.name: partial(_prefill(vlm, inputs), one) for one in tried}, rounds, warm=1, seed=seed)
    rows = []
    for one in tried:
        ratio, total = found.ratio(one.name, "plain"), report(vlm, counted, *one.changes, rounds=1).total.iloc[0]
        rows.append({
            "method": one.method, "setting": one.setting, "milliseconds": found.milliseconds(one.name), "time_ratio": ratio.median,
            "time_low": ratio.low, "time_high": ratio.high, "flops_ratio": total["gflops_ratio"],
            "prompts": len(samples), "positions": inputs.spans.labels.shape[1], "rounds": rounds,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _prefill(vlm: VLM, inputs) -> Callable[[Setting], object]:
    def once(setting: Setting) -> None:
        with torch.no_grad(), steer(vlm, *setting.changes):
            vlm.forward(inputs, logits_to_keep=1)
        if vlm.device.type == "cuda":
            torch.cuda.synchronize(vlm.device)

    return once


# -- what came out, in words ----------------------------------------------------------------------------------------------


def intro(vlm: VLM, tables: dict[str, pd.DataFrame]) -> tuple[str, ...]:
    plain = pick(tables["settings"], method="plain").iloc[0]
    return (
        "Less is computed for visual tokens: a share enters the first block (prune: those the encoder’s class token attends to most; control: random ones), all leave behind a block "
        "(exit), or later blocks leave them as they are (skip). Every setting answers the same questions; time is one pass over the same prompts, in interleaved rounds.",
        f"The model is small: {vlm.anatomy.n_layers} blocks, {int(plain['positions'])} positions. Its picture encoder and the fixed cost of a call weigh more here than in a large model, where "
        "the decoder is nearly all of the time, so what is saved here is little; `make bench` times a model of a billion parameters.",
    )  # fmt: skip


def claims(tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """What published claims of cheap visual tokens come to on this model's questions."""
    table, random = tables["settings"], pick(tables["against_random"], keep=0.25).iloc[0]
    exits = sorted(pick(table, method="exit")["setting"], key=lambda words: int(words.split()[-1]))
    later = sorted(pick(table, method="skip FFN")["setting"], key=lambda words: int(words.split()[-1]))
    return [
        _little(table, "prune", "0.25", "A quarter of the visual tokens, chosen by the encoder’s attention, is enough", PRUNING),
        Claim("… better than as many random ones", "our control", f"accuracy {_points(random, 'mean', 'low', 'high')}", _above(random["low"], random["high"], 0.0)),
        _little(table, "exit", exits[len(exits) // 2], "All visual tokens can leave in the middle of the decoder", EXIT),
        _little(table, "skip FFN", later[len(later) // 2], "Visual tokens can skip the feed-forward layers of the later half", SKIPPING),
        _little(table, "skip block", later[len(later) // 2], "… and the whole blocks", SKIPPING),
    ]  # fmt: skip


def _little(table: pd.DataFrame, method: str, setting: str, claim: str, source: str) -> Claim:
    row = pick(table, method=method, setting=setting).iloc[0]
    told = _points(row, "difference", "difference_low", "difference_high")
    here = f"{method} {setting}: accuracy {number(row['accuracy'])}, {told}; time × {number(row['time_ratio'])}, decoder FLOPs × {number(row['flops_ratio'])}"
    return Claim(
        f"{claim} (less than {100 * LITTLE:.0f} points lost)", source, here, _above(row["difference_low"], row["difference_high"], -LITTLE)
    )  # fmt: skip


def _above(low: float, high: float, bound: float) -> bool | None:
    return True if low > bound else False if high < bound else None


def _points(row, mean: str, low: str, high: str) -> str:
    return f"{100 * row[mean]:+.0f} points (95 %: {100 * row[low]:+.0f} to {100 * row[high]:+.0f}, n = {int(row['n'])})"


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The cheapest setting of each kind that loses little, and where visual tokens may leave."""
    table, layers = tables["settings"], tables["safe_exits"]
    plain = pick(table, method="plain").iloc[0]
    sentences = [
        f"Plain: accuracy {number(plain['accuracy'])} (n = {int(plain['n'])}), {number(plain['milliseconds'])} ms for {int(plain['prompts'])} prompts."
    ]
    for method, rows in table[table["method"] != "plain"].groupby("method", sort=False):
        good = rows[rows["difference"] > -LITTLE]
        best = good.loc[good["flops_ratio"].idxmin()] if len(good) else None
        sentences.append(
            f"{method}: no setting tried keeps accuracy within {100 * LITTLE:.0f} points."
            if best is None
            else f"{method}: cheapest within {100 * LITTLE:.0f} points is {best['setting']}: {_points(best, 'difference', 'difference_low', 'difference_high')}, "
            f"time × {number(best['time_ratio'])} (middle half of rounds {number(best['time_low'])} to {number(best['time_high'])}), decoder FLOPs × {number(best['flops_ratio'])}."
        )  # fmt: skip
    shares = ", ".join(f"{number(row.safe_share)} behind block {row.layer}" for row in layers.itertuples())
    sentences.append(
        f"Share of samples for which leaving is safe (best tokens agree, loss within 3 %): {shares} (n = {int(layers['n'].max())})."
    )
    return sentences
