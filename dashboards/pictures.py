"""The picture and the prompt of a page: a rendered scene, a picture of the user's own, or a sample of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from PIL import Image

from ..experiments.options import open_samples, read_options
from ..scenes.benchmarks import ASKED, pope_questions, scene_samples
from ..scenes.errors import UserError
from ..scenes.pictures import FORMATS, open_picture
from ..scenes.readers import DEFAULT_PROMPT, Reader
from ..scenes.render import render
from ..scenes.sample import IMAGE_MARK, BadSample, Sample
from ..scenes.world import make_scene, place_in_split, split_seeds

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
"""Limits of an upload; the second is told from the header, before anything is decoded."""

MAX_SIDE = 2048
"""Longer sides of an upload are scaled down to this; it is kept for as long as the window is open."""

MOST_LETTERS = 4000
"""Characters of a prompt."""

SIDE = 448
"""Pixels at which pictures are shown, on their longer side."""

SCENE, OWN, FOUND = "A scene", "My picture", "From a run"


class Chosen(NamedTuple):
    """What a page is to show a model. sample: where the picture is a scene or of a run; its own prompt may differ."""

    image: Image.Image
    sample: Sample | None
    prompt: str


def read_upload(data: bytes, name: str = "upload") -> Image.Image:
    """The picture in uploaded bytes: upright, RGB, without metadata, of an animation the first frame, its longer side at most
    `MAX_SIDE`. Raises UserError for more than `MAX_BYTES`, more than `MAX_PIXELS`, and for what is no whole picture."""
    if len(data) > MAX_BYTES:
        raise UserError(
            f"picture {name!r} has {len(data) / 2**20:.1f} MB, the limit is {MAX_BYTES // 2**20} MB: scale it down"
        )
    image = open_picture(data, name=name, max_pixels=MAX_PIXELS)
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


@lru_cache(maxsize=32)
def scene_at(number: int, size: int = 64) -> tuple[Sample, ...]:
    """What is asked about the `number`-th scene of the test split (from 0): a description, a caption, and one question of each
    kind that has an answer there."""
    (seed,) = split_seeds("test", 1, number)
    made = (
        next(scene_samples(1, "test", kind, start=number, size=size)) for kind in ("description", "caption", *ASKED)
    )
    return tuple(sample for sample in made if sample.truth["scene"].seed == seed)


def plain_prompt(prompt: str) -> str:
    """A prompt without the mark of a picture that stands in front of it anyway."""
    return prompt.removeprefix(IMAGE_MARK).strip()


def shown(image: Image.Image, sample: Sample | None = None, side: int = SIDE) -> Image.Image:
    """The picture for people, its longer side `side` pixels: a rendered scene is drawn anew, others are scaled."""
    scene = sample.truth.get("scene") if sample is not None else None
    if scene is not None and image.width == image.height:
        return render(scene, side).pil
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


# -- samples of runs ---------------------------------------------------------------------------------------------------


def sample_of(manifest: Mapping[str, Any], sample_id: str) -> Sample:
    """The sample of a run, by its id, read again through the data set that the run's manifest names.

    Raises UserError when the run names none, when its data are not here any more, and when they have no such sample.
    """
    from ..experiments.benchmarks import open_benchmark  # takes seconds to import

    config = manifest.get("config") or {}
    if config.get("benchmark") and not str(config["benchmark"]).endswith("-scenes"):  # those are known by their ids
        samples = open_benchmark(
            config["benchmark"], config.get("source"), limit=config.get("limit"), seed=config.get("seed") or 0,
            **read_options(config.get("read")),
        ).samples  # fmt: skip
    elif config.get("data"):
        told = {"limit": config.get("limit"), "seed": config.get("seed") or 0, "read": config.get("read")}
        samples = open_samples(config["data"], frame="long", **told)
    else:
        samples = _rendered(sample_id, config.get("seed") or 0)
    found = _find(samples, sample_id)
    if isinstance(found, BadSample):
        raise UserError(f"sample {sample_id!r} cannot be read: {found.reason}")
    if found is None or not found.images:
        what = "has no picture" if found is not None else "is not in the data that this run names"
        raise UserError(f"sample {sample_id!r} {what}: choose another one")
    return found


def _find(samples, sample_id: str) -> Sample | BadSample | None:
    """The item of an id; of a reader with its picture only that one is read."""
    if hasattr(samples, "readers"):  # `Joined` ones
        several = len(samples.readers) > 1
        for split, reader in samples.readers.items():
            own = sample_id.removeprefix(f"{split}/") if several else sample_id
            found = _find(reader, own) if not several or own != sample_id else None
            if found is not None:
                return found
        return None
    if isinstance(samples, Reader):
        for item in samples.items():  # what an item is called before it is read is mostly, but not always, its id
            if item.id == sample_id and (sample := item.read()).id == sample_id:
                return sample
        unseen = replace(samples, look=False)
        at = (place for place, sample in enumerate(unseen) if sample.id == sample_id)
        return next((next(samples.iterate(place)) for place in at), None)
    return next((sample for sample in samples if sample.id == sample_id), None)


def _rendered(sample_id: str, seed: int) -> list[Sample]:
    """A rendered scene's sample, made anew from its id alone: KIND-SCENE, STYLE-caption-SCENE or pope-SAMPLING-SCENE-CATEGORY."""
    if asked := re.fullmatch(r"pope-(random|popular|adversarial)-(\d{1,12})-\w+", sample_id):
        return pope_questions([make_scene(int(asked[2]))], asked[1], seed)
    if not (named := re.fullmatch(r"(?:(\w+)-)?(\w+)-(\d{1,12})", sample_id)):
        return []
    style, kind, scene = named[1] or "neutral", named[2], int(named[3])
    if kind not in ("description", "caption", *ASKED):
        return []
    split, start = place_in_split(scene)
    return list(scene_samples(1, split, kind, seed, style=style, start=start))


