"""What the page Steer changes: all of its controls as one value, the answers under them, what differs, and code that gives the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from operator import itemgetter

from PIL import Image

from ..experiments.changing import Change, change_of
from ..experiments.decoding import DECODINGS
from ..scenes.sample import Sample
from ..scenes.world import place_in_split
from ..steering import Direction, steer
from .directions_at_hand import Source, quoted
from .marked import GOOD, PLAIN, Piece
from .pictures import MAX_SIDE

PLACEHOLDER = "picture.png"
"""Stands in code for the file of a picture that only the page has."""

GONE, NEW = "gone", GOOD
"""Kinds of marked words."""

SETTABLE = ("damro", "random-tokens")
"""Decodings that keep k tokens."""


@dataclass(frozen=True)
class Controls:
    """All that can be changed; the defaults change nothing. alpha: None for the decoding's own; beta: 0 for no mask; k: tokens kept,
    None for the decoding's own. keep: share of the visual tokens kept, 1 for all. exit_after: a block, None for never."""

    source: Source | None = None
    layer: int = 0
    scale: float = 1.0
    positions: str = "all"
    decode: str = "plain"
    alpha: float | None = None
    beta: float = 0.1
    k: int | None = None
    keep: float = 1.0
    skip: tuple[int, ...] = ()
    exit_after: int | None = None
    boost: float = 0.0

    def options(self) -> dict:
        """What `change_of` takes, save the direction; as the options of `chiasm generate` are called, and only what is not default."""
        options = {}
        if self.decode != "plain":
            options["decode"] = f"{self.decode}-k{self.k}" if self.k is not None else self.decode
            options |= {"alpha": self.alpha} if self.alpha is not None else {}
            options |= {"beta": self.beta} if self.beta != 0.1 else {}
        if self.source is not None:
            options |= {"layer": self.layer, "scale": self.scale, "positions": self.positions}
        options |= {"prune": self.keep} if self.keep < 1 else {}
        options |= {"skip": self.skip} if self.skip else {}
        options |= {"exit_after": self.exit_after} if self.exit_after is not None else {}
        return options | ({"boost": self.boost} if self.boost else {})

    def change(self, vlm, direction: Direction | None = None) -> Change | None:
        """The change, checked on the model; None where nothing is changed. direction: of the source. Raises UserError."""
        made = change_of(steer=() if direction is None else [direction], **self.options())
        if made is not None:
            made.check(vlm)
        return made


def answering(vlm, image: Image.Image, prompt: str, change: Change | None, tokens: int) -> Iterator[str]:
    """The answer in pieces, plain or under a change; together, stripped, they are what `generate` gives. To be closed by who stops early."""
    inputs = vlm.prepare([[image]], [prompt])
    with ExitStack() as opened:
        decoder = vlm
        if change is not None and change.contrast is not None:
            decoder = change.contrast.decoder(vlm)
        elif change is not None:
            opened.enter_context(steer(vlm, *change.interventions))
        yield from decoder.stream(inputs, max_new_tokens=tokens)


# -- what differs ------------------------------------------------------------------------------------------------------


def differences(plain: str, changed: str) -> list[tuple[str, str]]:
    """Runs of words of both texts in turn: (of the plain one, of the changed one), equal where they agree, "" where one has none."""
    a, b = (re.findall(r"\s*\S+", text) for text in (plain, changed))
    words = [[word.strip() for word in text] for text in (a, b)]
    blocks = SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    return [("".join(b[k:m] if tag == "equal" else a[i:j]), "".join(b[k:m])) for tag, i, j, k, m in blocks]


def compared(plain: str, changed: str) -> tuple[list[Piece], list[Piece]]:
    """Both answers as pieces: what the plain one alone has is `GONE`, what the changed one alone has is `NEW`."""
    pairs = differences(plain, changed)
    before, after = (
        [(pair[i], PLAIN if pair[0] == pair[1] else kind) for pair in pairs] for i, kind in ((0, GONE), (1, NEW))
    )
    return [piece for words in before for piece in _tight(words)], [piece for words in after for piece in _tight(words)]


def words_changed(plain: str, changed: str) -> tuple[int, int]:
    """(words of the plain answer that are gone, words of the changed one that are new)."""
    pairs = [pair for pair in differences(plain, changed) if pair[0] != pair[1]]
    return tuple(sum(len(pair[side].split()) for pair in pairs) for side in (0, 1))


def _tight(piece: Piece) -> list[Piece]:
    """The space before a marked piece is not part of it."""
    text, kind = piece
    words = text.lstrip()
    return [one for one in ((text[: len(text) - len(words)], PLAIN), (words, kind)) if one[0]] if kind else [piece]


# -- code --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copied:
    """text: to be copied, "" where there is none. hint: what to know about it, or ""."""

    text: str
    hint: str = ""


