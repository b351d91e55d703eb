"""Scalars as TensorBoard's event files, written without TensorBoard: records of length, checks and one protocol buffer each.

The format: a record is its length (8 bytes), a masked CRC-32C of that (4), the message, and a masked CRC-32C of it (4). The
message is `Event{wall_time = 1: double, step = 2: int64, file_version = 3: string, summary = 5: Summary}`, and a summary is
`value = 1: {tag = 1: string, simple_value = 2: float}`.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from transformers import TrainerCallback


def _table() -> list[int]:
    rows = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        rows.append(n)
    return rows


_CRC = _table()


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum; of b"123456789" it is 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(message: bytes) -> bytes:
    """A message as it stands in the file."""
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def _number(n: int) -> bytes:
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _number(len(content)) + content


def event(step: int, scalars: Mapping[str, float], at: float) -> bytes:
    """The message of one step's scalars."""
    values = (_field(1, tag.encode()) + b"\x15" + struct.pack("<f", value) for tag, value in scalars.items())
    summary = b"".join(_field(1, value) for value in values)
    return b"\x09" + struct.pack("<d", at) + b"\x10" + _number(step) + _field(5, summary)


class EventLog(TrainerCallback):
    """Writes what the Trainer logs where TensorBoard finds it: `tensorboard --logdir <folder>`. Main process only."""

    def __init__(self, folder: str | Path):
        self.folder, self.path = Path(folder), None

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero:
            return
        if self.path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = self.folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            version = b"\x09" + struct.pack("<d", time.time()) + _field(3, b"brain.Event:2")
            self.path.write_bytes(record(version))
        scalars = {}
        for name, value in (logs or {}).items():  # as transformers names them: train/loss, eval/loss
            if isinstance(value, int | float):
                scalars[f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"] = float(value)
        with self.path.open("ab") as file:
            file.write(record(event(state.global_step, scalars, time.time())))
