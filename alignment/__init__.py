"""What is changed by training: preference pairs, tuning, learners, distillation."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported: nothing is reported
