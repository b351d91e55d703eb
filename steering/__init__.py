"""What is changed at inference: directions, skipping, pruning, attention, and contrast decoding."""

from .attention import VisualAttentionBoost
from .causal_trace import causal_trace
from .contrast import ContrastDecoder
from .directions import (
    Direction,
    direction_from_pairs,
    direction_from_samples,
    direction_from_shift,
    directions_of_concepts,
)
from .exit import VisualExit
from .negatives import Blank, NoImage, NoisedImage, OutlierTokens, RandomTokens
from .patch import Patch
from .prune import PruneVisual, RemoveVisual
from .residual import AblateDirection, AddDirection, AffineAblate, NormPreservingAdd, Rotate, When
from .schedules import M3ID
from .selection import select_directions, try_directions
from .sinks import SinkRedistribution
from .skip import SkipAttention, SkipBlock, SkipFFN
from .steer import steer

__all__ = [
    "M3ID",
    "AblateDirection",
    "AddDirection",
    "AffineAblate",
    "Blank",
    "ContrastDecoder",
    "Direction",
    "NoImage",
    "NoisedImage",
    "NormPreservingAdd",
    "OutlierTokens",
    "Patch",
    "PruneVisual",
    "RandomTokens",
    "RemoveVisual",
    "Rotate",
    "SinkRedistribution",
    "SkipAttention",
    "SkipBlock",
    "SkipFFN",
    "VisualAttentionBoost",
    "VisualExit",
    "When",
    "causal_trace",
    "direction_from_pairs",
    "direction_from_samples",
    "direction_from_shift",
    "directions_of_concepts",
    "select_directions",
    "steer",
    "try_directions",
]
