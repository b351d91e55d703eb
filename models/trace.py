"""Sites of one batch, read in one forward pass by plain hooks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase, translate

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..scenes.errors import UserError
from .anatomy import Anatomy
from .attention import decoder_config, reading_attention
from .decoder_attention import MASSES, ROWS, DecoderReader, without_padding
from .linear_inputs import Squares, linear_sites, square_sites
from .spans import Spans
from .vision_attention import pooling_attention, vision_readers, vision_sites

_ATTENTION = (*MASSES, *ROWS, "cross_mass")
_recording: ContextVar[tuple[Recorder, ...]] = ContextVar("chiasm_recorders", default=())


def site_names(anatomy: Anatomy) -> list[str]:
    """Every site of this model, in the order of the forward pass.

    `vision.blocks.i.resid_post` (as the tower shapes it) and what is attended to in the tower (see `vision_sites`),
    `projector`, `embed` (B, T, D: input of block 0, so with the family's embedding scale and learned positions),
    `blocks.i.attn_out`, `blocks.i.mlp_out`, `blocks.i.resid_post` (B, T, D), `blocks.i.attn_mass` (B, H, T, S: columns are
    Spans.names), `blocks.i.attn_shuffled` (B, H, T, 2: mass on the text before the picture and on the text behind it, these
    labels dealt anew among the text of each row, see `Spans.shuffled_indicators`; keys decoded later are behind),
    `blocks.i.attn_images` (B, H, T, 2K: for every picture its mass and that of the text after it),
    `blocks.i.attn_rows` (B, H, Q, T: attention of the Q queries of `Spans.predicting`), `blocks.i.attn_few` (of at most `FEW` of
    them, evenly spaced), `blocks.i.cross_mass` (B, H, T, tiles: Mllama's cross-attention layers, whose keys are the patches),
    `blocks.i.cross_rows` (B, H, Q, keys) and `blocks.i.cross_few`, `final`
    (B, T, D: after the final norm), `logits` (B, T, V).
    """
    names = [*vision_sites(anatomy), "projector", "embed"]
    for i, kind in enumerate(anatomy.attention_kinds):
        if kind == "cross":
            names += [f"blocks.{i}.{site}" for site in ("cross_mass", "cross_rows", "cross_few")]
        elif kind != "linear":
            names += [f"blocks.{i}.{site}" for site in (*MASSES, "attn_rows", "attn_few")]
        if kind != "linear":
            names.append(f"blocks.{i}.attn_out")
        if hasattr(anatomy.blocks[i], "mlp"):
            names.append(f"blocks.{i}.mlp_out")
        names.append(f"blocks.{i}.resid_post")
    return [*names, "final", "logits"]


def expand_sites(anatomy: Anatomy, patterns: Sequence[str]) -> list[str]:
    """The sites that the patterns name (`*` matches layers), in forward order; UserError for one that names nothing."""
    known = site_names(anatomy)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if any(".in." in pattern for pattern in patterns):
        known += linear_sites(anatomy)
    if any(".squares." in pattern for pattern in patterns):
        known += square_sites(anatomy)
    wanted = set()
    for pattern in patterns:
        matches = re.compile(translate(pattern)).match  # what fnmatchcase does, the pattern looked up once
        found = [name for name in known if matches(name)]
        if not found:
            _refuse_site(anatomy, pattern)
        wanted.update(found)
    return [name for name in known if name in wanted]


def _refuse_site(anatomy: Anatomy, pattern: str) -> None:
    if layer := re.fullmatch(r"(vision\.)?blocks\.(-?\d+)\.(\w+)", pattern):
        i = anatomy.check_layer(int(layer[2]), vision=bool(layer[1]))
        if layer[3] in _ATTENTION and not layer[1]:
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


def sites_read() -> set[str]:
    """The sites that the recorders of this thread, which are open now, read."""
    return {site for recorder in _recording.get() for site in recorder.sites}


class Recorder:
    """Reads sites during the forward passes this thread makes; several passes (decoding) are joined along the queries."""

    def __init__(self, anatomy: Anatomy, sites: Sequence[str], spans: Spans):
        self.anatomy, self.spans = anatomy, spans
        self.sites = expand_sites(anatomy, sites)
        self.read: dict[str, list[Tensor]] = {}
        self.seen = 0  # positions the decoder has processed, cache included
        self.squares = Squares(spans) if any(".squares." in site for site in self.sites) else None

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
                if self.squares:
                    self.squares.enter(*states.shape[:2], self.seen)
            if "embed" in wanted:
                self._keep("embed", states)

        def entering(site: str, read=lambda x: x):
            return lambda _m, args: self._keep(site, read(args[0])) if self in _recording.get() else None

        yield anatomy.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
        if any(".in." in site for site in wanted):
            for site, linear in linear_sites(anatomy).items():
                if site in wanted:
                    yield linear.register_forward_pre_hook(entering(site))
        if self.squares:
            for site, linear in square_sites(anatomy).items():
                if site in wanted:
                    yield linear.register_forward_pre_hook(entering(site, self.squares))
        for i, block in enumerate(anatomy.blocks):
            yield from output(block, f"blocks.{i}.resid_post")
            if f"blocks.{i}.attn_out" in wanted:
                yield from output(anatomy.attention(i), f"blocks.{i}.attn_out")
            if f"blocks.{i}.mlp_out" in wanted:
                yield from output(block.mlp, f"blocks.{i}.mlp_out")
        for i, block in enumerate(anatomy.vision_blocks):
            yield from output(block, f"vision.blocks.{i}.resid_post")
        if "vision.pool_attention" in wanted:
            yield pooling_attention(anatomy).register_forward_hook(
                lambda _m, _a, out: self._keep("vision.pool_attention", out[1][:, 0])
            )
        yield from output(anatomy.projector, "projector")
        yield from output(anatomy.norm, "final")
        yield from output(anatomy.unembedding, "logits")

    # -- the result ----------------------------------------------------------------------------------------------------

    @contextmanager
    def __call__(self) -> Iterator[Recorder]:
        with ExitStack() as stack:
            for hook in self._hooks():
                stack.callback(hook.remove)
            if any(site.startswith("blocks.") and site.endswith(_ATTENTION) for site in self.sites):
                reader = DecoderReader(self)
                stack.enter_context(reading_attention(decoder_config(self.anatomy.model), reader))
            for config, reader in vision_readers(self):
                stack.enter_context(reading_attention(config, reader))
            token = _recording.set((*_recording.get(), self))
            stack.callback(_recording.reset, token)
            yield self

    def trace(self, inputs=None) -> Trace:
        """What was read, in forward order, decoding steps joined; rows of padding have mass zero."""
        joined = {site: _join(self.read[site], site) for site in self.sites if site in self.read}
        return Trace(without_padding(joined, self.spans), inputs)


def _join(values: list[Tensor], site: str) -> Tensor:
    if site.endswith(".received"):  # some towers attend picture by picture
        return torch.cat(values, -1)
    if len(values) == 1 or site.startswith(("vision", "projector", "resampler")):
        return values[0]
    if ".squares." in site:
        return torch.stack(values).sum(0)
    if site.endswith(("attn_rows", "attn_few")):
        values = [pad(rows, (0, values[-1].shape[-1] - rows.shape[-1])) for rows in values]
    return torch.cat(values, 2 if site.endswith(_ATTENTION) else 1)
