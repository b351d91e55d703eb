"""What is examined: opening a VLM, its anatomy, spans, traces and attention statistics; the bundled organism."""

from .anatomy import Anatomy
from .inputs import Inputs
from .open import open_vlm
from .spans import Spans
from .trace import Trace
from .vlm import VLM

__all__ = ["VLM", "Anatomy", "Inputs", "Spans", "Trace", "open_vlm"]
