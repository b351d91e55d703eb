"""Readers: real pictures and published question sets as samples, one at a time."""

from .amber import Amber
from .coco import Coco
from .data import FORMATS, fingerprint, open_data, recognise
from .hallusion import HallusionBench
from .hugging_face import HuggingFaceData
from .image_folder import ImageFolder
from .json_lines import JsonLines
from .mme import Mme
from .pope import PopeQuestions
from .reader import DEFAULT_PROMPT, Reader
from .scene_data import SceneData

__all__ = [
    "DEFAULT_PROMPT",
    "FORMATS",
    "Amber",
    "Coco",
    "HallusionBench",
    "HuggingFaceData",
    "ImageFolder",
    "JsonLines",
    "Mme",
    "PopeQuestions",
    "Reader",
    "SceneData",
    "fingerprint",
    "open_data",
    "recognise",
]
