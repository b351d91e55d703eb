"""What is changed by training: preference pairs, tuning, learners, distillation."""

import os
from importlib import import_module

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported: nothing is reported

_HOMES = {
    "VisualDPOConfig": "config",
    "VisualDPOTrainer": "trainer",
    "VisualPreferenceCollator": "collator",
    "language_lora": "adapters",
    "LoRRA": "learners",
    "Wings": "wings",
    "WingsConfig": "wings",
    "Distillation": "distillation",
    "DistillationConfig": "distillation",
    "LearningConfig": "learning",
    "learn": "learning",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    """The names above, imported when they are asked for: TRL takes seconds to import, and not every user of this package trains."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
