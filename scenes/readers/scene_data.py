"""The rendered world as a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UserError
from .reader import Item, Reader


@dataclass(frozen=True)
class SceneData(Reader):
    """n rendered scenes with their truth, made as they are asked for: `chiasm.scenes.benchmarks.scene_samples`.

    kind: what is asked about them (default: that function's own). split: train, val or test, which share no scene. seed: of wordings and of
    what is asked. start: the first scene, counted within the split. frame: no, short or long text around the picture.
    """

    kind: str | None = None
    n: int = 1000
    split: str = "test"
    seed: int = 0
    frame: str = "none"
    start: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"n={self.n}, must be at least 1: say how many scenes to make")
        if self.start < 0:
            raise UserError(f"start={self.start}, must be 0 (the split's first scene) or more")

    def __len__(self) -> int:
        return self.n

    def items(self) -> Iterator[Item]:
        from ..benchmarks import scene_samples

        chosen = {"start": self.start} | ({} if self.kind is None else {"kind": self.kind})
        try:
            for sample in scene_samples(n=self.n, split=self.split, seed=self.seed, frame=self.frame, **chosen):
                yield Item(sample.id, "", lambda sample=sample: sample)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.called()}: {error}") from error

    def called(self) -> str:
        return "scenes" if self.kind is None else f"scenes:{self.kind}"

    def content(self) -> Iterator[bytes]:
        """The first scene, besides the options: it changes when the world or its drawing does."""
        sample = next(self.items()).read()
        yield f"{sample.prompt}\0{sample.answer}".encode()
        for image in sample.images:
            yield image.tobytes()
