"""Reading embeddings from a language model's states: the pieces other people's checks call, under one name."""

from __future__ import annotations

from .embedding_losses import embedding_loss, info_nce
from .embedding_probe import EmbeddingProbe
from .resampler import Resampler
from .ridge import StreamingRidge

__all__ = ["EmbeddingProbe", "Resampler", "StreamingRidge", "embedding_loss", "info_nce"]
