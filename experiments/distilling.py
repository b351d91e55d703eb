"""Experiment: does predicting depth and segmentation while a projector is trained leave more of them in the layers, and help?

Source of the claims: Jain et al., "OLA-VLM" (arXiv 2412.09585), whose single runs have neither seeds nor a control.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..alignment.distillation import Distillation, DistillationConfig
from ..alignment.learning import LearningConfig, learn
from ..alignment.members import with_tokens
from ..alignment.scene_lessons import SceneLessons
from ..models import VLM
from ..probes.embedding_probe import EmbeddingProbe
from ..probes.measure import measure
from ..probes.seeds import crossed_mean
from ..probes.targets import Target, scene_targets
from ..scenes.benchmarks import caption_set
from ..scenes.language import mentions
from ..scenes.sample import Sample
from ..scenes.world import make_scene, split_seeds
from .figures import distilling as figures
from .figures.rows import pick
from .lineage import check_organism
from .options import open_model
from .page import Claim, number
from .run import Run
from .shared_weights import answer_losses
from .study import Study, framed_scenes, keep_figures

BASE = "organism/lm"
"""Where every training begins: a frozen language model, behind a projector that has learnt nothing."""

STEPS, SCENES, CAPTIONS, SEEDS = 100, 80, 60, 3
RATE, LAYERS = 2e-3, (1, 3)
PLAIN, DISTILLED, SHUFFLED = "plain", "distilled", "shuffled targets"
ARMS = (PLAIN, DISTILLED, SHUFFLED)
PAIRS = ((DISTILLED, PLAIN), (SHUFFLED, PLAIN), (DISTILLED, SHUFFLED))
WORDS = 40

MEMBERS = ("organism/aligned", "organism/ola")
"""What ships: the same stage at full length, without and with distillation, trained once each."""


REPORT = {"steps": 12, "scenes": 24, "captions": 12, "batch_size": 4, "turns": 48}
"""The size at which the report runs it: the trainings are a smoke test there, the shipped members are not."""


class OtherScene:
    """A target of another scene, the same one every time: what is learnt of it is not of the picture."""

    def __init__(self, target: Target, scenes: int = 2000):
        self.target, self.scenes = target, scenes
        self.name, self.labels, self.classes, self.told = target.name, target.labels, target.classes, "another scene"

    def at(self, sample: Sample, picture: int, boxes: Tensor) -> Tensor | None:
        scene = sample.truth.get("scene")
        if scene is None:
            return None
        other = make_scene(split_seeds("train", 1, crc32(str(scene.seed).encode()) % self.scenes)[0])
        return self.target.at(replace(sample, truth={"scene": other}), picture, boxes)


def run(
    model: str = "organism", data=None, *, device=None, dtype=None, limit: int | None = None, seed: int = 0,
    root: str | Path = "runs", batch_size: int = 8, growth=None,
) -> Path:  # fmt: skip
    """Trains and measures every arm and writes a run; returns its folder. limit: steps. The scenes are those of the world the
    organism knows: data and growth are not used. Raises UserError for another model."""
    check_organism(model, "distilling")
    return study(
        steps=limit or STEPS, batch_size=min(batch_size, 8), device=device, dtype=dtype, seed=seed, root=root
    ).path


def study(
    *, steps: int = STEPS, scenes: int = SCENES, captions: int = CAPTIONS, seeds: int = SEEDS, batch_size: int = 8, turns: int = 64,
    device=None, dtype=None, seed: int = 0, root: str | Path = "runs",
) -> Study:  # fmt: skip
    """`run` at a given size, with what the report needs. scenes: on which layers are probed; captions: told and scored."""
    framed, asked = framed_scenes(scenes, seed), caption_set(captions, "test", seed=seed)
    config = {"base": BASE, "steps": steps, "scenes": scenes, "captions": captions, "seeds": seeds, "batch_size": batch_size, "turns": turns, "seed": seed}  # fmt: skip
    layers, told, curves = [], {}, []
    with Run.create("distilling", config, root) as kept:
        for arm in ARMS:
            for training in range(seeds):
                vlm = open_model(BASE, device=device, dtype=dtype)
                vlm, curve = trained(vlm, arm, seed + training, steps, batch_size, turns)
                curves.append(curve.assign(arm=arm, training=training))
                layers.append(probed(vlm, framed, seed).assign(arm=arm, training=training))
                for name, values in captioned(vlm, asked).items():
                    told.setdefault(name, {}).setdefault(arm, []).append(values)
            kept.log(f"{arm}: {seeds} trainings measured")
        shipped = pd.concat([member(name, framed, asked, device, dtype, seed) for name in MEMBERS], ignore_index=True)
        probes = pd.concat(layers, ignore_index=True)
        tables = {
            "layers": by_layer(probes), "references": references(probes), "effects": effects(probes, told),
            "skill": skill(told), "curves": pd.concat(curves, ignore_index=True), "members": shipped,
        }  # fmt: skip
        for name, table in tables.items():
            kept.table(name, table)
        drawn = keep_figures(
            kept, [figures.layers(tables["layers"], tables["references"]), figures.effects(tables["effects"])]
        )
    intro = (
        f"Every training begins as {BASE!r} and learns captions for {steps} steps of {batch_size} rows; only the projector of the model moves. In two arms the states after layers "
        f"{' and '.join(map(str, LAYERS))} must also predict depth and segmentation, by eight task tokens a task behind the picture and a predictor a layer; in one of them those of another scene. "
        f"{seeds} trainings of each arm, with seeds of their own for data and predictors.",
        "Probe quality is R² of ridge regression from the states of visual tokens, on pictures neither the probe nor the model was trained on.",
    )  # fmt: skip
    return Study(
        "Distillation and what layers know", kept.path, intro, found(tables), claims(tables["effects"]), drawn, tables
    )


def trained(vlm: VLM, arm: str, seed: int, steps: int, batch_size: int, turns: int) -> tuple[VLM, pd.DataFrame]:
    """Trains an arm; returns the model, its task tokens then words of it, and the curve."""
    extra = None
    if arm != PLAIN:
        targets = scene_targets() if arm == DISTILLED else [OtherScene(target) for target in scene_targets()]
        layers = {target.name: LAYERS for target in targets}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            extra = Distillation(vlm, DistillationConfig(layers=layers, width=64), targets)
    data = SceneLessons(vlm, seed=seed, batch_size=batch_size, turns=turns, scenes=500, asking=0.0)
    rates = LearningConfig(
        steps=steps, batch_size=batch_size, projector=RATE, distillation=RATE, seed=seed, log_steps=max(1, steps // 6)
    )
    with tempfile.TemporaryDirectory() as folder:
        curve = learn(vlm, data, folder, rates, distillation=extra)
    return (vlm if extra is None else with_tokens(vlm, extra)), curve


def probed(vlm: VLM, framed, seed: int) -> pd.DataFrame:
    """Rows of R² of the embedding probe, ridge alone."""
    probe = EmbeddingProbe(seed=seed)
    table = measure(vlm, framed, [probe], batch_size=32, progress=False, seed=seed).tables[probe.name]
    return pick(table, quantity="r2", readout=["ridge"])


def member(name: str, framed, asked: Sequence[Sample], device, dtype, seed: int) -> pd.DataFrame:
    """A shipped member's R² by layer (interval over pictures) and its captions' loss and F1 (interval over scenes)."""
    vlm = open_model(name, device=device, dtype=dtype)
    rows = pick(probed(vlm, framed, seed), features="layer", labels="true")
    told = [{"quantity": what, **crossed_mean(values)} for what, values in captioned(vlm, asked).items()]
    return pd.concat([rows, pd.DataFrame(told)], ignore_index=True).assign(arm=name)


def captioned(vlm: VLM, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """By scene: the loss of its true caption, nats a token, and the F1 of the things its caption by the model names."""
    texts = []
    for start in range(0, len(samples), 30):
        some = samples[start : start + 30]
        texts += vlm.generate(vlm.prepare([s.images for s in some], [s.prompt for s in some]), max_new_tokens=WORDS)
    scores = []
    for text, sample in zip(texts, samples, strict=True):
        said, there = set(mentions(text)), set(sample.truth["scene"].categories())
        scores.append(2 * len(said & there) / max(1, len(said) + len(there)))
    return {"caption loss": answer_losses(vlm, samples).double().numpy(), "caption F1": np.array(scores)}


def by_layer(probes: pd.DataFrame) -> pd.DataFrame:
    """A row an arm, target, labels and layer: mean over trainings, with Student's interval over them."""
    rows = []
    own = pick(probes, features="layer").dropna(subset=["mean"])
    for (arm, target, labels, layer), group in own.groupby(["arm", "target", "labels", "layer"], sort=False):
        rows.append({"arm": arm, "target": target, "labels": labels, "layer": layer, **over_trainings(group["mean"]), "pictures": int(group["n"].max())})  # fmt: skip
    return pd.DataFrame(rows)


