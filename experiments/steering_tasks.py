"""What the organism is steered to do, on fixed scenes: answers that are to turn into another, captions that are to change style.

Every outcome is one number a scene, in the order of the bench, NaN where the scene does not count; means and paired
differences are made of these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from ..models import VLM
from ..probes.extraction import extract
from ..scenes.benchmarks import caption_set, chair, scene_samples, skill_set
from ..scenes.captions import PLACE_WORDS, caption, instruction
from ..scenes.language import COLOUR_WORDS, count_words, mentions
from ..scenes.sample import IMAGE_MARK, Sample
from ..scenes.words import NUMBERS
from ..scenes.world import COLOURS, COLUMNS, ROWS, TYPICAL
from .prefilled import Prefilled

KINDS = ("existence", "colour", "number", "position")
ANSWERS = {"existence": ("yes", "no"), "colour": COLOURS, "number": NUMBERS, "position": (*COLUMNS, *ROWS)}
"""The words that can answer a question of each kind."""

ANSWER_TOKENS, CAPTION_TOKENS = 2, 36
"""New tokens: one word and its end; a caption in the longest style."""

APART = 10_000
"""Scenes between the first of one kind of question and the first of the next, so that no scene is asked of twice."""

Outcome = dict[str, Tensor]
"""Measure -> (N,) one number a scene."""


@dataclass(frozen=True)
class Bench:
    """Questions and scenes to caption, read once. kinds: of each question, one of KINDS, or the word that is its answer, of those
    asked beside them. plain: the model's answers as it is; to be made where nothing is steered."""

    vlm: VLM
    questions: Prefilled
    kinds: tuple[str, ...]
    captions: Prefilled
    plain: tuple[str, ...]

    @classmethod
    def of(cls, vlm, split: str, n: int, n_captions: int, *, seed: int = 0, start: int = 0, turned=()) -> Bench:
        """`n` questions of each kind and `n_captions` scenes from `start` on. turned: words with `n` colour questions each."""
        starts = iter(range(start, start + APART * (len(KINDS) + len(turned) + 1), APART))
        asked = {kind: skill_set(kind, n, split, seed, start=next(starts)) for kind in KINDS}
        asked |= {word: answered(word, n, split, seed, next(starts)) for word in turned}
        questions = Prefilled(vlm, [sample for samples in asked.values() for sample in samples])
        kinds = tuple(kind for kind, samples in asked.items() for _ in samples)
        captions = Prefilled(vlm, caption_set(n_captions, split, "neutral", seed, start=next(starts)))
        return cls(vlm, questions, kinds, captions, tuple(questions.answers(ANSWER_TOKENS)))

    def asked(self, kinds: Sequence[str]) -> Iterator[tuple[str, Sample, str, int]]:
        """Kind, sample, plain answer and number of the questions of some kinds."""
        for i, (kind, sample, before) in enumerate(zip(self.kinds, self.questions.samples, self.plain, strict=True)):
            if kind in kinds:
                yield kind, sample, before, i

    def telling(self, words: str) -> Prefilled:
        """The same questions with words in front of each."""
        return Prefilled(self.vlm, [_told_first(sample, words) for sample in self.questions.samples])


def answered(word: str, n: int, split: str, seed: int, start: int) -> list[Sample]:
    """The first `n` colour questions whose right answer is a word."""
    stream: Iterator[Sample] = scene_samples(APART, split, "colour", seed, start=start)
    return list(islice((one for one in stream if one.truth["label"] == word), n))