@dataclass(frozen=True)
class Panel:
    """What is on the page, as far as another process needs it to come to the same answers. scene: seed of the rendered scene, None
    for another picture."""

    controls: Controls
    prompt: str
    scene: int | None = None
    model: str = "organism"
    adapter: str | None = None
    device: str | None = None
    tokens: int = 64

    def as_python(self) -> Copied:
        """A script that prints both answers, and leaves them as `plain` and `changed`."""
        names, lines = {("chiasm.models", "open_vlm")}, []
        lines.append(f"vlm = open_vlm({_call(self.model, adapter=self.adapter, device=self.device)})")
        if self.scene is None:
            names.add(("chiasm.scenes.pictures", "open_picture"))
            lines.append(f'picture = open_picture("{PLACEHOLDER}")')
        else:
            names |= {("chiasm.scenes.render", "render"), ("chiasm.scenes.world", "make_scene")}
            lines.append(f"picture = render(make_scene({self.scene})).pil")
        lines.append(f"inputs = vlm.prepare([[picture]], [{quoted(self.prompt)}])")
        lines.append(f"plain = vlm.generate(inputs, max_new_tokens={self.tokens})[0]")
        if (source := self.controls.source) is not None:
            made, *imported = source.code(self.controls.layer)
            names.add(tuple(imported))
            lines.append(f"direction = {made}")
        more, used = self._changed()
        names |= {("chiasm.steering", name) for name in used}
        imports = [
            f"from {module} import {', '.join(sorted(name for _, name in group))}"
            for module, group in groupby(sorted(names), key=itemgetter(0))
        ]
        told = 'print(f"plain:   {plain}\\nchanged: {changed}")'
        return Copied("\n".join([*imports, "", *lines, *more, told]), self._hint())

    def _changed(self) -> tuple[list[str], set[str]]:
        """Lines that make `changed`, and what of `chiasm.steering` they use."""
        c, inside = self.controls, []
        if c.source is not None:
            place = c.positions if re.fullmatch(r"-?\d+", c.positions) else f'"{c.positions}"'
            settings = f'layer={c.layer}, scale={c.scale}, positions={place}, units="{c.source.units}"'
            inside.append(f"AddDirection(direction, {settings})")
        inside += [f"VisualAttentionBoost({c.boost})"] if c.boost else []
        inside += [f"PruneVisual({c.keep})"] if c.keep < 1 else []
        inside += [f"SkipFFN({list(c.skip)})"] if c.skip else []
        inside += [f"VisualExit({c.exit_after})"] if c.exit_after is not None else []
        used = {one.partition("(")[0] for one in inside}
        if c.decode == "plain" and not inside:
            return ["changed = plain  # nothing is changed"], used
        generated = f"generate(inputs, max_new_tokens={self.tokens})[0]"
        if c.decode == "plain":
            return [*_list(inside), "with steer(vlm, *change):", f"    changed = vlm.{generated}"], used | {"steer"}
        decoding = DECODINGS[c.decode]
        own = [type(one).__name__ for one in decoding.inside]
        inside[:0] = [f"{name}()" for name in own]
        negative = type(decoding.negative(None)).__name__
        used |= {"ContrastDecoder", negative, *own}
        alpha = decoding.alpha if c.alpha is None else c.alpha
        if callable(alpha):
            used.add(schedule := type(alpha).__name__)
        alpha = f"{schedule}()" if callable(alpha) else round(alpha, 9)
        made = f"{negative}({'' if c.k is None else f'k={c.k}'}), alpha={alpha}, beta={c.beta or None}"
        made += ", interventions=change" if inside else ""
        made += ', engine="two_calls"' if c.keep < 1 or c.exit_after is not None else ""
        return [*_list(inside), f"decoder = ContrastDecoder(vlm, {made})", f"changed = decoder.{generated}"], used

    def as_command(self) -> Copied:
        """The command that prints both answers; none where the direction is in no file."""
        source, words = self.controls.source, ["chiasm", "generate"]
        if source is not None and source.option is None:
            told = "The command line takes a direction from a file. Run the Python first, add"
            return Copied("", f'{told} `direction.save("mine")` to it, and give `--steer mine.safetensors`.')
        if self.scene is None:
            words.append(PLACEHOLDER)
        else:
            split, start = place_in_split(self.scene)
            words += f"--data scenes:caption --read split={split} --read start={start} --limit 1".split()
        words += ["--prompt", self.prompt]
        words += ["--steer", source.option] if source is not None else []
        for name, value in self.controls.options().items():
            for one in value if isinstance(value, tuple) else (value,):
                words += [f"--{name.removesuffix('_after')}={one}"]
        words += ["--max-new-tokens", str(self.tokens)] if self.tokens != 64 else []
        for name in ("model", "adapter", "device"):
            value = getattr(self, name)
            words += [f"--{name}", value] if value not in (None, "organism") else []
        return Copied(shlex.join(words), self._hint())

    def _hint(self) -> str:
        if self.scene is not None:
            return ""
        return f"`{PLACEHOLDER}` stands for the file of your picture (the page scales longer sides down to {MAX_SIDE} pixels)."


def scene_of(image: Image.Image, sample: Sample | None) -> int | None:
    """The seed of the scene that a picture is of, where it is one at the size that models see."""
    scene = sample.truth.get("scene") if sample is not None else None
    return scene.seed if scene is not None and image.size == (64, 64) else None


def _call(first: str, **named: str | None) -> str:
    more = (f"{name}={quoted(value)}" for name, value in named.items() if value is not None)
    return ", ".join([quoted(first), *more])


def _list(inside: list[str]) -> list[str]:
    return ["change = [", *(f"    {one}," for one in inside), "]"] if inside else []
