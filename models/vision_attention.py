"""What the vision tower attends to: rows of its CLS token, attention received by patches, its pooling head, a resampler.

All from the queries and keys that the tower hands to its attention function, so that any fused kernel stays in use: a CLS
row costs O(C * N), attention received is summed over blocks of queries, and no map of all patches by all patches is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, first
from .attention import Call, Reader

_ATTENTION = ("self_attn", "attn", "attention")
_SITES = ("cls_attention", "cls_logprobs", "received")


def tower_attention(anatomy: Anatomy, layer: int) -> nn.Module | None:
    """The attention module of a layer of the tower, None where it has none that can be read."""
    block = anatomy.vision_blocks[layer]
    module = next(
        (getattr(block, name) for name in _ATTENTION if isinstance(getattr(block, name, None), nn.Module)), None
    )
    return module if hasattr(module, "config") else None


def sees_all(anatomy: Anatomy, layer: int) -> bool:
    """Whether this layer of the tower lets every patch see every other one of its picture (and not a window only)."""
    full = getattr(anatomy.vision_config, "fullatt_block_indexes", None)
    return full is None or layer in full


def pooling_attention(anatomy: Anatomy) -> nn.MultiheadAttention | None:
    """The attention of the tower's pooling head (SigLIP's learned probe over patches), None where there is none."""
    module = getattr(getattr(anatomy.model.get_submodule(anatomy.layout.vision), "head", None), "attention", None)
    return module if isinstance(module, nn.MultiheadAttention) else None


def resampler_attentions(anatomy: Anatomy) -> list[nn.Module]:
    """The modules by which query tokens read the patches (Q-Former, perceiver), in order; none in most families."""
    if former := getattr(anatomy.model, "qformer", None):
        return [layer.crossattention.attention for layer in former.encoder.layer if layer.has_cross_attention]
    perceiver = getattr(anatomy.projector, "perceiver_resampler", None)
    return [layer.self_attn for layer in perceiver.layers] if perceiver is not None else []


def vision_sites(anatomy: Anatomy) -> list[str]:
    """The sites of the tower, in forward order.

    `vision.blocks.i.cls_attention` (tiles, H, N: CLS row at the patches, softmax over all keys; CLS and registers dropped
    after it), `vision.blocks.i.cls_logprobs` (tiles, H, prefix + N: its logarithm, nothing dropped),
    `vision.blocks.i.received` (tiles, H, N: mean attention a patch gets from the other patches; (1, H, N of all pictures)
    in towers without a batch axis), `vision.blocks.i.resid_post`, `vision.pool_attention` (tiles, N: the pooling head's,
    mean over heads) and `resampler.attention` (pictures, Q, N: of each query token, mean over layers and heads).
    """
    names = []
    for i in range(anatomy.n_vision_layers):
        if tower_attention(anatomy, i) is not None:
            if anatomy.layout.prefix:
                names += [f"vision.blocks.{i}.cls_attention", f"vision.blocks.{i}.cls_logprobs"]
            if sees_all(anatomy, i):
                names.append(f"vision.blocks.{i}.received")
        names.append(f"vision.blocks.{i}.resid_post")
    names += ["vision.pool_attention"] if pooling_attention(anatomy) is not None else []
    return names + (["resampler.attention"] if resampler_attentions(anatomy) else [])


def combine_heads(logprobs: Tensor, prefix: int, mode: str = "headmean") -> Tensor:
    """Patch scores (..., N) of a CLS row's log-probabilities (..., H, prefix + N); columns of the prefix dropped afterwards.

    "headmean": mean over heads of the probabilities. "released": one softmax over the products of the undivided heads,
    softmax(q k / sqrt(C)) = softmax(sqrt(d / C) sum_h z_h) with z_h = q_h k_h / sqrt(d), as in DAMRO's release; heads'
    own normalisers are constants and fall out. Raises ValueError for another mode.
    """
    if mode == "headmean":
        return logprobs.exp().mean(-2)[..., prefix:]
    if mode == "released":
        return (logprobs.sum(-2) / logprobs.shape[-2] ** 0.5).softmax(-1)[..., prefix:]
    raise ValueError(f"mode {mode!r} is not known: use 'headmean' or 'released'")


def patch_columns(anatomy: Anatomy, length: int, *, prefix: bool = False) -> Tensor:
    """(tiles, N) places of each tile's patches in a row of the tower of this length; with the prefix in front if asked.

    One tile a row, and all behind the prefix are patches; only Mllama strings its tiles together, each padded.
    """
    tiles, n, before = 1, length, anatomy.layout.prefix
    if anatomy.layout.grid == "cross":
        tiles = anatomy.vision_config.max_num_tiles
        n = (first(anatomy.vision_config.image_size) // first(anatomy.vision_config.patch_size)) ** 2 + before
    start = torch.arange(tiles)[:, None] * (length // tiles)
    return start + torch.arange(0 if prefix else before, n)


class TowerReader:
    """Takes the attention sites that a recorder wants of the vision tower."""

    def __init__(self, recorder, layers: dict[int, int]):
        self.recorder, self.anatomy, self.layers = recorder, recorder.anatomy, layers
        self.sites = set(recorder.sites)

    def see(self, call: Call) -> None:
        layer = self.layers.get(id(call.module))
        if layer is None:
            return
        wanted = {kind for kind in _SITES if f"vision.blocks.{layer}.{kind}" in self.sites}
        if wanted - {"received"}:
            logprobs = self._cls(call)
            self._keep(layer, "cls_logprobs", logprobs)
            self._keep(layer, "cls_attention", logprobs[..., self.anatomy.layout.prefix :].exp())
        if "received" in wanted:
            self._keep(layer, "received", self._received(call))

    def _keep(self, layer: int, kind: str, value: Tensor) -> None:
        site = f"vision.blocks.{layer}.{kind}"
        if site in self.sites:
            self.recorder.read.setdefault(site, []).append(value)

    def _cls(self, call: Call) -> Tensor:
        """(tiles, H, prefix + N) log-probabilities of every tile's CLS row over its own tile."""
        columns = patch_columns(self.anatomy, call.key.shape[2], prefix=True).to(call.key.device)
        batch = call.query.shape[0]
        found = call.logits(columns[:, 0].expand(batch, -1)).log_softmax(-1)  # (B, H, tiles, Tk)
        own = [found[:, :, t, at] for t, at in enumerate(columns)]
        return torch.stack(own, 1).flatten(0, 1)

    def _received(self, call: Call) -> Tensor:
        length = call.key.shape[2]
        columns = patch_columns(self.anatomy, length).to(call.key.device)
        batch, visible = call.query.shape[0], call.visible()
        asking = torch.zeros(batch, length, dtype=torch.bool, device=call.key.device)
        asking[:, columns.flatten()] = True
        if visible is not None and len(columns) == 1:
            asking &= visible.any(1)  # what nobody sees is padding
        count = asking.sum(1)[:, None].expand(-1, length)
        if visible is not None:
            count = (visible & asking[..., None]).sum(1)
        found = call.received(asking) / (count - 1).clamp(min=1)[:, None]
        return torch.stack([found[:, :, at] for at in columns], 1).flatten(0, 1)