# -- the widgets -------------------------------------------------------------------------------------------------------


def choose_picture(key: str, *, size: int = 64) -> Chosen | None:
    """Widgets for a picture and a prompt; what is chosen, or None while there is no picture or prompt.

    key: begins the names of this page's values. size: pixels at which scenes are drawn for the model. A sample put at
    `st.session_state[f"{key}_sample"]` is offered too. Raises UserError for a picture that cannot be used.
    """
    import streamlit as st

    kept = {"persist_state": "session"}  # what is chosen outlives a visit to another page
    sample = st.session_state.get(f"{key}_sample")
    sources = [SCENE, OWN, *([FOUND] if sample is not None else [])]
    source = st.segmented_control("Picture", sources, default=SCENE, required=True, key=f"{key}_source", **kept)
    asked: dict[str, Sample] = {}
    if source == OWN:
        image, prompts = _own(key), [DEFAULT_PROMPT, *(plain_prompt(sample.prompt) for sample in scene_at(0)[:2])]
    elif source == FOUND and sample is not None:
        st.caption(f"Sample {sample.id}")
        image, prompts = sample.images[0], [plain_prompt(sample.prompt), DEFAULT_PROMPT]
    else:
        number = st.number_input(
            "Scene", 0, 999_999, 0, step=1, key=f"{key}_scene", **kept,
            help="Rendered scenes of the test split, which no bundled model was trained on.",
        )  # fmt: skip
        asked = {plain_prompt(one.prompt): one for one in scene_at(number, size)}
        prompts, sample = list(asked), next(iter(asked.values()))
        image = sample.images[0]
    prompt = st.selectbox(
        "Prompt", list(dict.fromkeys(prompts)), key=f"{key}_prompt", accept_new_options=True, **kept,
        help="Choose one, or type your own and press Enter.",
    )  # fmt: skip
    prompt = (prompt or "").strip()
    if len(prompt) > MOST_LETTERS:
        raise UserError(f"the prompt has {len(prompt)} characters, the limit is {MOST_LETTERS}: shorten it")
    if image is None or not prompt:
        return None
    return Chosen(image, None if source == OWN else asked.get(prompt, sample), prompt)


def _own(key: str) -> Image.Image | None:
    """The picture uploaded last: Streamlit forgets an upload when another page is shown, this does not."""
    import streamlit as st

    def changed() -> None:
        st.session_state.pop(f"{key}_own", None)

    given = st.file_uploader(
        "A picture", key=f"{key}_upload", on_change=changed, max_upload_size=MAX_BYTES // 2**20,
        help=f"{', '.join(FORMATS)}; at most {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} million pixels. It stays in this session.",
    )  # fmt: skip
    if given is not None and f"{key}_own" not in st.session_state:
        st.session_state[f"{key}_own"] = read_upload(given.getvalue(), given.name)
    return st.session_state.get(f"{key}_own")
