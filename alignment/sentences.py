"""How alike two texts are in meaning: the cosine of their embeddings, as Re-Align's filter uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scenes.errors import UserError


class SentenceSimilarity:
    """A Hugging Face text encoder with the mean of its last states (all-mpnet-base-v2 and its kind). Raises UserError for a model that
    cannot be loaded."""

    def __init__(self, source: str, *, device: str | torch.device | None = None):
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self.model = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"sentence encoder {source!r} cannot be loaded ({reason}): give a folder or hub id, such as "
                "sentence-transformers/all-mpnet-base-v2, or leave it out"
            ) from error
        self.model = self.model.eval().to(device or "cpu")

    @torch.no_grad()
    def __call__(self, a: str, b: str) -> float:
        found = self.tokenizer([a, b], padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        one, other = mean_states(self.model(**found).last_hidden_state, found["attention_mask"])
        return float(torch.cosine_similarity(one, other, dim=0))


def mean_states(states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D) states and (B, T) mask → (B, D) means over real tokens."""
    weight = mask[..., None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