class ResamplerReader:
    """Sums the attention of the query tokens over layers; the last layer's call makes it a mean."""

    def __init__(self, recorder):
        self.recorder, self.anatomy = recorder, recorder.anatomy
        self.modules = [id(module) for module in resampler_attentions(recorder.anatomy)]
        self.rows: list[Tensor] = []

    def see(self, call: Call) -> None:
        if id(call.module) not in self.modules:
            return
        n_queries, n_keys = call.query.shape[2], call.key.shape[2]
        at = torch.arange(n_queries, device=call.query.device).expand(call.query.shape[0], -1)
        # a perceiver's latents stand behind the patches and see each other; a Q-Former's CLS stands in front
        end = n_keys if hasattr(self.anatomy.model, "qformer") else n_keys - n_queries
        self.rows.append(call.rows(at)[..., self.anatomy.layout.prefix : end].mean(1))
        if len(self.rows) == len(self.modules):
            self.recorder.read.setdefault("resampler.attention", []).append(torch.stack(self.rows).mean(0))
            self.rows = []


def vision_readers(recorder) -> Iterator[tuple[object, Reader]]:
    """Each config whose attention has to be read for the recorder's sites, with who reads it."""
    anatomy = recorder.anatomy
    wanted = {int(s.split(".")[2]) for s in recorder.sites if s.startswith("vision.blocks.") and s.endswith(_SITES)}
    modules = {i: tower_attention(anatomy, i) for i in wanted}
    for config in {id(module.config): module.config for module in modules.values()}.values():
        yield config, TowerReader(recorder, {id(m): i for i, m in modules.items() if m.config is config})
    if "resampler.attention" in recorder.sites:
        yield resampler_attentions(anatomy)[0].config, ResamplerReader(recorder)