@dataclass(frozen=True)
class Turn:
    """One-word answers `source` are to become `target`. kind: the questions that are steered, as the bench names them."""

    name: str
    kind: str
    source: str
    target: str

    # Not "generated": the state that predicts a one-word answer is the prompt's last one, all later ones come too late.
    positions = "last_prompt"
    retained = "accuracy elsewhere"
    success = "answers turned"

    @property
    def instruction(self) -> str:
        return f"answer {self.target} ."

    def states(self, vlm, sites: Sequence[str], n: int, seed: int) -> dict[str, tuple[dict, dict]]:
        """{"word": (base, target)}: by site the states that predict the one and the other answer, where the model is right."""
        if self.kind == "existence":
            samples = skill_set("existence", 2 * n, "train", seed)
        else:
            samples = [
                s for i, w in enumerate((self.source, self.target)) for s in answered(w, n, "train", seed, i * APART)
            ]
        both = [self.source, self.target]
        found = extract(vlm, samples, both, sites=sites, in_answer=True, max_new_tokens=ANSWER_TOKENS, batch_size=64)
        ids = [vlm.tokenizer(word, add_special_tokens=False).input_ids[0] for word in both]
        right = torch.tensor(
            [samples[i].answer == c for i, c in zip(found.index.tolist(), found.captions, strict=True)]
        )
        return {"word": tuple({s: found[s][(found.target == i) & right] for s in sites} for i in ids)}

    def outcome(self, bench: Bench, answers: Sequence[str]) -> Outcome:
        """success: of plain `source` answers, those that are `target` now. retained: other questions answered rightly, of all
        kinds, of kinds other than what is turned (`other_kinds`), and of each (`right_...`)."""
        values: dict[str, list[float]] = {name: [] for name in ("success", "retained", "unparsed")}
        for kind, sample, before, i in bench.asked((*KINDS, self.kind)):
            steered, was, now = kind == self.kind, first(before) == self.source, first(answers[i])
            values["success"].append(float(now == self.target) if steered and was else torch.nan)
            values["retained"].append(float(now == sample.answer) if not steered and not was else torch.nan)
            values["unparsed"].append(float(answers[i] not in ANSWERS[sample.truth["kind"]]))
        outcome = {name: torch.tensor(each) for name, each in values.items()}
        asked = [(kind, sample.truth["kind"]) for kind, sample, *_ in bench.asked((*KINDS, self.kind))]
        own = {kind for key, kind in asked if key == self.kind}
        parts = {"other_kinds": set(KINDS) - own} | {f"right_{kind}": {kind} for kind in KINDS}
        for name, kinds in parts.items():
            right = outcome["retained"].where(torch.tensor([kind in kinds for _, kind in asked]), torch.nan)
            outcome |= {name: right} if right.isfinite().any() else {}
        return outcome

    def measure(self, bench: Bench, *, all_of_it: bool = True) -> Outcome:
        """The outcome with what `steer` has open; with `all_of_it` captions are written and read, too, for side effects."""
        outcome = self.outcome(bench, bench.questions.answers(ANSWER_TOKENS))
        if all_of_it:
            texts = bench.captions.answers(CAPTION_TOKENS)
            outcome |= fluency(bench, texts) | faithfulness(bench, texts)
        return outcome

    def asked(self, bench: Bench) -> Outcome:
        """The plain model, told in the prompt what to answer."""
        return self.outcome(bench, bench.telling(self.instruction).answers(ANSWER_TOKENS))


