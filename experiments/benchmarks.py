"""The benchmarks of `chiasm evaluate`: where their questions come from, and what of the truth an answer is scored against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from ..probes.mentions import Matcher, scene_synonyms
from ..scenes.benchmarks import SAMPLINGS, description_set, pope_questions
from ..scenes.errors import UserError
from ..scenes.readers import Coco, Reader, open_data, recognise
from ..scenes.readers.pope import BuiltPope
from ..scenes.sample import BadSample, Sample
from ..scenes.world import make_scene, split_seeds

SHORT, LONG, DESCRIPTION = 16, 512, 160
"""Longest answers, in tokens: to yes/no questions, to "describe in detail", and of the bundled model to the same."""

SCENES = 200
"""Rendered scenes when no limit is given."""

DETAIL = "Please describe this image in detail."


@dataclass(frozen=True)
class Benchmark:
    """kind: how it is scored (see `scores`). samples: the questions, any iterable of `Sample`, ids unique. facts: what of a
    sample goes into its answer's record: "split", "image" (the unit of resampling), and "label" (yes or no) or the truth.
    words: what scoring needs besides (synonyms; AMBER's lists)."""

    name: str
    kind: str
    samples: Iterable[Sample | BadSample]
    max_new_tokens: int
    facts: Callable[[Sample], dict[str, Any]]
    words: Mapping[str, Any] = field(default_factory=dict)


BENCHMARKS = {
    "pope-scenes": "is there a …? about rendered scenes, random, popular and adversarial negatives",
    "chair-scenes": "objects made up in descriptions of rendered scenes",
    "pope": "a POPE question file, a folder of them, or a COCO instances file to build the three from",
    "chair": "objects made up in descriptions of COCO pictures: the folder with instances and captions files",
    "amber": "the folder of AMBER",
    "mme": "the folder of MME, of which existence, count, position and color are asked",
    "hallusion": "HallusionBench.json",
}
"""Name → what it asks; those without "-scenes" take a path."""


def open_benchmark(
    name: str,
    source: str | Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    look: bool = True,
    **options: Any,
) -> Benchmark:
    """The benchmark of a name, of the data at `source`.

    limit: at most so many questions of each split (POPE: of each file or sampling), or samples of the others. seed: of the
    wordings and negatives of rendered scenes, and of POPE questions that are built. look: False when answers are scored that
    were made elsewhere; pictures need not be there then. options: those of the reader (images, part, …). Raises UserError.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is not known: use {', '.join(BENCHMARKS)}")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} must be at least 1, or left out to ask everything")
    if name.endswith("-scenes"):
        if given := source or next(iter(options), None):
            raise UserError(
                f"benchmark {name!r} takes no path and no options, and {str(given)!r} was given: leave it out"
            )
        return (_pope_scenes if name == "pope-scenes" else _chair_scenes)(limit, seed)
    if source is None:
        raise UserError(f"benchmark {name!r} needs a path: {BENCHMARKS[name]}")
    made = _OPENERS[name](Path(source).expanduser(), seed=seed, look=look, **options)
    made = replace(made, samples=replace(made.samples, limit=limit))
    next(iter(made.samples))  # a source that is unusable is refused here
    return made


@dataclass(frozen=True)
class Joined:
    """Readers by split, one after the other, of each at most `limit` items. Where there are several, ids get the split in
    front, since each file numbers its own questions."""

    readers: Mapping[str, Reader]
    limit: int | None = None

    def __len__(self) -> int:
        return sum(self._size(reader) for reader in self.readers.values())

    def called(self) -> str:
        return ", ".join(reader.called() for reader in self.readers.values())

    def fingerprint(self) -> str:
        parts = [f"{split} {reader.fingerprint()}" for split, reader in self.readers.items()]
        return hashlib.sha256(f"{self.limit} {parts}".encode()).hexdigest()

    def __iter__(self) -> Iterator[Sample | BadSample]:
        for split, reader in self.readers.items():
            yield from (self._named(split, item) for item in islice(reader, self.limit))

    def iterate(self, start: int = 0, step: int = 1, block: int = 1) -> Iterator[Sample | BadSample]:
        """The items from `start` on, those before it not read; steps over blocks are not needed here."""
        if step != 1:
            raise ValueError(f"step={step}: an evaluation runs on one process")
        for split, reader in self.readers.items():
            size = self._size(reader)
            left = size - min(start, size)
            if left:
                yield from (self._named(split, item) for item in islice(reader.iterate(start), left))
            start -= size - left

    def _size(self, reader: Reader) -> int:
        return sum(1 for _ in islice(reader.items(), self.limit))  # counted, not read

    def _named(self, split: str, item: Sample | BadSample) -> Sample | BadSample:
        name = f"{split}/{item.id}" if len(self.readers) > 1 else item.id
        if isinstance(item, BadSample):
            return replace(item, id=name)
        return replace(item, id=name, truth=dict(item.truth) | ({} if split == "all" else {"split": split}))


# -- rendered scenes ---------------------------------------------------------------------------------------------------


def _pope_scenes(limit: int | None, seed: int) -> Benchmark:
    """Whole scenes up to the limit, so that yes and no stay equally frequent."""
    scenes, asked = [], 0
    for position in count():
        scene = make_scene(split_seeds("test", 1, position)[0])
        asked += 2 * min(3, len(scene.categories()))
        if asked > (limit or asked) or len(scenes) == (SCENES if limit is None else limit):
            break
        scenes.append(scene)
    if not scenes:
        raise UserError(f"limit {limit} is less than the questions about one scene: use 6 or more")
    samples = [sample for sampling in SAMPLINGS for sample in pope_questions(scenes, sampling, seed)]
    return Benchmark("pope-scenes", "pope", samples, SHORT, _of_scene)


def _chair_scenes(limit: int | None, seed: int) -> Benchmark:
    samples = description_set(limit or SCENES, seed=seed)
    return Benchmark("chair-scenes", "chair", samples, DESCRIPTION, _of_scene, {"synonyms": scene_synonyms()})


def _of_scene(sample: Sample) -> dict[str, Any]:
    scene = sample.truth["scene"]
    image = f"scene-{scene.seed}"
    if "sampling" in sample.truth:
        return {"split": sample.truth["sampling"], "image": image, "label": sample.truth["label"]}
    return {"split": "all", "image": image, "truth": scene.categories()}


# -- published files ---------------------------------------------------------------------------------------------------


def _pope(path: Path, *, seed: int, look: bool, **options: Any) -> Benchmark:
    """One file, or the three of a folder, told apart by the end of their names, or built from COCO's annotations."""
    if path.is_file() and recognise(str(path)) == "coco":
        readers = {s: BuiltPope(path, strategy=s, seed=seed, look=look, **options) for s in SAMPLINGS}
        return Benchmark("pope", "pope", Joined(readers), SHORT, _facts)
    splits = {next((s for s in SAMPLINGS if path.stem.endswith(s)), "all"): path}
    if path.is_dir():
        files = {s: sorted(path.glob(f"*{s}.json*")) for s in SAMPLINGS}
        if doubled := next((found for found in files.values() if len(found) > 1), None):
            raise UserError(f"{str(path)!r} has {doubled[0].name!r} and {doubled[1].name!r}: leave one of each split")
        splits = {split: found[0] for split, found in files.items() if found}
        if not splits:
            raise UserError(f"{str(path)!r} has no files *random.json, *popular.json, *adversarial.json: give a file")
    readers = {split: open_data(file, format="pope", look=look, **options) for split, file in splits.items()}
    return Benchmark("pope", "pope", Joined(readers), SHORT, _facts)


def _chair(path: Path, *, seed: int, look: bool, **options: Any) -> Benchmark:
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    pairs = {}
    for instances in [path] if path.is_file() else sorted(folder.glob("instances_*.json")):
        captions = instances.with_name(instances.name.replace("instances", "captions"))
        if captions.is_file() and captions != instances:
            pairs[instances] = captions
    if len(pairs) != 1:
        found = ", ".join(file.name for file in pairs) or "none"
        raise UserError(
            f"{str(path)!r} must hold one pair of instances_*.json and captions_*.json, and has {found}: give the folder with "
            "one pair, or the instances file"
        )
    ((instances, captions),) = pairs.items()
    said = {s.truth["image_id"]: s.truth["captions"] for s in Coco(captions, look=False) if isinstance(s, Sample)}
    reader = open_data(instances, format="coco", look=look, **({"prompt": DETAIL} | options))
    return Benchmark("chair", "chair", Joined({"all": reader}), LONG, partial(_of_coco, Matcher(), said))


def _of_coco(objects: Matcher, captions: Mapping[Any, Sequence[str]], sample: Sample) -> dict[str, Any]:
    """The truth is what was annotated and what the five reference captions mention (Rohrbach et al. 2018)."""
    truth = set(sample.truth["categories"])
    for caption in captions.get(sample.truth["image_id"], ()):
        truth.update(objects(caption))
    return {"split": "all", "image": sample.id, "truth": sorted(truth)}


def _amber(path: Path, *, seed: int, look: bool, **options: Any) -> Benchmark:
    reader = open_data(path, format="amber", look=look, **options)
    associations = reader.associations()
    vocabulary = sorted({*associations, *(word for words in associations.values() for word in words)})
    words = {"associations": associations, "safe_words": reader.safe_words(), "vocabulary": vocabulary}
    return Benchmark("amber", "amber", Joined({"all": reader}), LONG, _facts, words)


def _plain(name: str, path: Path, *, seed: int, look: bool, **options: Any) -> Benchmark:
    """MME and HallusionBench: one reader, yes or no."""
    return Benchmark(name, name, Joined({"all": open_data(path, format=name, look=look, **options)}), SHORT, _facts)


_OPENERS = {
    "pope": _pope,
    "chair": _chair,
    "amber": _amber,
    "mme": partial(_plain, "mme"),
    "hallusion": partial(_plain, "hallusion"),
}
_KEPT = ("image", "label", "truth", "hallu", "type", "pair")


def _facts(sample: Sample) -> dict[str, Any]:
    truth = sample.truth
    split = truth.get("split") or truth.get("task") or "all"
    facts = {"split": split, **{key: truth[key] for key in _KEPT if key in truth}}
    if truth.get("visual_input") == "0":  # HallusionBench without the figure: not one of the figures to get right
        facts["image"] = None
    return facts
