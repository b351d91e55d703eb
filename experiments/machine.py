"""What a result depends on besides the code: versions of the libraries, and what the process took."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "chiasm", "torch", "torchvision", "transformers", "tokenizers", "accelerate", "peft", "datasets", "safetensors",
    "torchmetrics", "numpy", "scipy", "pandas", "pyarrow", "pillow", "matplotlib", "plotly",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Versions by name, Python and the platform included; without importing any of them."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def peak_memory_mb() -> dict[str, float]:
    """The largest memory this process has had, in MiB: "process" (resident), and "cuda" where torch has used it."""
    peaks = {"process": round(_peak_resident_mb(), 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks["cuda"] = round(
            max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 2**20, 1
        )
    return peaks


def _peak_resident_mb() -> float:
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss starts at what the parent process had when it started this one
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, others KiB
