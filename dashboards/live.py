"""One generation as it goes on, and what is read of it: where each word looked, layer by layer and head by head."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..models.anatomy import Anatomy
from ..models.patch_scores import PictureScores, picture_scores, score_kinds, score_site
from ..models.spans import Spans
from ..models.vision_attention import sees_all, tower_attention
from ..models.vlm import VLM
from ..probes.outlier_maps import decoder_layers, decoder_sites
from ..probes.outliers import outlier_set
from ..probes.patch_words import PatchWords, patch_words
from ..scenes.sample import Sample

MOST_BYTES = 1 << 30
"""Attention that is kept of one answer; later words of a longer one are shown without."""

SCORES = {
    "cls": "attention of the encoder's CLS token",
    "pool": "attention of the encoder's pooling head",
    "received": "attention a patch receives from the others",
    "norm": "length of the patch's feature",
}
"""Kinds of `models.patch_scores`, in words."""


@dataclass(frozen=True)
class Encoder:
    """What the encoder makes of each candidate. kind: the best score this tower has; layers: where it is read (K), empty
    names for a pooling head; scores: (K, N); outliers: (K, N) bool; at: index of the layer the projector reads."""

    kind: str
    layers: tuple[int, ...]
    scores: np.ndarray
    outliers: np.ndarray
    at: int


@dataclass(frozen=True)
class Seen:
    """What a generation showed. tokens (W), words (W): texts that joined give the answer; ending: what ended it, "end" (the
    model), "longest" (the most tokens asked for) or "stopped".

    attention: (V, L, H, N), fp32, of the query that predicts word v to candidate n of the picture, in `layers` (L), of the V first
    words. segments: (V, M, H, S) of the same queries to the spans `Spans.names`, in `text_layers` (M). boxes: (N, 4)
    pixels of the picture as it was given, NaN where a candidate has no place; tiles: (N,), 0 the whole picture.
    """

    tokens: tuple[int, ...]
    words: tuple[str, ...]
    ending: str
    seconds: float
    layers: tuple[int, ...]
    attention: np.ndarray
    text_layers: tuple[int, ...]
    segments: np.ndarray
    boxes: np.ndarray
    tiles: np.ndarray
    encoder: Encoder

    @property
    def answer(self) -> str:
        return "".join(self.words).strip()

    def map(self, word: int, head: int | None = None) -> np.ndarray:
        """(L, N) where a word looked, in every layer: of one head, or the mean of all."""
        maps = self.attention[word]
        return maps.mean(1) if head is None else maps[:, head]

    def shares(self, word: int, head: int | None = None) -> np.ndarray:
        """(M, S) what a word's attention was shared out to."""
        shares = self.segments[word]
        return shares.mean(1) if head is None else shares[:, head]


