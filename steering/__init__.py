"""What is changed at inference: directions, skipping, pruning, attention, and contrast decoding."""

from .attention import VisualAttentionBoost
from .directions import Direction
from .exit import VisualExit
from .prune import PruneVisual
from .residual import AblateDirection, AddDirection, AffineAblate, NormPreservingAdd, Rotate, When
from .sinks import SinkRedistribution
from .skip import SkipAttention, SkipBlock, SkipFFN
from .steer import steer

__all__ = [
    "AblateDirection",
    "AddDirection",
    "AffineAblate",
    "Direction",
    "NormPreservingAdd",
    "PruneVisual",
    "Rotate",
    "SinkRedistribution",
    "SkipAttention",
    "SkipBlock",
    "SkipFFN",
    "VisualAttentionBoost",
    "VisualExit",
    "When",
    "steer",
]
