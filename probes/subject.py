"""What a measurement is of, in words and hashes for a run's manifest."""

from __future__ import annotations

from typing import Any


def model_facts(vlm) -> dict[str, Any]:
    """Name, revision, hash of the weights, family, number of parameters, dtype and device, as JSON values."""
    return {
        "name": vlm.name,
        "revision": vlm.revision,
        "weights": vlm.fingerprint(),
        "family": vlm.anatomy.family,
        "parameters": vlm.n_parameters,
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "device": str(vlm.device),
    }


def data_facts(data) -> dict[str, Any]:
    """What the data are called, their fingerprint, the number of items where it is known, and the limit."""
    called = getattr(data.samples, "called", None)
    name = called() if called else type(data.samples).__name__
    return {"name": name, "fingerprint": data.fingerprint(), "items": data.total, "limit": data.limit}