class Watch:
    """Generates greedily and keeps, of each new token, the attention of the query that predicted it.

    Kept are its values at the picture and their sums over spans, never a map of all positions by all. Raises UserError
    for a prompt or a picture that the model does not take.
    """

    def __init__(self, vlm: VLM, image: Image.Image, prompt: str, *, max_new_tokens: int = 64):
        self.vlm, self.size, self.most = vlm, image.size, max_new_tokens
        self.inputs = vlm.prepare([image], [prompt])
        self.layers, self.kind = decoder_layers(vlm.anatomy)
        self.text_layers = tuple(i for i, kind in enumerate(vlm.anatomy.attention_kinds) if kind in ("full", "sliding"))
        self.columns = self.inputs.spans.indicators()[0]
        self.recorder, self.place, self.encoder = None, None, None
        self.tokens: list[int] = []
        self.attention: list[np.ndarray] = []
        self.segments: list[np.ndarray] = []
        self.room, self.seconds, self.stopped = 0, 0.0, True

    def stream(self) -> Iterator[str]:
        """The answer piece by piece. To be closed when it is given up, which ends the generation; see `contextlib.closing`."""
        text = [f"blocks.{i}.attn_rows" for i in self.text_layers]
        sites = [*decoder_sites(self.vlm.anatomy), *text, *encoder_sites(self.vlm.anatomy)]
        start = time.monotonic()
        with self.vlm.recording(self.inputs, list(dict.fromkeys(sites))) as self.recorder:
            pieces = self.vlm.stream(self.inputs, max_new_tokens=self.most, stopping_criteria=[self._step])
            try:
                yield from pieces
                self.stopped = False
            finally:
                pieces.close()
                self.seconds = time.monotonic() - start

    def seen(self) -> Seen | None:
        """What was seen until now; None before the first word. Not while the stream is running."""
        if not self.attention:
            return None
        words = texts(self.vlm.tokenizer, self.tokens)
        ending = "stopped" if self.stopped else "longest" if len(self.tokens) == self.most else "end"
        return Seen(
            tuple(self.tokens), words, ending, self.seconds, self.layers,
            np.stack(self.attention), self.text_layers, np.stack(self.segments), self.place.boxes.cpu().numpy(),
            self.place.tiles.cpu().numpy(), self.encoder,
        )  # fmt: skip

    # -- in the generating thread --------------------------------------------------------------------------------------

    def _step(self, ids: Tensor, *_, **__) -> Tensor:
        """Called after each new token: takes what its forward pass left with the recorder."""
        read, anatomy = self.recorder.read, self.vlm.anatomy
        if self.place is None:
            self.encoder, self.place = encoded(self.recorder.trace(self.inputs), self.inputs, anatomy, self.size)
        rows = torch.stack([read[f"blocks.{i}.{self.kind}"][-1][0, :, -1] for i in self.layers])
        looked = self.place.attention(rows).float().cpu().numpy()
        self.room = self.room or max(1, MOST_BYTES // looked.nbytes)
        if len(self.attention) < self.room:
            self.attention.append(looked)
            own = [read[f"blocks.{i}.attn_rows"][-1][0, :, -1].float().cpu() for i in self.text_layers]
            self.segments.append(torch.stack(own).matmul(self._columns(own[0].shape[-1])).numpy())
        self.tokens.append(int(ids[0, -1]))
        read.clear()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def _columns(self, length: int) -> Tensor:
        """(length, S) which span each key is of; those behind the prompt are generated."""
        later = torch.zeros(len(Spans.names))
        later[Spans.names.index("generated")] = 1
        return torch.cat([self.columns.cpu(), later.expand(length - len(self.columns), -1)])


def encoder_sites(anatomy: Anatomy) -> list[str]:
    """The sites of the tower's best score, at every layer where it can be read."""
    kind = score_kinds(anatomy)[0]
    return [score_site(anatomy, kind, layer) for layer in encoder_layers(anatomy, kind)]


def encoder_layers(anatomy: Anatomy, kind: str) -> list[int]:
    """Layers of the tower with this kind of score; the last alone for a pooling head."""
    every = range(anatomy.n_vision_layers)
    if kind == "pool":
        return [anatomy.n_vision_layers - 1]
    readable = [i for i in every if kind == "norm" or tower_attention(anatomy, i) is not None]
    return [i for i in readable if kind != "received" or sees_all(anatomy, i)]


def encoded(trace, inputs, anatomy: Anatomy, size: tuple[int, int]) -> tuple[Encoder, PictureScores]:
    """The encoder's scores by layer, and the picture's candidates with boxes in pixels of a picture of `size`."""
    kind = score_kinds(anatomy)[0]
    layers = encoder_layers(anatomy, kind)
    found = [picture_scores(trace, inputs, anatomy, kind, layer=layer)[0] for layer in layers]
    chosen = [outlier_set(one.scores, one.tiles, rule="ratio", value=None, patches=one.patches) for one in found]
    wanted = score_site(anatomy, kind)
    at = [score_site(anatomy, kind, layer) for layer in layers].index(wanted)
    scores, outliers = (torch.stack(values).cpu().numpy() for values in ([one.scores.float() for one in found], chosen))
    return Encoder(kind, tuple(layers), scores, outliers, at), _placed(found[0], anatomy, inputs, size)


def _placed(picture: PictureScores, anatomy: Anatomy, inputs, size: tuple[int, int]) -> PictureScores:
    """Where candidates are patches that the model reads in another way, their boxes are in pixels of what the tower is shown:
    the whole picture stretched, in Mllama fitted into the tile and filled up to the right or below."""
    if picture.positions is not None and picture.reads is None:
        return picture
    height, width = inputs.tensors["pixel_values"].shape[-2:]
    scale = [size[0] / width, size[1] / height]
    if anatomy.layout.grid == "cross":
        scale = [max(size[0] / width, size[1] / height)] * 2
    boxes = picture.boxes.cpu() * torch.tensor(scale * 2)
    limits = torch.tensor([*size, *size])
    clipped = boxes.minimum(limits)
    outside = (clipped[:, 2:] <= clipped[:, :2]).any(1, keepdim=True)
    return replace(picture, boxes=clipped.masked_fill(outside, torch.nan))


def texts(tokenizer, tokens: list[int]) -> tuple[str, ...]:
    """What each token adds to the answer: a letter that several tokens make up belongs to the last of them; "" for those
    that end it."""
    found, before = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        if text.endswith("\ufffd"):  # half a letter
            found.append("")
            continue
        found.append(text[len(before) :])
        before = text
    return tuple(found)


def words_of_patches(vlm: VLM, image: Image.Image, prompt: str) -> list[PatchWords]:
    """The logit lens on the picture's tokens, at the decoder's input and behind every block. Raises UserError."""
    return patch_words(vlm, Sample("look", prompt, (image,)), range(vlm.anatomy.n_layers + 1))
