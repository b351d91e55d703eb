"""The same model in nnsight and in TransformerLens, for what they do best. Imported only when asked for."""

from __future__ import annotations

import copy

import torch

from ..scenes.errors import UserError


def nnsight_view(model):
    """nnsight's wrapper around this very model. Importing nnsight mounts `.save` on object process-wide."""
    try:
        from nnsight import NNsight
    except ImportError:
        raise UserError("nnsight is not installed: pip install 'chiasm[views]'") from None
    return NNsight(model)


def transformer_lens_view(vlm):
    """A TransformerLens bridge over a copy of the model, under eager attention.

    Built from the architecture adapter directly: TransformerLens' own `boot_transformers` may install packages by itself
    when a processor is not found. The bridge rewires modules in place, hence the copy (twice the weights in memory).
    """
    try:
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
        from transformer_lens.model_bridge.sources.transformers_driver import TransformersDriver
    except ImportError:
        raise UserError("transformer-lens 4.3.0 is not installed: pip install 'chiasm[views]'") from None
    model = copy.deepcopy(vlm.anatomy.model)
    model.set_attn_implementation("eager")
    parameter: torch.Tensor = next(model.parameters())
    try:
        config = build_bridge_config_from_hf(
            copy.deepcopy(model.config), type(model).__name__, "local", parameter.dtype
        )
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"TransformerLens has no bridge for {type(model).__name__} ({' '.join(str(error).split())[:120]}): use vlm.trace"
        ) from error
    adapter.cfg.device = str(parameter.device)
    adapter.prepare_model(model)
    return TransformerBridge(model, adapter, None, driver=TransformersDriver(model, adapter, None))
