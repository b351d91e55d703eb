"""Masks filled with what is the case in another scene: no model, every filled claim true of the picture it is taken from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ..scenes.answers import answer_to, is_question
from ..scenes.captions import describe
from ..scenes.claims import CATEGORY_OF, Claim, Field, matches, read_claims
from ..scenes.errors import UserError
from ..scenes.words import NUMBERS, PLURALS
from ..scenes.world import Scene, relations
from .infill import Fill, Shown
from .masking import MaskedText, SceneMasker

_SOFT = ("colour", "size", "row", "column")


class SceneTruth:
    """Answers a question as is right for the shown scene; fills a claim's masks from one thing (or relation) of the shown scene: the one that agrees best with what is not masked.

    A category that is not masked must agree. Claims that nothing in the scene fits keep their words; where none fits, there is no
    fill. Ties are drawn with the seed.
    """

    name, version, deterministic = "scene-truth", "1", True

    def __init__(self):
        self.masker = SceneMasker()

    def caption(self, shown: Sequence[Shown], prompts: Sequence[str], seed: int) -> list[str]:
        return [describe(_scene(one)) for one in shown]

    def fill(
        self, masked: Sequence[MaskedText], shown: Sequence[Shown], prompts: Sequence[str], n: int, seed: int
    ) -> list[list[Fill]]:
        return [
            self._answers(text, prompt, _scene(one))
            if text.frame == ["", ""] and is_question(prompt)
            else self._fills(text, _scene(one), n, seed)
            for text, prompt, one in zip(masked, prompts, shown, strict=True)
        ]

    @staticmethod
    def _answers(masked: MaskedText, prompt: str, scene: Scene) -> list[Fill]:
        """What is right to answer in this scene, where anything is."""
        right = answer_to(prompt, scene)
        return [] if right is None else [Fill(right, (right,))]

    def _fills(self, masked: MaskedText, scene: Scene, n: int, seed: int) -> list[Fill]:
        draw, found = random.Random(repr((seed, masked.masked, scene.seed))), {}
        starts = {span.start for span in masked.spans}
        for _ in range(n):
            strings, used, fitted = dict.fromkeys(starts), [], False
            for claim in read_claims(masked.text):
                hidden = [field for field in claim.fields if field.start in starts]
                values = _values(claim, hidden, scene, used, draw) if hidden else None
                if values is not None:
                    fitted = True
                    strings |= {field.start: values[field.slot] for field in hidden}
            if not fitted:
                return []
            filled = tuple(strings[s.start] or masked.text[s.start : s.end] for s in masked.spans)
            text = self.masker.agree(masked.filled(filled))
            found.setdefault(text, Fill(text, filled))
        return list(found.values())


def _values(claim: Claim, hidden: list[Field], scene: Scene, used: list, draw: random.Random) -> dict[str, str] | None:
    """What the scene puts into the hidden fields of a claim; None where nothing of it fits the fields that are open."""
    slots = {field.slot for field in hidden}
    if claim.kind == "place":
        return {"place": scene.place}
    if claim.kind == "light":
        return {"light": "dim" if scene.dim else "bright"}
    if claim.kind == "relation":
        kinds = [thing.category for thing in scene.things]
        facts = [
            dict(zip(("a", "relation", "b"), (kinds[i], r, kinds[j]), strict=True)) for i, r, j in relations(scene)
        ]
        facts = [f for f in facts if f["a"] != f["b"] and all(f[s] == claim.get(s) for s in f if s not in slots)]
        return _best(facts, lambda fact: 0, draw)
    things = list(scene.things)
    if "number" in slots:
        counts = {kind: scene.count(kind) for kind in scene.categories()}
        things = [thing for thing in things if counts[thing.category] > 1]
    if "category" not in slots:
        things = [thing for thing in things if matches(claim, thing, ("category",))]
    soft = [slot for slot in _SOFT if slot not in slots]
    thing = _best(
        things,
        lambda thing: sum(claim.get(slot) == getattr(thing, slot) for slot in soft) - 8 * (thing in used),
        draw,
    )
    if thing is None:
        return None
    used.append(thing)
    word = claim.get("category")
    plural = word not in CATEGORY_OF.values() or claim.get("number") in NUMBERS[2:]
    values = {slot: getattr(thing, slot) for slot in _SOFT}
    values["category"] = PLURALS[thing.category] if plural else thing.category
    return values | {"number": NUMBERS[scene.count(thing.category)]}


def _best(items: list, score: Callable, draw: random.Random):
    if not items:
        return None
    top = max(map(score, items))
    return draw.choice([item for item in items if score(item) == top])


def _scene(shown: Shown) -> Scene:
    if "scene" not in shown.truth:
        raise UserError("backend 'scene-truth' needs rendered scenes: use --data scenes, or --backend self")
    return shown.truth["scene"]
