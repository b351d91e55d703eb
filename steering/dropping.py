"""Taking positions of the prompt out of the decoder from a block on: by slicing them away, or by hiding their columns.

Both give the other positions the same states. "slice" saves the compute: blocks run on fewer rows and their caches are
shorter; before the final norm the rows are put back, those taken out as they were when they left, so that logits keep their
shape. "mask" keeps every site's shape, so that every lens can look: from the rows that go on the columns are hidden, and the
rows taken out go on among themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..models.attention import PREFIX, decoder_config
from ..models.trace import sites_read
from ..scenes.errors import UserError
from .left import Left, left_of, prompt_mask, rows_at, step_mask
from .steer import Edit
from .where import Where

MODES = ("slice", "mask")
_DROPS = "drops"

Which = Callable[[Where], Tensor | None]
"""Which positions (B, T) of a prompt are taken out, asked once at the decoder's input; None for none."""


@dataclass(frozen=True)
class _Drop:
    first: int
    gone: Tensor
    by: str


def dropped_at(vlm, first: int, which: Which, *, by: str = "slice", reindex: bool = False) -> list[Edit]:
    """Edits that take `which` out before block `first`. reindex: the others take the first positions, one after the other;
    else each keeps its own. Raises UserError for a model whose blocks cannot be run so.
    """
    _check(vlm.anatomy, first, by)
    anatomy = vlm.anatomy
    if first == anatomy.n_layers:
        return []
    attention = next(i for i, kind in enumerate(anatomy.attention_kinds) if kind != "linear")  # counts what was read

    def enter(args: tuple, kwargs: dict, where: Where):
        _check_whole(where)
        if not where.prompt:
            return args, _later(kwargs, where)
        gone = which(where)
        if gone is None or not gone.any():
            return args, kwargs
        if by == "slice":
            _check_unread(first)
        drops = where.memory.setdefault(_DROPS, [])
        drops.append(_Drop(first, gone, by))
        where.memory["length"] = where.length
        read = left_at(where, attention)
        where.memory["dropped"] = where.length - read.places.shape[1] if read is not None else 0
        kwargs = _with_positions(kwargs, where, gone if reindex else None)
        return args, _with_deepstack(kwargs, where, first) if by == "slice" else kwargs

    edits = [Edit(anatomy.decoder, before=enter), Edit(anatomy.norm, before=_leave)]
    return edits + [_at_block(anatomy, i) for i in range(first, anatomy.n_layers)]


def left_at(where: Where, block: int) -> Left | None:
    """What is left of the prompt at a block; None where nothing was taken out before it."""
    drops = tuple(i for i, drop in enumerate(where.memory.get(_DROPS, ())) if drop.first <= block)
    if not drops:
        return None
    made = where.memory.setdefault("left", {})
    if drops not in made:
        made[drops] = _left(where, [where.memory[_DROPS][i] for i in drops])
    return made[drops]


def _left(where: Where, drops: list[_Drop]) -> Left:
    sliced, hidden = torch.zeros_like(drops[0].gone), torch.zeros_like(drops[0].gone)
    for drop in drops:
        sliced, hidden = (sliced | drop.gone, hidden) if drop.by == "slice" else (sliced, hidden | drop.gone)
    return left_of(_real(where, sliced.device), sliced, hidden)


def _real(where: Where, device) -> Tensor:
    """(B, T) what is no padding, of a prompt and of what a pass without a cache reads behind it."""
    real = where.spans.real[:, : where.length]
    return pad(real, (0, where.length - real.shape[1]), value=True).to(device)


# -- the decoder's input -----------------------------------------------------------------------------------------------


