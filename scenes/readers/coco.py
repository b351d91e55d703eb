"""COCO's instances and captions files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..sample import Sample
from .reader import (
    DEFAULT_PROMPT,
    Item,
    ItemError,
    Reader,
    check_folder,
    columns,
    existing_file,
    file_content,
    json_document,
    locate,
    short,
    text,
)


@dataclass(frozen=True)
class Coco(Reader):
    """One sample for each picture listed in a COCO annotation file, in its order; the id is the picture's.

    instances: truth has "image_id", "objects" (a tuple of {"category", "box", "crowd"} in the order of the file, box =
    x0, y0, x1, y1 in pixels of the picture) and "categories" (the distinct names, first seen first). A picture whose size
    is not the listed one is a bad sample, since its boxes would lie elsewhere.
    captions: the answer is the first caption, truth has "image_id" and "captions" (all of them).

    The file is loaded as a whole at first use (COCO's largest takes about 2 GB); pictures are read one at a time.

    images: the folder of the pictures; default: the folder of the file, `images` in it, or beside it the folder named in
    the file's name (`annotations/instances_val2017.json` → `val2017`) or `images`.
    """

    path: Path
    images: Path | None = None
    prompt: str = DEFAULT_PROMPT

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", existing_file(self.path))
        check_folder(self.images)

    @cached_property
    def _file(self) -> dict[str, Any]:
        """The file, its annotations by picture: {"images": [...], "annotations": {image id: [...]}, "categories": {id: name}}."""
        loaded = json_document(self.path, self.called())
        if not isinstance(loaded, dict) or not all(isinstance(loaded.get(k), list) for k in ("images", "annotations")):
            has = columns(loaded) if isinstance(loaded, dict) else f"a {type(loaded).__name__}"
            raise UserError(
                f"{self.called()} has no lists 'images' and 'annotations', it has {has}: give a COCO instances or captions file"
            )
        by_picture: dict[Any, list[dict]] = defaultdict(list)
        for number, annotation in enumerate(loaded["annotations"]):
            if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), str | int):
                raise UserError(
                    f"{self.called()} annotations[{number}] has no 'image_id': {short(annotation)}; correct or remove it"
                )
            by_picture[annotation["image_id"]].append(annotation)
        categories = {
            c["id"]: c["name"]
            for c in loaded.get("categories", ())
            if isinstance(c, dict) and {"id", "name"} <= c.keys()
        }
        return {"images": loaded["images"], "annotations": by_picture, "categories": categories}

    @cached_property
    def kind(self) -> str:
        """ "instances" or "captions", told from the annotations."""
        first = next(iter(self._file["annotations"].values()), [{"category_id": None}])[0]
        for kind, key in (("captions", "caption"), ("instances", "category_id")):
            if key in first:
                return kind
        raise UserError(
            f"{self.called()} has annotations with neither 'caption' nor 'category_id', they have {columns(first)}: "
            "give a COCO instances or captions file"
        )

    def __len__(self) -> int:
        return len(self._file["images"])

    def called(self) -> str:
        return repr(str(self.path))

    def content(self) -> Iterator[bytes]:
        return file_content(self.path)

    def items(self) -> Iterator[Item]:
        kind = self.kind
        for number, listed in enumerate(self._file["images"]):
            name = str(listed.get("id", f"images[{number}]")) if isinstance(listed, dict) else f"images[{number}]"
            yield Item(name, f"{self.path.name!r} image {name}", partial(self._read_listed, name, listed, kind))

    def _read_listed(self, name: str, listed: Any, kind: str) -> Sample:
        if not isinstance(listed, dict) or not isinstance(listed.get("id"), str | int):
            raise ItemError(f"is {short(listed)}, must be an object with 'id' and 'file_name': correct it")
        annotations = self._file["annotations"].get(listed["id"], [])
        file_name = text(listed, "file_name", required=True)
        if kind == "captions":
            captions = tuple(text(annotation, "caption", required=True).strip() for annotation in annotations)
            pictures = self.looked_at(self._place(file_name))
            answer = captions[0] if captions else None
            return Sample(name, self.prompt, pictures, answer, {"image_id": listed["id"], "captions": captions})
        objects = tuple(self._object(annotation) for annotation in annotations)
        pictures = self.looked_at(self._place(file_name))
        for picture in pictures:
            size = (listed.get("width", picture.width), listed.get("height", picture.height))
            if picture.size != size:
                raise ItemError(
                    f"picture {file_name!r} is {picture.width} × {picture.height} pixels but listed as {size[0]} × {size[1]}, "
                    "so its boxes would lie elsewhere: use the pictures the file was made for",
                    malformed=False,
                )
        categories = tuple(dict.fromkeys(thing["category"] for thing in objects))
        return Sample(
            name,
            self.prompt,
            pictures,
            None,
            {"image_id": listed["id"], "objects": objects, "categories": categories},
        )

    def object_lists(self) -> Iterator[dict[str, Any]]:
        """{"image": file name, "objects": names in the order of the annotations} of every picture listed, none of them
        opened: what `build_pope` takes. Raises UserError for an entry that cannot be read."""
        for number, listed in enumerate(self._file["images"]):
            try:
                if not isinstance(listed, dict):
                    raise ItemError(f"is {short(listed)}, must be an object with 'id' and 'file_name': correct it")
                objects = [self._object(a)["category"] for a in self._file["annotations"].get(listed.get("id"), [])]
                yield {"image": text(listed, "file_name", required=True), "objects": objects}
            except ItemError as error:
                raise UserError(f"{self.called()} images[{number}]: {error}") from None

    def _object(self, annotation: dict[str, Any]) -> dict[str, Any]:
        known = self._file["categories"]
        category = annotation.get("category_id")
        if not isinstance(category, str | int) or category not in known:
            raise ItemError(
                f"category_id {short(category)} is not among the file's {len(known)} categories: correct it"
            )
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, Real) and v == v for v in box):
            raise ItemError(f"'bbox' is {short(box)}, must be [x, y, width, height] in pixels: correct it")
        x, y, width, height = map(float, box)
        return {
            "category": known[category],
            "box": (x, y, x + width, y + height),
            "crowd": bool(annotation.get("iscrowd")),
        }

    def _place(self, file_name: str) -> Path:
        if self.images is not None:
            return locate(file_name, (Path(self.images),))
        return locate(file_name, picture_folders(self.path))


def picture_folders(path: Path) -> tuple[Path, ...]:
    """Where the pictures of an annotation file are looked for."""
    here, beside = path.parent, path.parent.parent
    return here, here / "images", beside / path.stem.rpartition("_")[2], beside / "images"
