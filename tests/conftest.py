"""Settings of every test: no test asks the hub for anything, and none draws on a screen."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported by any test
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
