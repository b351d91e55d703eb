"""Example samples for the report: the picture, what the model says, and how its sequence was read."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import groupby

from ..models.spans import Spans
from ..scenes.sample import IMAGE_MARK, Sample
from .page import Example, ShownSpan, png_of
from .style import SEGMENTS

SIDE = 320
"""Pixels of the longer side of a picture on the page."""

LONGEST = 160
"""Characters of one span's text that are shown."""


def examples(vlm, samples: Sequence[Sample], *, max_new_tokens: int = 60) -> list[Example]:
    """Each sample with the model's greedy answer and the spans of the sequence that was measured (reference answer included)."""
    made = []
    for sample in samples:
        said = vlm.generate(vlm.prepare([sample.images], [sample.prompt]), max_new_tokens=max_new_tokens)[0]
        inputs = vlm.prepare_samples([sample])
        made.append(
            Example(
                sample.id, [_picture(sample, image) for image in sample.images[:4]], _cut(sample.prompt.replace(IMAGE_MARK, "▣"), 4 * LONGEST),
                said, sample.answer or "", shown_spans(vlm, inputs), int(inputs.spans.real.sum()),
            )
        )  # fmt: skip
    return made


def shown_spans(vlm, inputs) -> list[ShownSpan]:
    """The runs of equal labels of the first row, text decoded, visual tokens counted."""
    ids, labels = inputs.tensors["input_ids"][0].tolist(), inputs.spans.labels[0].tolist()
    visual = inputs.spans.visual[0].tolist()
    runs = []
    for label, places in groupby((i for i, label in enumerate(labels) if label >= 0), key=lambda i: labels[i]):
        places = list(places)
        name = Spans.names[label]
        n_visual = sum(visual[i] for i in places)
        text = f"{n_visual} visual tokens" if n_visual else vlm.tokenizer.decode([ids[i] for i in places])
        runs.append(ShownSpan(name, _cut(text.strip(), LONGEST), SEGMENTS[name].colour))
    return runs


def _picture(sample: Sample, image) -> str:
    """The picture for people: a rendered scene is drawn again, larger; any other is made to fit."""
    scene = sample.truth.get("scene") if sample.truth else None
    if scene is not None and hasattr(scene, "place"):
        from ..scenes.render import render

        shown = render(scene, SIDE).pil
    else:
        shown = image.convert("RGB")
        shown.thumbnail((SIDE, SIDE))
    return base64.b64encode(png_of(shown)).decode()


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
