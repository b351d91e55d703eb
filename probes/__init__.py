"""What is measured: one instrument a file, and the one-pass `measure`."""

from .attention_shift import AttentionShift
from .implicit_alignment import ImplicitAlignment
from .measure import Measurement, measure
from .probe import Probe

__all__ = ["AttentionShift", "ImplicitAlignment", "Measurement", "Probe", "measure"]