def _with_positions(kwargs: dict, where: Where, gone: Tensor | None) -> dict:
    """The positions of a prompt, and in the memory which one comes next."""
    batch, length = where.batch, where.length
    ids = kwargs.get("position_ids")
    device = kwargs["inputs_embeds"].device if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"].device
    if ids is None:
        ids = torch.arange(length, device=device)[None]
    ids = ids.expand(*ids.shape[:-2], batch, length)
    if gone is not None:
        real = _real(where, device)
        begin = ids.masked_fill(~real, length).amin(1, keepdim=True)
        ids = torch.where(real, begin + (real & ~gone.to(device)).long().cumsum(1) - 1, ids).clamp(min=0)
        kwargs = kwargs | {"position_ids": ids}
        where.memory["reindexed"] = True
        if kwargs.get("attention_mask") is None:  # without a mask, positions that do not count on would part sequences
            kwargs["attention_mask"] = torch.ones(batch, length, dtype=torch.long, device=device)
    last = ids.amax(-1, keepdim=True)
    if last.dim() == 3:  # the axes of a rotary embedding go on together; in front of them may stand the text's count
        last = torch.cat([last[:-3], last[-3:].amax(0, keepdim=True).expand(3, -1, -1)])
    where.memory["next"] = last + 1
    return kwargs


def _later(kwargs: dict, where: Where) -> dict:
    """Positions of a step that is decoded: models count them by a cache, which may be shorter now."""
    memory = where.memory
    if _DROPS not in memory or not (memory["dropped"] or memory.get("reindexed")):
        return kwargs
    ahead = torch.arange(where.length, device=memory["next"].device) + where.start - memory["length"]
    return kwargs | {"position_ids": memory["next"] + ahead}


def _with_deepstack(kwargs: dict, where: Where, first: int) -> dict:
    """Qwen3-VL adds features of the picture behind its first blocks: only where there still is a row for them."""
    levels = kwargs.get("deepstack_visual_embeds")
    if levels is None:
        return kwargs
    if first:
        return kwargs | {"deepstack_visual_embeds": levels[:first]}
    visual, levels = where.held.setdefault("deepstack", (kwargs["visual_pos_masks"], levels))
    left = left_at(where, 0)
    there, at = (left.places >= 0).to(visual.device), left.places.clamp(min=0).to(visual.device)
    still = visual.gather(1, at) & there
    number = (visual.flatten().long().cumsum(0) - 1).view_as(visual).gather(1, at)[still]
    kept = kwargs["deepstack_visual_embeds"]  # an exit may have cut the list before
    return kwargs | {"visual_pos_masks": still, "deepstack_visual_embeds": [x[number] for x in levels[: len(kept)]]}


# -- blocks ------------------------------------------------------------------------------------------------------------


def _at_block(anatomy, block: int) -> Edit:
    window = getattr(anatomy.attention(block), "sliding_window", None)
    linear = anatomy.attention_kinds[block] == "linear"

    def before(args: tuple, kwargs: dict, where: Where):
        left = left_at(where, block)
        if left is None or where.held.get("block") == block:
            return args, kwargs
        where.held["block"] = block  # of several interventions the first one acts for all
        states = args[0] if args else kwargs["hidden_states"]
        if not where.prompt:
            mask = (
                kwargs.get("attention_mask")
                if linear
                else _step_mask(anatomy, left, where, states, kwargs, block, window)
            )
            return args, kwargs | {"attention_mask": mask}
        if left.sliced and where.places is not left.places:
            where.held["full"] = full = _put_back(where, states)
            where.places = left.places
            states = rows_at(full, left.places)
        new = _once(where, ("mask", block if linear else "", id(kwargs.get("attention_mask")), id(left)), lambda: prompt_mask(
            kwargs.get("attention_mask"), left, states, flat=linear or _flash(anatomy)
        ))  # fmt: skip
        kwargs = kwargs | {"attention_mask": new}
        if left.sliced:
            kwargs |= {name: _once(where, (name, id(value), id(left)), lambda v=value, n=name: _sliced(n, v, left))
                       for name, value in kwargs.items() if name != "attention_mask"}  # fmt: skip
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    return Edit(anatomy.blocks[block], before=before)


def _once(where: Where, key, make: Callable):
    """What all blocks share is made once a pass."""
    if key not in where.held:
        where.held[key] = make()
    return where.held[key]


