"""What is changed at inference: directions, skipping, pruning, attention, and contrast decoding."""

from .attention import VisualAttentionBoost
from .directions import Direction
from .residual import AblateDirection, AddDirection, AffineAblate, NormPreservingAdd, Rotate, When
from .sinks import SinkRedistribution
from .steer import steer

__all__ = [
    "AblateDirection",
    "AddDirection",
    "AffineAblate",
    "Direction",
    "NormPreservingAdd",
    "Rotate",
    "SinkRedistribution",
    "VisualAttentionBoost",
    "When",
    "steer",
]
