"""Sites of one batch, read in one forward pass by plain hooks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..scenes.errors import UserError
from .anatomy import Anatomy
from .attention import recording_mass
from .spans import Spans

_MASSES = ("attn_mass", "attn_images", "cross_mass")
_recording: ContextVar[tuple[Recorder, ...]] = ContextVar("chiasm_recorders", default=())


def site_names(anatomy: Anatomy) -> list[str]:
    """Every site of this model, in the order of the forward pass.

    `vision.blocks.i.resid_post` (as the tower shapes it), `projector`, `embed` (B, T, D: input of block 0, so with the
    family's embedding scale and learned positions), `blocks.i.attn_out`, `blocks.i.mlp_out`, `blocks.i.resid_post`
    (B, T, D), `blocks.i.attn_mass` (B, H, T, S: columns are Spans.names), `blocks.i.attn_images` (B, H, T, 2K: for every
    picture its mass and that of the text after it), `blocks.i.cross_mass` (B, H, T, tiles: Mllama's cross-attention
    layers, whose keys are the patches), `final` (B, T, D: after the final norm), `logits` (B, T, V).
    """
    names = [f"vision.blocks.{i}.resid_post" for i in range(anatomy.n_vision_layers)] + ["projector", "embed"]
    for i, kind in enumerate(anatomy.attention_kinds):
        if kind == "cross":
            names.append(f"blocks.{i}.cross_mass")
        elif kind != "linear":
            names += [f"blocks.{i}.attn_mass", f"blocks.{i}.attn_images"]
        if kind != "linear":
            names.append(f"blocks.{i}.attn_out")
        if hasattr(anatomy.blocks[i], "mlp"):
            names.append(f"blocks.{i}.mlp_out")
        names.append(f"blocks.{i}.resid_post")
    return [*names, "final", "logits"]


def linear_sites(anatomy: Anatomy) -> dict[str, nn.Linear]:
    """The linears of the decoder's blocks, by the site `blocks.i.in.PATH` at which their input (B, T, in) is read.

    Not among `site_names`, as there are many: only a pattern with `.in.` names them.
    """
    return {
        f"blocks.{i}.in.{path}": module
        for i, block in enumerate(anatomy.blocks)
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }


def expand_sites(anatomy: Anatomy, patterns: Sequence[str]) -> list[str]:
    """The sites that the patterns name (`*` matches layers), in forward order; UserError for one that names nothing."""
    known = site_names(anatomy)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if any(".in." in pattern for pattern in patterns):
        known += linear_sites(anatomy)
    wanted = set()
    for pattern in patterns:
        found = [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            _refuse_site(anatomy, pattern)
        wanted.update(found)
    return [name for name in known if name in wanted]


def _refuse_site(anatomy: Anatomy, pattern: str) -> None:
    if layer := re.fullmatch(r"(vision\.)?blocks\.(-?\d+)\.(\w+)", pattern):
        i = anatomy.check_layer(int(layer[2]), vision=bool(layer[1]))
        if layer[3] in _MASSES and not layer[1]:
            raise UserError(
                f"site {pattern!r}: layer {i} of this {anatomy.family} is {anatomy.attention_kinds[i]} attention"
            )
    kinds = sorted({re.sub(r"\d+", "*", name) for name in site_names(anatomy)})
    raise UserError(f"site {pattern!r} names nothing in this {anatomy.family}; the sites are {', '.join(kinds)}")


class Trace:
    """The tensors read at some sites, by name; `inputs` is what they were read from."""

    def __init__(self, tensors: dict[str, Tensor], inputs=None):
        self.tensors, self.inputs = tensors, inputs
        self.text_only: Trace | None = None  # the same texts without pictures, where a probe asked for it

    def __getitem__(self, site: str) -> Tensor:
        try:
            return self.tensors[site]
        except KeyError:
            raise KeyError(f"site {site!r} was not traced; traced: {', '.join(self.tensors)}") from None

    def __contains__(self, site: str) -> bool:
        return site in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def select(self, pattern: str) -> list[Tensor]:
        """The tensors whose site matches the pattern, in layer order."""
        return [self.tensors[name] for name in self.tensors if fnmatchcase(name, pattern)]

    def layers(self, what: str) -> list[int]:
        """Numbers of the decoder layers that have this kind of site in the trace."""
        return [int(m[1]) for name in self.tensors if (m := re.fullmatch(rf"blocks\.(\d+)\.{what}", name))]


class Recorder:
    """Reads sites during the forward passes this thread makes; several passes (decoding) are joined along the queries."""

    def __init__(self, anatomy: Anatomy, sites: Sequence[str], spans: Spans):
        self.anatomy, self.spans = anatomy, spans
        self.sites = expand_sites(anatomy, sites)
        self.read: dict[str, list[Tensor]] = {}
        self.seen = 0  # positions the decoder has processed, cache included
        self.masses = {}  # id of an attention module -> its layer
        if any(site.endswith(_MASSES) for site in self.sites):
            layers = {int(site.split(".")[1]) for site in self.sites if site.endswith(_MASSES)}
            self.masses = {id(anatomy.attention(i)): i for i in layers}

    # -- residual stream and module outputs ----------------------------------------------------------------------------

    def _keep(self, site: str, value: Tensor | tuple) -> None:
        if self in _recording.get():
            value = value[0] if isinstance(value, tuple) else value
            self.read.setdefault(site, []).append(getattr(value, "last_hidden_state", value))

    def _hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        anatomy, wanted = self.anatomy, set(self.sites)

        def output(module: nn.Module, site: str):
            if site in wanted:
                # `_keep` returns None: whatever else a hook returned would replace the module's output
                yield module.register_forward_hook(lambda _m, _a, out: self._keep(site, out))

        def enter(_module, args, kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            if self in _recording.get():
                self.seen += states.shape[1]
            if "embed" in wanted:
                self._keep("embed", states)

        def entering(site: str):
            return lambda _m, args: self._keep(site, args[0])

        yield anatomy.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
        if any(".in." in site for site in wanted):
            for site, linear in linear_sites(anatomy).items():
                if site in wanted:
                    yield linear.register_forward_pre_hook(entering(site))
        for i, block in enumerate(anatomy.blocks):
            yield from output(block, f"blocks.{i}.resid_post")
            if f"blocks.{i}.attn_out" in wanted:
                yield from output(anatomy.attention(i), f"blocks.{i}.attn_out")
            if f"blocks.{i}.mlp_out" in wanted:
                yield from output(block.mlp, f"blocks.{i}.mlp_out")
        for i, block in enumerate(anatomy.vision_blocks):
            yield from output(block, f"vision.blocks.{i}.resid_post")
        yield from output(anatomy.projector, "projector")
        yield from output(anatomy.norm, "final")
        yield from output(anatomy.unembedding, "logits")

    # -- attention masses (MassReader) ---------------------------------------------------------------------------------

    def groups(self, module: nn.Module, query: Tensor, key: Tensor) -> Tensor | None:
        layer = self.masses.get(id(module))
        if layer is None:
            return None
        if self.anatomy.attention_kinds[layer] == "cross":
            return self._tiles(key)
        return self._at_keys(self.columns.to(key.device), key.shape[0], key.shape[2])

    def _at_keys(self, groups: Tensor, batch: int, length: int) -> Tensor:
        """The groups (B, T, G) at the keys a layer really has: cached, windowed, preallocated, repeated for beams."""
        if self.seen > groups.shape[1]:
            groups = _generated(groups, self.seen - groups.shape[1])
        if length < groups.shape[1]:  # a sliding window has forgotten the first keys
            groups = groups[:, groups.shape[1] - length :]
        elif length > groups.shape[1]:  # a static cache holds room for keys to come, which are masked
            groups = _generated(groups, length - groups.shape[1])
        return groups.repeat_interleave(batch // groups.shape[0], 0) if batch != groups.shape[0] else groups

    def _tiles(self, key: Tensor) -> Tensor:
        """Cross-attention keys (B, H, pictures * tiles * patches, d) grouped by tile."""
        vision = self.anatomy.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        tiles = key.shape[2] // patches
        return torch.eye(tiles, device=key.device).repeat_interleave(patches, 0).expand(key.shape[0], -1, -1)

    def take(self, module: nn.Module, mass: Tensor) -> None:
        layer = self.masses[id(module)]
        if self.anatomy.attention_kinds[layer] == "cross":
            self.read.setdefault(f"blocks.{layer}.cross_mass", []).append(mass)
            return
        for kind, part in zip(
            _MASSES, mass.split([len(Spans.names), mass.shape[-1] - len(Spans.names)], -1), strict=False
        ):
            if f"blocks.{layer}.{kind}" in self.sites:
                self.read.setdefault(f"blocks.{layer}.{kind}", []).append(part)

    # -- the result ----------------------------------------------------------------------------------------------------

    @contextmanager
    def __call__(self) -> Iterator[Recorder]:
        self.columns = self.spans.indicators()
        if self.spans.n_images and any(site.endswith("attn_images") for site in self.sites):
            self.columns = torch.cat([self.columns, self.spans.image_indicators()], -1)
        with ExitStack() as stack:
            for hook in self._hooks():
                stack.callback(hook.remove)
            if self.masses:
                stack.enter_context(recording_mass(self.anatomy.model, self))
            token = _recording.set((*_recording.get(), self))
            stack.callback(_recording.reset, token)
            yield self

    def trace(self, inputs=None) -> Trace:
        """What was read, in forward order, decoding steps joined; rows of padding have mass zero."""
        joined = {site: _join(self.read[site], site) for site in self.sites if site in self.read}
        if not self.spans.real.all():
            for site, value in joined.items():
                if site.endswith(("attn_mass", "attn_images")):
                    joined[site] = value * self._real_queries(value)
        return Trace(joined, inputs)

    def _real_queries(self, mass: Tensor) -> Tensor:
        """1 for queries that are no padding, 0 for those that are, to be multiplied with (B, H, T, S)."""
        real = self.spans.real.to(mass.device).repeat_interleave(len(mass) // len(self.spans.labels), 0)
        return pad(real, (0, mass.shape[2] - real.shape[1]), value=True)[:, None, :, None]


def _join(values: list[Tensor], site: str) -> Tensor:
    if len(values) == 1 or site.startswith(("vision", "projector")):
        return values[0]
    return torch.cat(values, 2 if site.endswith(_MASSES) else 1)


def _generated(groups: Tensor, n: int) -> Tensor:
    """groups (B, T, G) with n more keys that belong to "generated"."""
    new = groups.new_zeros(groups.shape[0], n, groups.shape[2])
    new[..., Spans.names.index("generated")] = 1
    return torch.cat([groups, new], 1)
