"""A tuned model against the model before: tables of what it prefers, how far it moved, what it makes up, and what it still knows.

Every function takes two open models, or for the one after several (training seed → model), asks all of them the same and returns
tables. Column model: "mean" over the trainings, with intervals over items and trainings (`probes.seeds`), then each training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..alignment.preference import PICTURES, PairLogps, likelihoods, pair_logps, rewards, shown_with
from ..models import VLM
from ..probes.bootstrap import Tally
from ..probes.seeds import each_training, mean_tally, over_seeds
from ..probes.word_concepts import check_same_words
from ..scenes.benchmarks import description_set, skill_set
from ..scenes.errors import UserError
from ..scenes.sample import Sample
from .benchmarks import Benchmark
from .divergence import DRAWS, LONGEST, kl_tally, sample_kl
from .evaluation import evaluate
from .lineage import SEEING, score, text_questions
from .methods import Greedy
from .scores import by_split, named_splits
from .shared_weights import answer_losses

After = VLM | Mapping[str, VLM]
MEAN, BEFORE = "mean", "before"
"""The rows of the mean over trainings; the name of the model before among the answers."""

KINDS = SEEING[1:]
"""Questions of skill elsewhere: what POPE does not ask."""


def trainings(before: VLM, after: After) -> dict[str, VLM]:
    """The models after tuning by name; one by itself is called "after". Raises UserError for none, or for another family."""
    models = {"after": after} if isinstance(after, VLM) else dict(after)
    if not models or BEFORE in models or MEAN in models:
        raise UserError(f"models after tuning are called {list(models)}: give one or more, none called mean or before")
    for name, model in models.items():
        if model.anatomy.family != before.anatomy.family:
            raise UserError(
                f"{name} is a {model.anatomy.family}, the model before a {before.anatomy.family}: compare a model with what it was tuned from"
            )
        check_same_words(before, model)
    return models


def compared(
    after: Mapping[str, Tally], before: Tally | None = None, images: Sequence | None = None, *, seed: int = 0, **columns: Any
) -> pd.DataFrame:  # fmt: skip
    """Rows of the mean over trainings, then, where there are several, of each; columns: values that stand in front."""
    mean = over_seeds(list(after.values()), before, images, seed=seed)
    each = each_training(after, before) if len(after) > 1 else None
    table = pd.concat([mean.assign(model=MEAN), each], ignore_index=True)
    return table.reindex(columns=["model", *mean.columns]).assign(**columns)[[*columns, "model", *mean.columns]]


# -- what it prefers ---------------------------------------------------------------------------------------------------


def preference_tables(
    before: VLM, after: After, pairs: Sequence[Mapping], *, beta: float = 0.1, pictures: Sequence[str] = PICTURES,
    batch_size: int = 8, seed: int = 0,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Tables "margins", of `alignment.preference.rewards`, and "likelihood", of each model by itself.

    pairs: rows of a data set of preference pairs, not those that were trained on. Columns: pictures (what the pairs were shown with:
    a margin that stays with others' pictures was learnt from the texts), kind of pair ("all", then where there are several object,
    attribute, relation), metric and those of `over_seeds`; before, of rewards, is what a model is given against itself: margins of 0,
    accuracies of a half. Raises UserError.
    """
    models, kinds = trainings(before, after), np.array([pair.get("kind") or "all" for pair in pairs])
    margins, likely = [], []
    for shown in pictures:
        if shown == "other" and len(pairs) < 2:
            continue
        rows = shown_with(pairs, shown)
        visual = shown == "own" and bool(rows[0].get("rejected_images") or rows[0].get("rejected_image"))
        read = {
            name: pair_logps(model, rows, visual=visual, batch_size=batch_size)
            for name, model in {BEFORE: before, **models}.items()
        }
        parts = [np.ones(len(rows), bool)]
        if shown == "own" and len(set(kinds)) > 1:
            parts += [kinds == kind for kind in dict.fromkeys(kinds)]
        for use in parts:
            some = {name: _some(logps, use) for name, logps in read.items()}
            what = {"pictures": shown, "kind": "all" if use.all() else kinds[use][0]}
            own = {name: _means(likelihoods(logps)) for name, logps in some.items()}
            given = {name: _means(rewards(logps, some[BEFORE], beta=beta)) for name, logps in some.items()}
            margins.append(compared({name: given[name] for name in models}, given[BEFORE], seed=seed, **what))
            likely.append(compared({name: own[name] for name in models}, own[BEFORE], seed=seed, **what))
    joined = (pd.concat(tables, ignore_index=True) for tables in (margins, likely))
    return dict(zip(("margins", "likelihood"), joined, strict=True))


def _some(logps: PairLogps, use: np.ndarray) -> PairLogps:
    return PairLogps(*(None if x is None else x[use] for x in vars(logps).values()))


def _means(values: Mapping[str, Any]) -> Tally:
    return mean_tally({name: value.numpy() for name, value in values.items()})


# -- how far it moved --------------------------------------------------------------------------------------------------