def references(probes: pd.DataFrame) -> pd.DataFrame:
    """Reference levels of each target, the same for all arms."""
    own = pick(probes, features=["tower", "pixels", "place"], labels="true").dropna(subset=["mean"])
    return own.groupby(["target", "features"], sort=False, as_index=False)["mean"].mean()


def effects(probes: pd.DataFrame, told: dict) -> pd.DataFrame:
    """Differences between arms of the same training seed: R² at the input and as a mean over the blocks, with Student's interval over
    trainings; caption loss and F1, paired by scene, with an interval over scenes and trainings."""
    rows = []
    own = pick(probes, features="layer", labels="true").dropna(subset=["mean"])
    last = own["layer"].max()
    blocks = own[(own["layer"] > 0) & (own["layer"] < last)]
    for arm, other in PAIRS:
        for at, part in (("input", pick(own, layer=0)), ("blocks", blocks)):
            for target, group in part.groupby("target", sort=False):
                means = group.groupby(["arm", "training"])["mean"].mean()
                rows.append({"arm": arm, "against": other, "quantity": f"R² of {target}, {at}", **over_trainings(means[arm] - means[other])})  # fmt: skip
        for name, values in told.items():
            difference = np.stack(values[arm]) - np.stack(values[other])
            rows.append({"arm": arm, "against": other, "quantity": name, **crossed_mean(difference)})
    return pd.DataFrame(rows)


