"""A chat endpoint in OpenAI's manner, over HTTP: time limits, retries that wait longer each time, a cache, and a cap on cost."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..probes.files import write_whole
from ..scenes.errors import UserError

_RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_MOST = 1 << 22  # bytes of a response that are read; an endpoint that sends more sends no answer to this


class EndpointError(Exception):
    """One request had no usable answer, after all retries."""


@dataclass
class ChatEndpoint:
    """url: of the endpoint up to "/v1" (…/chat/completions is added). model: its name there. key_variable: the environment variable
    whose value is sent as the bearer token; not set: none is sent.

    timeout: seconds for a whole answer. retries: after the first attempt, waiting wait, 2 wait, 4 wait … seconds. cache: a folder of
    responses by the content of the request, so that what was paid for is never asked again. prices: of a million prompt and
    completion tokens; max_cost: in the same money; no request is sent once it is spent. give_up_after: requests in a row without an
    answer that end the job.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 4
    wait: float = 1.0
    cache: Path | None = None
    prices: tuple[float, float] = (0.0, 0.0)
    max_cost: float | None = None
    give_up_after: int = 5
    sleep: Callable[[float], None] = time.sleep
    cost: float = field(default=0.0, init=False)
    requests: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"endpoint {self.url!r} must begin with http:// or https://, e.g. http://127.0.0.1:8000/v1")
        if self.timeout <= 0 or self.retries < 0:
            raise UserError(f"timeout {self.timeout} must be above 0 and retries {self.retries} at least 0")
        if self.max_cost is not None and not any(self.prices):
            raise UserError(
                f"max_cost {self.max_cost} needs prices: give those of a million prompt and completion tokens"
            )
        if self.cache is not None and (spent := self.cache / "spent.json").is_file():
            self.cost = float(json.loads(spent.read_text())["cost"])  # of the job before it was stopped

    def ask(self, prompt: str, image: Image.Image, seed: int, accept: Callable[[str], Any]) -> Any:
        """What `accept` makes of the answer's text; an answer for which it raises ValueError is asked for again.

        Raises EndpointError where no attempt had a usable answer, UserError where going on makes no sense: the cost cap is
        reached, the endpoint refuses the request, or nothing has been answered for `give_up_after` requests.
        """
        body = {
            "model": self.model, "temperature": 0, "seed": seed % (1 << 31), "max_tokens": 512,
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": _data_url(image)}},
            ]}],
        }  # fmt: skip
        content = json.dumps(body, sort_keys=True).encode()
        kept = self.cache and self.cache / f"{hashlib.sha256(self.url.encode() + content).hexdigest()[:40]}.json"
        if kept and kept.is_file():
            return accept(json.loads(kept.read_text(encoding="utf-8"))["text"])
        reason = ""
        for attempt in range(self.retries + 1):
            self._check_cost()
            if attempt:
                self.sleep(self.wait * 2 ** (attempt - 1))
            try:
                text = self._once(content)
                found = accept(text)
            except UserError:  # a ValueError as well
                raise
            except (EndpointError, ValueError) as error:
                reason = str(error)
                continue
            self._failed = 0
            if kept:
                write_whole(kept, json.dumps({"text": text}).encode())
            return found
        self._failed += 1
        if self._failed >= self.give_up_after:
            raise UserError(
                f"endpoint {self.url!r} gave no usable answer to {self._failed} requests in a row (last: {reason}): mend it, then "
                "call again to go on from here"
            )
        raise EndpointError(reason)

    def _check_cost(self) -> None:
        if self.max_cost is not None and self.cost >= self.max_cost:
            raise UserError(
                f"the cost cap of {self.max_cost:g} is reached ({self.cost:.4g} spent, {self.requests} requests now): raise it and "
                "call again to go on from here"
            )

    def _once(self, content: bytes) -> str:
        """The text of one answer."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", content, headers)
        self.requests += 1
        until = time.monotonic() + self.timeout
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                raw = b""
                while piece := response.read1(1 << 16):  # a server that trickles never lets the socket's own limit pass
                    raw += piece
                    if len(raw) > _MOST:
                        raise EndpointError(f"more than {_MOST >> 20} MiB in answer")
                    if time.monotonic() > until:
                        raise EndpointError(f"no whole answer within {self.timeout:g} s")
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(300).decode(errors="replace").split())
            if error.code not in _RETRIED:
                raise UserError(f"endpoint {self.url!r} refuses the request ({error.code}: {said[:160]}): check --endpoint, the "
                                f"model's name {self.model!r} and the key in {self.key_variable}") from error  # fmt: skip
            raise EndpointError(f"status {error.code}") from error
        except (OSError, http.client.HTTPException) as error:  # a time limit is an OSError too
            raise EndpointError(" ".join(str(error).split()) or type(error).__name__) from error
        return self._read(raw)

    def _read(self, raw: bytes) -> str:
        try:
            answer = json.loads(raw)
            text = answer["choices"][0]["message"]["content"]
            usage = answer.get("usage") or {}
            spent = [float(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(f"an answer that is no chat completion ({raw[:60]!r})") from error
        if not isinstance(text, str):
            raise EndpointError("an answer without text")
        self.cost += sum(n * price for n, price in zip(spent, self.prices, strict=True)) / 1e6
        if self.cache is not None and any(self.prices):
            write_whole(self.cache / "spent.json", json.dumps({"cost": self.cost}).encode())
        return text


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
