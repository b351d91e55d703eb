"""What is changed at inference: directions, skipping, pruning, attention, and contrast decoding."""

from .directions import Direction
from .residual import AblateDirection, AddDirection, AffineAblate, NormPreservingAdd, Rotate, When
from .steer import steer

__all__ = [
    "AblateDirection",
    "AddDirection",
    "AffineAblate",
    "Direction",
    "NormPreservingAdd",
    "Rotate",
    "When",
    "steer",
]