def skill(told: dict) -> pd.DataFrame:
    """Caption loss and F1 of each arm, with an interval over scenes and trainings."""
    return pd.DataFrame(
        [{"arm": arm, "quantity": name, **crossed_mean(np.stack(values))} for name, arms in told.items() for arm, values in arms.items()]
    )  # fmt: skip


def over_trainings(values) -> dict:
    """Mean of a number a training, with Student's interval."""
    found = crossed_mean(np.asarray(values, float)[None])
    return found | {"seeds": found["n"], "n": 1}


# -- what came out, in words ----------------------------------------------------------------------------------------------


def told_of(row) -> str:
    items = f", n = {int(row['n'])} scenes" if row["n"] > 1 else ""
    return f"{number(row['mean'])} (95 %: {number(row['low'])} to {number(row['high'])}; {int(row['seeds'])} trainings{items})"


def found(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Levels of the plain arm, then each difference."""
    table, sentences = tables["effects"], []
    for target, group in pick(tables["layers"], labels="true").groupby("target", sort=False):
        levels = [f"{arm} {number(part.sort_values('layer')['mean'].iloc[1:-1].mean())}" for arm, part in group.groupby("arm", sort=False)]  # fmt: skip
        known = pick(tables["references"], target=target)
        beside = ", ".join(
            f"{name} {number(value)}" for name, value in zip(known["features"], known["mean"], strict=True)
        )
        sentences.append(f"R² of {target}, mean of blocks: {', '.join(levels)}; reference levels: {beside}.")
    sentences += [shipped(tables["members"])]
    for arm, other in PAIRS:
        rows = pick(table, arm=arm, against=other)
        sentences.append(f"{arm[0].upper()}{arm[1:]} less {other}: " + "; ".join(f"{row['quantity']} {told_of(row)}" for row in rows.to_dict("records")) + ".")  # fmt: skip
    return sentences


def shipped(table: pd.DataFrame) -> str:
    """The two shipped members side by side."""
    parts = []
    for target, rows in pick(table, quantity="r2").groupby("target", sort=False):
        means = [pick(rows, arm=name).sort_values("layer")["mean"].iloc[1:-1].mean() for name in MEMBERS]
        parts.append(f"R² of {target} (mean of blocks) {number(means[0])} and {number(means[1])}")
    for quantity in ("caption loss", "caption F1"):
        a, b = (pick(table, quantity=quantity, arm=name).iloc[0] for name in MEMBERS)
        parts.append(
            f"{quantity} {number(a['mean'])} (95 %: {number(a['low'])} to {number(a['high'])}) and {number(b['mean'])} (95 %: {number(b['low'])} to {number(b['high'])}; n = {int(b['n'])} scenes)"
        )
    return f"Shipped, trained to the end but once each, {' and '.join(MEMBERS)}: {'; '.join(parts)}."


def claims(table: pd.DataFrame) -> list[Claim]:
    """Each claim by its interval."""
    paper, made = "arXiv 2412.09585", []
    targets = [name for name in dict.fromkeys(table["quantity"]) if name.endswith("blocks")]
    wanted = [
        (f"Distillation leaves more in the layers: {name}", paper, (DISTILLED, PLAIN), name, 1) for name in targets
    ]
    wanted += [(f"It is the targets that do it, not the tokens and the loss: {name}", "our control", (DISTILLED, SHUFFLED), name, 1) for name in targets]  # fmt: skip
    wanted.append(
        ("Distillation makes a better model (a lower caption loss)", paper, (DISTILLED, PLAIN), "caption loss", -1)
    )
    for claim, source, (arm, other), quantity, sign in wanted:
        row = pick(table, arm=arm, against=other, quantity=quantity).iloc[0]
        low, high = sorted((sign * row["low"], sign * row["high"]))
        holds = True if low > 0 else False if high < 0 else None
        made.append(Claim(claim, source, f"{quantity} differs by {told_of(row)}", holds))
    return made