def _put_back(where: Where, states: Tensor) -> Tensor:
    """(B, T, D) the states of all positions: those left as they are now, the others as they were when taken out."""
    if where.places is None:
        return states
    full = where.held["full"].clone()
    row, at = torch.nonzero(where.places.to(states.device) >= 0, as_tuple=True)
    full[row, where.places.to(states.device)[row, at]] = states[row, at].to(full.device)
    return full


def _leave(args: tuple, kwargs: dict, where: Where):
    if where.places is None:
        return args, kwargs
    states, where.places = _put_back(where, args[0]), None
    del where.held["full"]  # the last pass is remembered until the next one
    return (states, *args[1:]), kwargs


def _sliced(name: str, value, left: Left):
    if name == "position_ids" and isinstance(value, Tensor):
        axes = [rows_at(axis, left.places) for axis in (value if value.dim() == 3 else value[None])]
        return torch.stack(axes) if value.dim() == 3 else axes[0]
    if name == "position_embeddings" and value is not None:
        return tuple(rows_at(part, left.places, part.dim() - 2) for part in value)
    if isinstance(value, Tensor) and value.dim() > 1 and name != "hidden_states":
        raise UserError(f"this model hands {name} to its blocks, which cannot be sliced: use by='mask'")
    return value


def _step_mask(
    anatomy, left: Left, where: Where, states: Tensor, kwargs: dict, block: int, window: int | None
) -> Tensor | None:
    """The mask of a step that is decoded, by what the block's own cache holds."""
    keys, offset = map(int, kwargs["past_key_values"].get_mask_sizes(where.length, block))
    make = lambda: step_mask(  # noqa: E731
        left, where.start, where.length, keys, offset, window, states.device, states.dtype, _flash(anatomy)
    )
    return _once(where, ("step", id(left), keys, offset, window, states.device), make)


def _flash(anatomy) -> bool:
    return "flash" in _implementation(anatomy)


def _implementation(anatomy) -> str:
    return str(decoder_config(anatomy.model)._attn_implementation).removeprefix(PREFIX)


# -- refusals ----------------------------------------------------------------------------------------------------------


def _check(anatomy, first: int, by: str) -> None:
    if by not in MODES:
        raise UserError(f"by={by!r} must be one of {', '.join(MODES)}")
    check_in_sequence(anatomy, "visual tokens")
    if not anatomy.layout.norm:
        raise UserError(
            f"this {anatomy.family} has no final norm before which rows could be put back: it cannot lose any"
        )
    if (name := _implementation(anatomy)) not in ("eager", "sdpa") and not (_flash(anatomy) and by == "slice"):
        remedy = 'by="slice", or ' if _flash(anatomy) else ""
        raise UserError(f'attention {name!r} takes no mask of its own: use {remedy}attn_implementation="sdpa"')
    linear = [i for i in range(first, anatomy.n_layers) if anatomy.attention_kinds[i] == "linear"]
    if by == "mask" and linear:
        raise UserError(
            f"by='mask': layers {', '.join(map(str, linear))} of this {anatomy.family} are linear attention, which has no "
            "columns to hide: use by='slice'"
        )


def check_in_sequence(anatomy, what: str) -> None:
    """UserError for a model whose pictures are not in the sequence."""
    if not anatomy.image_in_sequence:
        raise UserError(
            f"{what}: the pictures of a {anatomy.family} enter by cross-attention, so that no position of the decoder holds one"
        )


def _check_whole(where: Where) -> None:
    """A prompt must be read in one pass: later ones would not know what the first has lost."""
    if where.spans is None or where.start >= (known := where.spans.labels.shape[1]):
        return
    if (where.start or where.length < known) and where.spans.visual.any():
        raise UserError("a prompt read in several passes cannot lose its visual tokens: leave out prefill_chunk_size")


def _check_unread(first: int) -> None:
    """Sites behind a slice have no place for what was taken out."""
    for site in sorted(sites_read()):
        kind, _, rest = site.partition(".")
        late = kind == "blocks" and int(rest.partition(".")[0]) >= first
        if late or (first == 0 and kind in ("embed", "final", "logits")):
            raise UserError(f"site {site!r} cannot be read where positions were sliced away before it: use by='mask'")