def kl_prompts(n: int, seed: int = 0) -> dict[str, list[Sample]]:
    """`n` prompts of each kind: descriptions, questions about pictures, and tasks without any."""
    each, few = -(-n // len(KINDS)), -(-n // 3)
    return {
        "descriptions": description_set(n, seed=seed),
        "questions": [s for kind in KINDS for s in skill_set(kind, each, "test", seed)][:n],
        "text alone": [s for samples in text_questions(few, seed=seed).values() for s in samples][:n],
    }


def kl_table(
    before: VLM, after: After, prompts: Mapping[str, Sequence[Sample]], *, draws: int = DRAWS, max_new_tokens: int = LONGEST,
    batch_size: int = 32, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """KL divergences on sampled answers, by kind of prompt: of the tuned model from the one before on its own samples ("after ‖ before"),
    and the other way on samples of the model before. metric: see `divergence.kl_tally`."""
    models, tables = trainings(before, after), []
    how = {"draws": draws, "max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    for kind, samples in prompts.items():
        for direction in ("after ‖ before", "before ‖ after"):
            found = {}
            for name, model in models.items():
                pair = (model, before) if direction.startswith("after") else (before, model)
                found[name] = kl_tally(sample_kl(*pair, samples, **how))
            tables.append(compared(found, seed=seed, prompts=kind, direction=direction))
    return pd.concat(tables, ignore_index=True)


# -- what it makes up --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """A way to answer: greedily, by a model of its own rather than the one that is evaluated."""

    name: str
    vlm: VLM
    sampled: bool = False

    def answer(self, vlm, inputs, *, max_new_tokens: int, seeds: Sequence[int]) -> list[str]:
        return self.vlm.generate(inputs, max_new_tokens=max_new_tokens)


def hallucination_table(
    before: VLM, after: After, benchmark: Benchmark, *, batch_size: int = 32, rule: str = "default", max_new_tokens: int | None = None,
    strict: bool = False, seed: int = 0, kept: Callable[[str, list[dict]], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A benchmark's scores, greedily answered, by split as in `scores.score`, with "same length" for descriptions.

    kept: called with the name of each model and its records. Raises UserError.
    """
    how = {"batch_size": batch_size, "rule": rule, "max_new_tokens": max_new_tokens, "strict": strict, "kept": kept}
    tables = [
        compared(tallies, tallies.pop(BEFORE), images, seed=seed, benchmark=benchmark.name, split=split)
        for split, tallies, images in scored(before, after, benchmark, **how)
    ]
    return named_splits(pd.concat(tables, ignore_index=True))


def scored(
    before: VLM, after: After, benchmark: Benchmark, *, batch_size: int = 32, rule: str = "default", max_new_tokens: int | None = None,
    strict: bool = False, kept: Callable[[str, list[dict]], None] | None = None,
) -> list[tuple[str, dict[str, Tally], Sequence]]:  # fmt: skip
    """Of every split of a benchmark its name, what each model's answers come to ("before" and those after), and the answers' images."""
    models = trainings(before, after)
    methods = [Greedy(BEFORE), *(Tuned(name, model) for name, model in models.items())]
    found = evaluate(
        before, benchmark, methods, rule=rule, batch_size=batch_size, max_new_tokens=max_new_tokens, strict=strict, progress=False
    )  # fmt: skip
    for name, passes in found.answers.items() if kept else ():
        kept(name, passes[0])
    return [
        (split, {name: passes[0] for name, passes in one.tallies.items()}, one.images)
        for split, one in by_split(benchmark, found.answers, rule).items()
    ]


# -- what it still knows -----------------------------------------------------------------------------------------------


def retention_table(before: VLM, after: After, n: int = 80, *, seed: int = 0) -> pd.DataFrame:
    """Text-only skill: `n` sums, facts and sequences each."""
    return answer_table(before, after, text_questions(n, seed=seed), seed=seed)


def skill_table(before: VLM, after: After, n: int = 80, *, seed: int = 0) -> pd.DataFrame:
    """Skill elsewhere: `n` questions of colour, number and position each."""
    return answer_table(before, after, {kind: skill_set(kind, n, "test", seed) for kind in KINDS}, seed=seed)


def answer_table(
    before: VLM, after: After, questions: Mapping[str, Sequence[Sample]], *, seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """accuracy: share of questions whose first word of the greedy answer is right; loss: of the right answer, nats a token; by kind of
    question and for "all" together."""
    tables = [
        compared(tallies, tallies.pop(BEFORE), images, seed=seed, kind=kind)
        for kind, tallies, images in answered(before, after, questions)
    ]
    return pd.concat(tables, ignore_index=True)


def answered(
    before: VLM, after: After, questions: Mapping[str, Sequence[Sample]]
) -> list[tuple[str, dict[str, Tally], Sequence]]:
    """Of every kind of question, and of "all", what `scored` gives of a split."""
    models, found = trainings(before, after), {}
    for name, model in {BEFORE: before, **models}.items():
        right = score(model, questions)
        lost = {kind: answer_losses(model, list(samples)).numpy() for kind, samples in questions.items()}
        found[name] = {kind: (right[kind], lost[kind]) for kind in questions}
    parts = []
    for kind in (*questions, "all"):
        of = list(questions) if kind == "all" else [kind]
        images = [_unit(sample) for one in of for sample in questions[one]]
        tallies = {name: mean_tally({"accuracy": np.concatenate([own[one][0] for one in of]),
                                     "loss": np.concatenate([own[one][1] for one in of])})
                   for name, own in found.items()}  # fmt: skip
        parts.append((kind, tallies, images))
    return parts


def _unit(sample: Sample) -> str:
    """What is drawn: the scene, about which several questions may be; else the question."""
    scene = sample.truth.get("scene")
    return sample.id if scene is None else f"scene-{scene.seed}"
