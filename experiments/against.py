"""A tuned model against the model before, on everything at once: what tuning was meant to change, what else it changed, and where.

Parts are run one by one and kept as they are done, so that a run that was stopped goes on behind its last whole part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from ..models import VLM
from ..probes.checkpoint import Checkpoint, check_setup
from ..probes.files import write_whole
from ..probes.subject import model_facts
from ..scenes.benchmarks import caption_set, description_set
from ..scenes.errors import UserError
from ..scenes.sample import Sample
from . import against_words as words
from .before_after import (
    After,
    hallucination_table,
    kl_prompts,
    kl_table,
    preference_tables,
    retention_table,
    skill_table,
    trainings,
)
from .benchmarks import Benchmark, open_benchmark
from .figures import against as figures
from .hallucination import first_scenes
from .lens_changes import concept_tables, lens_tables
from .run import Run
from .scene_pairs import held_out_pairs
from .study import Study, framed_scenes, keep_figures

SCENES = 100
"""Scenes described where nothing else is asked; the other parts are as large in proportion."""


@dataclass(frozen=True)
class Sizes:
    """How much each part asks, for scenes described: POPE's scenes, pairs, prompts of each kind for KL, scenes the lenses see, captions
    whose states are matched, questions of each kind."""

    described: int = SCENES

    def share(self, of: float, least: int) -> int:
        return max(least, round(of * self.described))

    asked = property(lambda self: self.share(0.6, 2))
    pairs = property(lambda self: self.share(0.6, 6))
    prompts = property(lambda self: self.share(0.24, 4))
    lenses = property(lambda self: self.share(0.48, 8))
    captions = property(lambda self: self.share(1.0, 12))
    questions = property(lambda self: self.share(0.6, 8))


def against(
    before: VLM, after: After, *, pairs: Sequence[Mapping] | None = None, benchmarks: Sequence[Benchmark] | None = None,
    beta: float = 0.1, limit: int | None = None, seed: int = 0, root: str | Path = "runs", batch_size: int = 32, run: Run | None = None,
) -> Study:  # fmt: skip
    """Compares and writes a run "against" with tables and figures.

    after: a model, or several trainings of it by name, over which results are means (`before_after`). pairs: held-out preference
    pairs (default: made from unseen scenes by scene truth). benchmarks: only these are asked, and nothing else is measured. beta: of
    the rewards. limit: scenes described (default 100); the rest in proportion. run: one that was begun with the same, to go on with.
    Raises UserError, one line, for models that cannot be compared.
    """
    models = trainings(before, after)
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} must be at least 1, or left out")
    sizes = Sizes(limit or SCENES)
    alike = same_answers(before, models)
    config = {"before": before.name, "after": list(models), "limit": limit, "seed": seed, "beta": beta}
    with run if run is not None else Run.create("against", config, root) as kept:
        asked = None if benchmarks is None else [one.name for one in benchmarks]
        _begin(
            kept,
            before,
            models,
            {"limit": limit, "seed": seed, "beta": beta, "benchmarks": asked, "pairs": _pairs_told(pairs)},
        )
        how = {"batch_size": batch_size, "seed": seed}
        if benchmarks is None:
            parts = everything(before, models, kept, sizes, pairs, beta=beta, **how)
        else:
            parts = {"scores": lambda: _scores(before, models, benchmarks, kept, **how)}
        tables = _done(kept, parts)
        tables["summary"] = words.summary(tables)
        kept.table("summary", tables["summary"])
        pictures = keep_figures(kept, figures.drawable(tables))
        kept.note(n=int(tables["scores"]["n"].max()), trainings=len(models), same_answers=alike)
    return Study(
        "After tuning, against the model before", kept.path, words.intro(len(models)), words.found(tables, alike),
        words.claims(tables), pictures, tables,
    )  # fmt: skip


def everything(
    before: VLM, models: Mapping[str, VLM], kept: Run, sizes: Sizes, pairs, *, beta: float, batch_size: int, seed: int
) -> dict[str, Callable[[], dict[str, pd.DataFrame]]]:  # fmt: skip
    """All parts by name, each a function that gives its tables."""
    how = {"batch_size": batch_size, "seed": seed}

    def preferences():
        rows = pairs if pairs is not None else held_out_pairs(before, sizes.pairs, kept.path / "pairs", seed)
        return preference_tables(before, models, rows, beta=beta, batch_size=min(batch_size, 8), seed=seed)

    def concepts():
        samples = caption_set(sizes.captions, "test", "neutral", seed)
        try:
            return concept_tables(before, models, samples, **how)
        except UserError as error:  # a model that says none of the words has no states to match
            kept.log(f"states that predict a word: left out ({error})")
            return {}

    benchmarks = [
        first_scenes(open_benchmark("pope-scenes", seed=seed), sizes.asked),
        open_benchmark("chair-scenes", limit=sizes.described, seed=seed),
    ]
    return {
        "preferences": preferences,
        "kl": lambda: {"kl": kl_table(before, models, kl_prompts(sizes.prompts, seed), **how)},
        "scores": lambda: _scores(before, models, benchmarks, kept, **how),
        "knowledge": lambda: {
            "retention": retention_table(before, models, sizes.questions, seed=seed),
            "skill": skill_table(before, models, sizes.questions, seed=seed),
        },
        "lenses": lambda: lens_tables(before, models, list(framed_scenes(sizes.lenses, seed)), **how),
        "concepts": concepts,
    }


def same_answers(before: VLM, models: Mapping[str, VLM]) -> list[str]:
    """The models whose logits are those of the model before, bit for bit, with a picture and without."""
    with torch.no_grad():
        asked = [description_set(1)[0], Sample("text", "what comes next ?")]
        inputs = [before.prepare([one.images], [one.prompt]) for one in asked]
        plain = [before.forward(one, use_cache=False).logits for one in inputs]
        return [
            name
            for name, model in models.items()
            if all(
                torch.equal(x, model.forward(one, use_cache=False).logits) for x, one in zip(plain, inputs, strict=True)
            )
        ]


def _scores(before, models, benchmarks, kept: Run, **how) -> dict[str, pd.DataFrame]:
    def keep(benchmark: str):
        def write(name: str, records: list[dict]) -> None:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_whole(kept.path / "answers" / f"{benchmark}.{name}.jsonl", lines.encode())

        return write

    tables = [hallucination_table(before, models, one, kept=keep(one.name), **how) for one in benchmarks]
    return {"scores": pd.concat(tables, ignore_index=True)}


def _begin(kept: Run, before: VLM, models: Mapping[str, VLM], setup: dict) -> None:
    """Notes what is compared; of a run that was begun before, refuses what would not lead to the same tables."""
    facts = {name: model_facts(model) for name, model in {"before": before, **models}.items()}
    setup = json.loads(json.dumps(setup | {"weights": {name: one["weights"] for name, one in facts.items()}}))
    if "against" in kept.manifest:
        check_setup(Checkpoint(kept.manifest["against"]), setup, kept.path)
    else:
        kept.note(against=setup, model=facts["before"], models=facts)


def _pairs_told(pairs) -> str | None:
    return None if pairs is None else getattr(pairs, "_fingerprint", f"{len(pairs)} pairs")


def _done(kept: Run, parts: Mapping[str, Callable[[], dict[str, pd.DataFrame]]]) -> dict[str, pd.DataFrame]:
    """The tables of all parts; those a run has already are read, in place of being made again."""
    tables = {}
    for name, make in parts.items():
        before = (kept.manifest.get("parts") or {}).get(name)
        if before is None:
            made = make()
            for table, frame in made.items():
                kept.table(table, frame)
            kept.note(parts={**(kept.manifest.get("parts") or {}), name: list(made)})
            kept.log(f"{name}: done")
        else:
            made = {table: kept.read_table(table) for table in before}
        tables |= made
    return tables
