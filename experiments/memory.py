"""How much memory a model and a trace of it need, computed from shapes, before anything is downloaded or run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import nn

from ..models.anatomy import Anatomy, first
from ..models.decoder_attention import MASSES
from ..models.linear_inputs import linear_sites, square_sites
from ..models.spans import Spans
from ..models.trace import expand_sites
from .image_tokens import ImageTokens

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def weight_memory(anatomy: Anatomy) -> dict[str, int]:
    """Bytes of the weights in each number format, tied weights counted once.

    int8 and int4 are what bitsandbytes makes of a model: the weights of every linear layer but the unembedding in one
    byte, or in half a byte plus one fp32 scale for every 64 values; the rest in two bytes.
    """
    parameters = {id(p): p.numel() for p in anatomy.model.parameters()}
    total = sum(parameters.values())
    linear = {
        id(m.weight): m.weight.numel()
        for m in anatomy.model.modules()
        if isinstance(m, nn.Linear) and m is not anatomy.unembedding
    }
    quantised = sum(linear.values())
    sizes = {name: total * size for name, size in BYTES.items()}
    sizes["int8"] = quantised + 2 * (total - quantised)
    sizes["int4"] = round(quantised * (0.5 + 4 / 64)) + 2 * (total - quantised)
    return sizes


@dataclass(frozen=True)
class TraceMemory:
    """Bytes a trace needs, part by part. See `trace_memory` for what each holds."""

    weights: int
    sites: int
    logits: int
    work: int
    cache: int

    @property
    def peak(self) -> int:
        """One `vlm.trace`: the logits are made when the layers are done, so the larger of the two counts."""
        return self.weights + self.sites + max(self.work, self.logits)

    @property
    def peak_generating(self) -> int:
        """One `vlm.trace_generation` that ends at this length: the same, with the cache."""
        return self.peak + self.cache

    def as_dict(self) -> dict[str, int]:
        return asdict(self) | {"peak": self.peak, "peak_generating": self.peak_generating}


def trace_memory(
    anatomy: Anatomy,
    sites: Sequence[str],
    *,
    batch: int,
    length: int,
    images: int = 1,
    picture: ImageTokens | None = None,
    dtype: str = "float32",
) -> TraceMemory:
    """Bytes to trace `sites` of a batch (B rows of T = `length` positions with I = `images` pictures each).

    With a bytes a number, L layers, D hidden size, H query and K key-value heads of size d, F feed-forward width, V
    vocabulary, and S spans (the tower's own with an index v, N patches in each of M = B I tiles runs):

    - weights: every parameter, a bytes each, tied ones once (`weight_memory` for quantised ones);
    - sites: embed, final, resid_post, attn_out, mlp_out: B T D a each; attn_mass 4 B H T S, attn_shuffled 8 B H T and
      attn_images 8 B H T I (always fp32); cross_mass 4 B H T I tiles; attn_rows and attn_few 4 B H Q T for Q queries
      (1 without an answer, as counted here); the inputs of a layer's linears (in.PATH) B T a times their widths, their sums
      of squares (squares.PATH) 8 B times these, those that read one tensor (q, k and v; gate and up) once; projector B I tokens D a (before padding is cut); vision.blocks.i.resid_post M N Dv a, its attention sites 4 M Hv N;
    - logits: B T V a, made by the model whether asked for or not;
    - work: the larger of one decoder layer and one tower layer in flight: for n positions n a (4 D + max(3 F,
      4 H d + 2 K d)), for a recorded mass 16 n H d more (queries, keys, indicators and result in fp32), and for sums of
      squares 4 n F more (the squares of one input in fp32);
    - cache: keys and values of every softmax attention layer, 2 B K T d a (a cross-attention layer: its patches for T).
      Only decoding keeps them; a plain trace does not.

    peak = weights + sites + max(work, logits); a traced generation that ends at this length needs the cache besides.

    It assumes a fused attention kernel (sdpa or flash): eager attention adds B H T² a a layer. The allocator's
    fragmentation and the GPU context (about 0.5 to 1 GB) come on top.
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype {dtype!r}: a trace runs in one of {', '.join(BYTES)}")
    size, names = BYTES[dtype], expand_sites(anatomy, sites)
    total = sum(p.numel() for p in {id(p): p for p in anatomy.model.parameters()}.values())
    kept = sum(site_bytes(anatomy, name, batch, length, images, picture, size) for name in names)
    logits = batch * length * anatomy.vocab_size * size
    return TraceMemory(
        weights=total * size,
        sites=kept - (logits if "logits" in names else 0),
        logits=logits,
        work=_work(anatomy, names, batch, length, images, picture, size),
        cache=_cache(anatomy, batch, length, images, picture) * size,
    )


def site_bytes(
    anatomy: Anatomy, site: str, batch: int, length: int, images: int, picture: ImageTokens | None, size: int
) -> int:
    """Bytes of one site's tensor, `size` bytes a number (masses are fp32 whatever the model's)."""
    if ".in." in site or ".squares." in site:
        if site.endswith(("k_proj", "v_proj", "up_proj")):  # the tensor that q_proj or gate_proj reads as well
            return 0
        if ".squares." in site:
            return batch * 2 * square_sites(anatomy)[site].in_features * 4
        return batch * length * linear_sites(anatomy)[site].in_features * size
    kind = re.sub(r"\.\d+\.", ".", site)
    rows = batch * length * anatomy.n_heads * 4
    tiles, patches, tokens = (picture.tiles, picture.patches, picture.tokens) if picture else (0, 0, 0)
    if kind == "blocks.attn_mass":
        return rows * len(Spans.names)
    if kind == "blocks.attn_shuffled":
        return rows * 2
    if kind == "blocks.attn_images":
        return rows * 2 * images
    if kind == "blocks.cross_mass":
        return rows * images * tiles
    if kind.endswith(("_rows", "_few")):  # one query, the last of the prompt; an answer of n tokens has n
        return batch * anatomy.n_heads * 4 * (images * tiles * patches if "cross" in kind else length)
    kept = patches if kind.endswith("cls_logprobs") else patches - anatomy.layout.prefix
    if kind == "resampler.attention":
        return batch * images * tokens * kept * 4
    if kind.startswith("vision.") and not kind.endswith("resid_post"):
        heads = 1 if kind == "vision.pool_attention" else vision_heads(anatomy)
        return batch * images * tiles * kept * heads * 4
    if kind == "projector":
        if anatomy.layout.grid == "cross":
            tokens = tiles * patches
        elif anatomy.layout.grid == "anyres":  # padding is cut and newlines come in behind the projector
            tokens = tiles * (patches - anatomy.layout.prefix)
        return batch * images * tokens * anatomy.hidden_size * size
    if kind == "vision.blocks.resid_post":
        return batch * images * tiles * patches * vision_width(anatomy) * size
    width = anatomy.vocab_size if kind == "logits" else anatomy.hidden_size
    return batch * length * width * size


def _cache(anatomy: Anatomy, batch: int, length: int, images: int, picture: ImageTokens | None) -> int:
    """Numbers in the keys and values of all layers."""
    heads, size = key_value_heads(anatomy), head_size(anatomy)
    patches = images * picture.tiles * picture.patches if picture else 0
    keys = {"full": length, "sliding": length, "linear": 0, "cross": patches}
    return sum(2 * batch * heads * size * keys[kind] for kind in anatomy.attention_kinds)


def _work(
    anatomy: Anatomy, names: Sequence[str], batch: int, length: int, images: int, picture: ImageTokens | None, size: int
) -> int:
    text = anatomy.text_config
    heads = anatomy.n_heads * head_size(anatomy)
    attention = 4 * heads + 2 * key_value_heads(anatomy) * head_size(anatomy)
    inner = getattr(text, "intermediate_size", None) or text.ffn_dim
    decoder = batch * length * size * (4 * anatomy.hidden_size + max(3 * inner, attention))
    if any(name.endswith((*MASSES, "cross_mass")) for name in names):
        decoder += 16 * batch * length * heads
    if any(".squares." in name for name in names):
        decoder += 4 * batch * length * inner
    if picture is None:
        return decoder
    width, vision = vision_width(anatomy), anatomy.vision_config
    inner = getattr(vision, "intermediate_size", None) or int(width * getattr(vision, "mlp_ratio", 4))
    tower = batch * images * picture.tiles * picture.patches * size * (4 * width + max(3 * inner, 6 * width))
    return max(decoder, tower)


def head_size(anatomy: Anatomy) -> int:
    return getattr(anatomy.text_config, "head_dim", None) or anatomy.hidden_size // anatomy.n_heads


def key_value_heads(anatomy: Anatomy) -> int:
    return getattr(anatomy.text_config, "num_key_value_heads", None) or anatomy.n_heads


def vision_width(anatomy: Anatomy) -> int:
    """Width of the tower's residual stream (Qwen2-VL calls it embed_dim, and its output width hidden_size)."""
    vision = anatomy.vision_config
    return first(getattr(vision, "embed_dim", None) or vision.hidden_size)


def vision_heads(anatomy: Anatomy) -> int:
    """Heads of the tower's attention, whatever its config calls them."""
    names = ("num_attention_heads", "num_heads", "attention_heads")
    return next(int(getattr(anatomy.vision_config, name)) for name in names if hasattr(anatomy.vision_config, name))
