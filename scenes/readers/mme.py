"""The hallucination subset of MME (Fu et al. 2023, arXiv 2306.13394): existence, count, position and colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..pictures import SUFFIXES
from ..sample import Sample
from .reader import Item, ItemError, Reader, short

TASKS = ("existence", "count", "position", "color")
"""The folders of the subset, spelt as in the release."""


@dataclass(frozen=True)
class Mme(Reader):
    """The folders existence, count, position and color of the release, those of them that are there.

    Each text file holds the questions on the picture of the same name, one a line: question, tab, Yes or No. The picture lies
    beside it, or, in the other layout of the release, the texts in `questions_answers_YY` and the pictures in `images`. The
    id is task/name/line, the prompt the question as published, the answer in lower case. truth: "label", "task" and "image"
    (task/name: two questions share a picture, and count as one for accuracy+).
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not self.path.is_dir():
            raise UserError(f"{str(self.path)!r} is no folder: give the folder with {', '.join(TASKS)} in it")
        if not self._files:
            raise UserError(
                f"{self.called()} has none of the folders {', '.join(TASKS)} with text files in it: "
                "give the folder of the unpacked MME release"
            )

    @property
    def _files(self) -> list[tuple[str, Path]]:
        return [(task, file) for task in TASKS for file in question_files(self.path / task)]

    def called(self) -> str:
        return f"MME folder {str(self.path)!r}"

    def content(self) -> Iterator[bytes]:
        for task, file in self._files:
            yield f"{task}/{file.name}".encode()
            yield file.read_bytes()

    def items(self) -> Iterator[Item]:
        for task, file in self._files:
            raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
            for number, line in enumerate(raw.splitlines(), 1):
                if line.strip():
                    where = f"'{task}/{file.name}' line {number}"
                    yield Item(f"{task}/{file.stem}/{number}", where, partial(self._sample, task, file, number, line))

    def _sample(self, task: str, file: Path, number: int, raw: bytes) -> Sample:
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise ItemError(f"is not UTF-8 (byte 0x{raw[error.start]:02X}): save the file as UTF-8") from None
        question, tab, answer = line.strip().rpartition("\t")
        label = answer.strip().lower()
        if not tab or not question.strip() or label not in ("yes", "no"):
            raise ItemError(f"is {short(line)}, must be a question, a tab, and Yes or No: correct it")
        pictures = self.looked_at(self._picture(file)) if self.look else ()
        truth = {"label": label, "task": task, "image": f"{task}/{file.stem}"}
        return Sample(f"{task}/{file.stem}/{number}", question.strip(), pictures, label, truth)

    def _picture(self, file: Path) -> Path:
        """The picture of the same name, beside the text or in `images` beside its folder."""
        folders = (file.parent, file.parent.parent / "images")
        for folder in folders:
            for suffix in sorted(SUFFIXES):
                for ending in (suffix, suffix.upper()):
                    if (path := folder / f"{file.stem}{ending}").is_file():
                        return path
        return folders[0] / f"{file.stem}.jpg"


def question_files(folder: Path) -> list[Path]:
    """The text files with questions in one task's folder, sorted; none where it is not such a folder."""
    inner = folder / "questions_answers_YY"
    return sorted((inner if inner.is_dir() else folder).glob("[!.]*.txt"))
