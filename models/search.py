"""Finding the parts of a family that is not in the table, by structure, and checking what was found by running it."""

from __future__ import annotations

import torch
from torch import nn

from ..scenes.errors import UserError
from .anatomy import Anatomy, Layout

_PROJECTORS = (
    "multi_modal_projector",
    "connector",
    "merger",
    "projector",
    "mm_projector",
    "aligner",
    "language_projection",
)
_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "layer_norm", "norm_f")
_TOLERANCE = 1e-3


def search_layout(model: nn.Module) -> Layout:
    """A layout for an unknown family, or a UserError that says what was looked for and not found.

    Looks for: the decoder's layer list (as long as the text config says), the final norm beside it, the unembedding
    (`get_output_embeddings`), the tower's layer list (as long as the vision config says) and a projector by name; then
    checks that unembed(norm(last layer)) reproduces the logits.
    """
    names = {id(module): name for name, module in model.named_modules()}
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    text, vision = model.config.get_text_config(), getattr(model.config, "vision_config", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    inside = names.get(id(decoder), "")

    depth = getattr(text, "num_hidden_layers", None)
    blocks = _only(
        [n for n, m in lists.items() if decoder is not None and n.startswith(inside) and len(m) == depth],
        model,
        f"a list of {depth} decoder layers under get_decoder()",
    )
    depth = next((d for k in ("num_hidden_layers", "depth", "num_layers") if (d := getattr(vision, k, None))), None)
    tower = _only(
        [n for n, m in lists.items() if not n.startswith(inside) and n != blocks and len(m) == depth],
        model,
        f"a list of {depth} vision layers outside the decoder",
    )
    parent = blocks.rpartition(".")[0]
    norm = next((f"{parent}.{n}" for n in _NORMS if hasattr(model.get_submodule(parent), n)), "")
    projector = _only(
        [n for n in names.values() if n.rpartition(".")[2] in _PROJECTORS and not n.startswith(blocks)][:1],
        model,
        f"a projector named one of {', '.join(_PROJECTORS)}",
    )
    if getattr(model.config, "image_token_id", None) is None:
        _refuse(model, "config.image_token_id")
    head = model.get_output_embeddings()
    if head is None:
        _refuse(model, "an unembedding (get_output_embeddings)")
    layout = Layout(
        blocks=blocks,
        norm=norm,
        vision=tower.rpartition(".")[0] or tower,
        vision_blocks=(tower,),
        projector=projector,
        grid="none",  # where its tokens lie on the picture is not knowable from structure
        unembed=names[id(head)],
    )
    check_layout(Anatomy(model, model.config.model_type, layout))
    return layout


def check_layout(anatomy: Anatomy) -> None:
    """Runs three text tokens and compares unembed(norm(last block)) with the logits; raises UserError if they differ."""
    model = anatomy.model
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":
        return
    last: list[torch.Tensor] = []
    hook = anatomy.blocks[-1].register_forward_hook(lambda _m, _a, out: last.append(out))
    try:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[1, 2, 3]], device=device)).logits
            state = last[0][0] if isinstance(last[0], tuple) else last[0]
            ours = anatomy.unembed(anatomy.norm(state))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        _refuse(model, f"a forward pass over three text tokens (it raised {type(error).__name__}: {error})")
    finally:
        hook.remove()
    if ours.shape != logits.shape or not torch.allclose(ours.float(), logits.float(), atol=_TOLERANCE, rtol=_TOLERANCE):
        _refuse(model, "unembed(final norm(last layer)) that reproduces the logits")


def _only(found: list[str], model: nn.Module, what: str) -> str:
    if len(found) != 1:
        _refuse(
            model, f"exactly one candidate for {what}, found {len(found)}{': ' + ', '.join(found) if found else ''}"
        )
    return found[0]


def _refuse(model: nn.Module, what: str) -> None:
    raise UserError(
        f"{type(model).__name__} (model_type {model.config.model_type!r}) is not in the table of families and the "
        f"structural search did not find {what}; add a row to LAYOUTS in models/anatomy.py"
    )