@dataclass(frozen=True)
class Style:
    """Captions asked for in the neutral words are to be in a style. words: those that make the style."""

    name: str
    style: str
    words: frozenset[str]

    # From the prompt's last position on: "generated" alone would leave the first word as it is.
    positions = -1
    retained = "object F1 of captions"
    success = "captions in style"

    @property
    def instruction(self) -> str:
        return instruction(self.style)

    def states(self, vlm, sites: Sequence[str], n: int, seed: int) -> dict[str, tuple[dict, dict]]:
        """By recipe (base, target), from the model's own captions, neutral and asked for in the style.

        "word", as published: means over neutral captions against states that predict a style word, which are states of
        another kind. "caption": means over captions against means over captions.
        """
        options = {"sites": sites, "max_new_tokens": CAPTION_TOKENS, "batch_size": 64}
        asked = caption_set(n, "train", self.style, seed)
        base = extract(vlm, caption_set(n, "train", "neutral", seed), None, **options).states
        return {
            "word": (base, extract(vlm, asked, sorted(self.words), **options).states),
            "caption": (base, extract(vlm, asked, None, **options).states),
        }

    def outcome(self, bench: Bench, texts: Sequence[str]) -> Outcome:
        """success: captions with a word of the style. retained: F1 of the objects named. style_words: how many, a caption."""
        words = torch.tensor([float(count_words(text, self.words)) for text in texts])
        found = faithfulness(bench, texts)
        return {"success": (words > 0).float(), "retained": found["object_f1"], "style_words": words} | found

    def measure(self, bench: Bench, *, all_of_it: bool = True) -> Outcome:
        """The outcome with what `steer` has open; with `all_of_it` questions are asked and true captions read, too."""
        texts = bench.captions.answers(CAPTION_TOKENS)
        outcome = self.outcome(bench, texts)
        if all_of_it:
            outcome |= fluency(bench, texts) | _right_answers(bench)
            outcome["loss_style"] = bench.captions.losses([sample.answer for sample in self._pictures(bench)])
        return outcome

    def asked(self, bench: Bench) -> Outcome:
        """The plain model, asked for the style."""
        texts = Prefilled(bench.vlm, self._pictures(bench)).answers(CAPTION_TOKENS)
        return self.outcome(bench, texts) | {"repetition": torch.tensor([repeated_trigrams(text) for text in texts])}

    def _pictures(self, bench: Bench) -> list[Sample]:
        """The bench's scenes, a caption in the style asked for and given."""
        return [
            replace(s, prompt=f"{IMAGE_MARK} {self.instruction}", answer=caption(s.truth["scene"], self.style))
            for s in bench.captions.samples
        ]


TASKS = (
    Turn("yes → no", "existence", "yes", "no"),
    Turn("white → black", "white", "white", "black"),
    Style("colour style", "colour", COLOUR_WORDS),
    Style("place style", "place", PLACE_WORDS - set(TYPICAL)),  # neutral captions name the place, too
)


def fluency(bench: Bench, texts: Sequence[str]) -> Outcome:
    """repetition: of captions that were written. loss: nats a token of the true captions."""
    losses = bench.captions.losses([sample.answer for sample in bench.captions.samples])
    return {"repetition": torch.tensor([repeated_trigrams(text) for text in texts]), "loss": losses}


def faithfulness(bench: Bench, texts: Sequence[str]) -> Outcome:
    """object_f1: of the categories named, a caption. invented: of mentions, the share that is not there (CHAIR_i, a caption)."""
    f1, invented = [], []
    for text, sample in zip(texts, bench.captions.samples, strict=True):
        said = mentions(text)
        counts = chair(said, sample.truth["scene"])
        f1.append(2 * counts["recalled"] / (len(set(said)) + counts["objects"]))
        invented.append(counts["hallucinated"] / counts["mentioned"] if said else torch.nan)
    return {"object_f1": torch.tensor(f1), "invented": torch.tensor(invented)}


def _right_answers(bench: Bench) -> Outcome:
    answers = bench.questions.answers(ANSWER_TOKENS)
    pairs = [(sample, answers[i]) for _, sample, _, i in bench.asked(KINDS)]
    return {
        "accuracy": torch.tensor([float(first(now) == sample.answer) for sample, now in pairs]),
        "unparsed": torch.tensor([float(now not in ANSWERS[sample.truth["kind"]]) for sample, now in pairs]),
    }


def repeated_trigrams(text: str) -> float:
    """Share of a text's runs of three words that stood in it before; 0 for a text of less than three words."""
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def first(text: str) -> str:
    """The first word of an answer."""
    return text.split()[0] if text.split() else ""


def _told_first(sample: Sample, words: str) -> Sample:
    return replace(sample, prompt=sample.prompt.replace(IMAGE_MARK, f"{IMAGE_MARK} {words}"))
