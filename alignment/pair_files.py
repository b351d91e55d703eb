"""Pairs on disk: the folder they grow in, the pictures in it, and the finished data set with its card."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..probes.checkpoint import Checkpoint, check_setup
from ..probes.files import write_whole
from ..scenes.errors import UserError
from ..scenes.readers.hub import is_saved
from ..scenes.sample import IMAGE_MARK
from .pair_card import card

FORMAT = 1
META = (
    "id", "kind", "rejected_image", "rejected_id", "rank", "cosine", "graph_distance", "spans", "edit_similarity",
    "length_difference", "truth_chosen", "truth_rejected", "truth_rejected_image", "fill_logp", "backend", "judge", "encoder",
    "seed",
)  # fmt: skip
"""Columns beside those that training reads: where each pair comes from and what was checked of it."""


class PairFolder:
    """`<out>.incomplete` beside the data set that is to be: what it is made of, pictures by content, vectors, records.

    Killed at any point it holds whole files only. setup: what must be the same to go on. Raises UserError where `out` is taken, or was
    begun with something else.
    """

    def __init__(self, out: str | Path, setup: Mapping[str, Any]):
        self.out, self.setup = Path(out), dict(setup) | {"format": FORMAT}
        self.path = self.out.with_name(self.out.name + ".incomplete")
        self.finished = (self.out / "pairs.json").is_file()
        if not self.finished and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{str(self.out)!r} is there and holds no pairs: give another --out, or remove it")
        kept = self.out / "pairs.json" if self.finished else self.path / "pairs.json"
        if kept.is_file():
            try:
                before = json.loads(kept.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{str(kept)!r} is damaged: remove {str(kept.parent)!r} to begin anew") from error
            check_setup(Checkpoint(before), json.loads(json.dumps(self.setup)), kept.parent)
        elif not self.finished:
            write_whole(kept, json.dumps(self.setup, indent=1).encode())
        if self.finished:
            shutil.rmtree(self.path, ignore_errors=True)  # killed just before it was removed

    def put(self, image: Image.Image) -> str:
        """Keeps a picture, without loss and in RGB; returns its name, which equal pictures share."""
        image = image.convert("RGB")
        key = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]
        if not (path := self._picture(key)).is_file():
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            write_whole(path, buffer.getvalue())
        return key

    def picture(self, key: str) -> Image.Image:
        with Image.open(self._picture(key)) as image:
            return image.convert("RGB")

    def vectors(self, part: int, encoder: str) -> Tensor | None:
        """The vectors of a part of the data, if they are kept and by this encoder."""
        try:
            with safe_open(self.path / "vectors" / f"{part:05}.safetensors", framework="pt") as file:
                return file.get_tensor("vectors") if (file.metadata() or {}).get("encoder") == encoder else None
        except (SafetensorError, OSError):
            return None

    def keep_vectors(self, part: int, encoder: str, vectors: Tensor) -> None:
        content = save({"vectors": vectors.contiguous()}, {"encoder": encoder})
        write_whole(self.path / "vectors" / f"{part:05}.safetensors", content)

    @property
    def records(self) -> Path:
        return self.path / "records.jsonl"

    def finish(self, kept: Sequence[dict], dropped: Sequence[dict], facts: Mapping[str, Any], chat: bool) -> None:
        """Writes the data set, its card and what was dropped, and gives them their name in one step."""
        made = self.path / "dataset"
        shutil.rmtree(made, ignore_errors=True)
        write_dataset(kept, self.path / "images", made, self.path / "cache", chat=chat)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in dropped)
        write_whole(made / "dropped.jsonl", lines.encode())
        write_whole(made / "report.json", json.dumps(facts, indent=1).encode())
        write_whole(made / "README.md", card(facts, self.setup).encode())
        write_whole(made / "pairs.json", json.dumps(self.setup, indent=1).encode())
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self.out.is_dir():
            self.out.rmdir()  # empty, as was checked at the start
        os.rename(made, self.out)
        shutil.rmtree(self.path, ignore_errors=True)

    def report(self) -> dict[str, Any]:
        """The facts the finished data set was written with."""
        return json.loads((self.out / "report.json").read_text(encoding="utf-8"))

    def _picture(self, key: str) -> Path:
        return self.path / "images" / key[:2] / f"{key}.png"


def write_dataset(kept: Sequence[dict], images: Path, out: Path, cache: Path, *, chat: bool) -> None:
    """A Hugging Face data set (`datasets.load_from_disk`), one picture in memory at a time."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    said = [{"role": Value("string"), "content": Value("string")}] if chat else Value("string")
    numbers = {name: Value("float64") for name in ("cosine", "edit_similarity", "truth_chosen", "truth_rejected",
                                                   "truth_rejected_image", "fill_logp")}  # fmt: skip
    numbers |= {name: Value("int64") for name in ("rank", "graph_distance", "length_difference", "seed")}
    features = Features(
        {name: List(ImageFeature()) for name in ("images", "rejected_images")}
        | dict.fromkeys(("prompt", "chosen", "rejected"), said)
        | {name: numbers.get(name, Value("string")) for name in META}
    )
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        rows = {"kept": list(kept), "images": str(images), "chat": chat}
        Dataset.from_generator(_rows, gen_kwargs=rows, features=features, cache_dir=str(cache)).save_to_disk(out)
    finally:
        if shown:
            enable_progress_bar()


def _rows(kept: list[dict], images: str, chat: bool) -> Iterator[dict]:
    for record in kept:
        row = {name: record.get(name) for name in META}
        row["spans"] = json.dumps(record["spans"], ensure_ascii=False)
        for column, key in (("images", "picture"), ("rejected_images", "rejected_picture")):
            path = Path(images) / record[key][:2] / f"{record[key]}.png"
            row[column] = [{"bytes": path.read_bytes(), "path": None}]
        prompt = record["prompt"]
        if chat and prompt.lstrip().startswith(IMAGE_MARK):  # a conversation's pictures stand in front by themselves
            prompt = prompt.replace(IMAGE_MARK, "", 1).strip()
        said = {"prompt": ("user", prompt), "chosen": ("assistant", record["chosen"]),
                "rejected": ("assistant", record["rejected"])}  # fmt: skip
        for name, (role, text) in said.items():
            row[name] = [{"role": role, "content": text}] if chat else text
        yield row


def load_pairs(path: str | Path):
    """The finished pairs, or any rows written by `Dataset.save_to_disk`, as a `datasets.Dataset`. Raises UserError for a folder that holds
    none."""
    from datasets import load_from_disk

    path = Path(path)
    if not (path / "pairs.json").is_file() and not is_saved(path):
        begun = path.with_name(path.name + ".incomplete").is_dir()
        remedy = "call the same `chiasm pairs` again to go on" if begun else "make them with `chiasm pairs`"
        raise UserError(f"{str(path)!r} holds no finished pairs: {remedy}")
    return load_from_disk(str(path))
