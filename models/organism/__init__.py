"""The bundled small VLM family: trained, not random; the default of every command.

Light to import. Growing and measuring are in `.grow` and `.verify`, the dials in `.recipe`.
"""

from __future__ import annotations

from .family import MEMBERS, load_growth, load_organism

__all__ = ["MEMBERS", "load_growth", "load_organism"]
