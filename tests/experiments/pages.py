"""A tiny model and framed samples for tests of figures and pages; what a page loads."""

from __future__ import annotations

import random
from dataclasses import replace
from html.parser import HTMLParser

from chiasm.scenes.render import render
from chiasm.scenes.sample import Sample
from chiasm.scenes.world import make_scene, split_seeds
from PIL import Image

from ..probes.measuring import WORDS, tiny_vlm

__all__ = ["Reading", "framed", "framed_scene", "read", "tiny_vlm"]


def framed(i: int) -> Sample:
    """A sample with enough text on either side of its picture for every probe."""
    rng = random.Random(i)
    before, after = (" ".join(rng.choice(WORDS) for _ in range(n)) for n in (6 + i % 3, 7 + i % 2))
    color = (37 * i % 256, 91 * i % 256, 13 * i % 256)
    return Sample(f"s{i}", f"{before} <image> {after}", (Image.new("RGB", (40, 32), color),), rng.choice(WORDS))


def framed_scene(i: int) -> Sample:
    """The same with a rendered scene for a picture, and its truth."""
    sample, scene = framed(i), make_scene(split_seeds("test", 1, i)[0])
    return replace(sample, images=(render(scene, 32).pil,), truth={"scene": scene})


class Reading(HTMLParser):
    """What a browser would do with a page: what it would load, its elements' ids, and its text outside scripts."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.alts, self.text, self.tags = [], [], [], [], []
        self._inside = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        if tag not in ("img", "meta", "link", "br", "input"):
            self._inside.append(tag)
        self.loads += [given[name] for name in ("src", "srcset", "data", "poster", "action") if given.get(name)]
        if tag == "link":
            self.loads.append(given.get("href"))
        if given.get("id"):
            self.ids.append(given["id"])
        if tag == "img":
            self.alts.append(given.get("alt", ""))

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._inside):
            self.text.append(data)


def read(html: str) -> Reading:
    reading = Reading()
    reading.feed(html)
    reading.text = " ".join(" ".join(reading.text).split())
    return reading
