"""What is changed at inference: directions, skipping, pruning, attention, and contrast decoding."""

from .attention import VisualAttentionBoost
from .causal_trace import causal_trace
from .directions import Direction
from .exit import VisualExit
from .patch import Patch
from .prune import PruneVisual
from .residual import AblateDirection, AddDirection, AffineAblate, NormPreservingAdd, Rotate, When
from .selection import select_directions, try_directions
from .sinks import SinkRedistribution
from .skip import SkipAttention, SkipBlock, SkipFFN
from .steer import steer

__all__ = [
    "AblateDirection",
    "AddDirection",
    "AffineAblate",
    "Direction",
    "NormPreservingAdd",
    "Patch",
    "PruneVisual",
    "Rotate",
    "SinkRedistribution",
    "SkipAttention",
    "SkipBlock",
    "SkipFFN",
    "VisualAttentionBoost",
    "VisualExit",
    "When",
    "causal_trace",
    "select_directions",
    "steer",
    "try_directions",
]
