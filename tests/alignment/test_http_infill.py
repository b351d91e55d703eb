"""The endpoint: one that hangs, answers garbage, fails, trickles, refuses, and then answers; cache, cost, giving up."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chiasm.alignment.http_client import ChatEndpoint, EndpointError
from chiasm.alignment.http_infill import HttpInfill
from chiasm.alignment.infill import InfillFailed, Shown
from chiasm.alignment.masking import MaskedText, WordMasker
from chiasm.scenes.errors import UserError
from PIL import Image

MASKER = WordMasker({"colour": ("attribute", ["red", "blue"])})
TEXT = MaskedText("a red cup", tuple(MASKER.spans("a red cup")))
SHOWN = Shown(Image.new("RGB", (8, 8), "red"))


class Server:
    """An endpoint that behaves as told, one word for each request; the last word is repeated."""

    def __init__(self, *script, fills=(("blue",),)):
        self.script, self.fills, self.seen = list(script), fills, []
        outer, self.stop = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((body, dict(self.headers)))
                do = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                with suppress(OSError):  # the client is gone
                    outer.behave(self, do)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.http.shutdown()
        self.http.server_close()

    def behave(self, handler, do):
        if do == "hang":
            self.stop.wait(5)
            return
        if do == "close":
            handler.connection.close()
            return
        handler.send_response(do if isinstance(do, int) else 200)
        handler.end_headers()
        if do == "trickle":
            for _ in range(100):
                handler.wfile.write(b" ")
                if self.stop.wait(0.05):
                    return
        content = json.dumps({"fills": self.fills})
        content = {"garbage text": "sorry, I cannot", "wrong number": '{"fills": [["a", "b"]]}', "block": f"Sure:\n```json\n{content}\n```"}.get(do, content)  # fmt: skip
        usage = {"prompt_tokens": 1000, "completion_tokens": 100}
        answer = json.dumps({"choices": [{"message": {"content": content}}], "usage": usage})
        garbage = {"garbage": "<html>", "other json": "[1]", "no text": '{"choices": [{"message": {"content": null}}]}'}
        handler.wfile.write(garbage.get(do, answer).encode())


def backend(server, **options):
    waits = []
    settings = {"timeout": 0.3, "retries": 2, "sleep": waits.append} | options
    made = HttpInfill(ChatEndpoint(server.url, "m", "CHIASM_TEST_KEY", **settings), MASKER)
    return made, waits


def fill(made):
    return made.fill([TEXT], [SHOWN], ["what is it ?"], 2, 0)[0]


@pytest.mark.parametrize(
    "fault",
    ["hang", "trickle", "close", "garbage", "other json", "no text", "garbage text", "wrong number", 500, 503, 429],
)
def test_every_fault_is_tried_again_and_then_succeeds(fault):
    with Server(fault, "answer") as server:
        made, waits = backend(server)
        began = time.monotonic()
        assert [f.text for f in fill(made)] == ["a blue cup"] and waits == [1.0] and len(server.seen) == 2
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("fault", ["hang", "garbage", 500])
def test_faults_without_end_are_one_failed_text_and_then_one_line(fault):
    with Server(fault) as server:
        made, waits = backend(server, timeout=0.1, give_up_after=2)
        failed = fill(made)
        assert isinstance(failed, InfillFailed) and failed.code == "backend_failed"
        assert waits == [1.0, 2.0] and len(server.seen) == 3  # each wait is twice the one before
        with pytest.raises(UserError, match="no usable answer to 2 requests in a row") as told:
            fill(made)
        assert "\n" not in str(told.value)


def test_a_refusal_is_not_tried_again(monkeypatch):
    monkeypatch.setenv("CHIASM_TEST_KEY", "secret")
    with Server(401) as server:
        made, _ = backend(server)
        with pytest.raises(UserError, match="refuses the request") as told:
            fill(made)
        assert "401" in str(told.value) and "secret" not in str(told.value) and len(server.seen) == 1
        assert server.seen[0][1]["Authorization"] == "Bearer secret"


def test_what_is_asked(monkeypatch):
    monkeypatch.delenv("CHIASM_TEST_KEY", raising=False)
    with Server("block", fills=[["blue"], ["blue"], ["red"]]) as server:
        made, _ = backend(server)
        assert [f.strings for f in fill(made)] == [("blue",)]  # of the first two, once
        body, headers = server.seen[0]
        text, picture = body["messages"][0]["content"]
        assert "a [MASK] cup" in text["text"] and picture["image_url"]["url"].startswith("data:image/png;base64,")
        assert body["model"] == "m" and body["temperature"] == 0 and "Authorization" not in headers


def test_answers_are_kept_and_never_paid_twice(tmp_path):
    with Server("garbage", "answer") as server:
        first, _ = backend(server, cache=tmp_path)
        again, _ = backend(server, cache=tmp_path)
        assert fill(first) == fill(again) and len(server.seen) == 2
    assert fill(backend(server, cache=tmp_path)[0])  # the server is gone
    server.url += "/other"
    with pytest.raises(EndpointError):
        ChatEndpoint(server.url, "m", timeout=0.2, retries=0, cache=tmp_path).ask("x", SHOWN.image, 0, str)


def test_the_cost_cap_holds_over_restarts(tmp_path):
    prices = {"prices": (1.0, 10.0), "cache": tmp_path}  # a request costs 0.001 + 0.001
    with Server("garbage text", "answer") as server:
        made, _ = backend(server, max_cost=0.003, **prices)
        assert fill(made) and made.endpoint.cost == pytest.approx(0.004)  # a useless answer is paid for too
        again, _ = backend(server, max_cost=0.003, **prices)
        assert fill(again)  # from the cache: costs nothing
        with pytest.raises(UserError, match=r"cost cap of 0.003 is reached \(0.004 spent"):
            again.fill([TEXT], [SHOWN], ["another question"], 2, 0)
        assert len(server.seen) == 2


def test_captions_and_settings():
    with Server("garbage") as server:
        made, _ = backend(server, retries=0)
        assert made.caption([SHOWN], ["say"], 0) == [""]
    for options, words in (
        ({"url": "ftp://x"}, "http://"),
        ({"timeout": 0}, "above 0"),
        ({"max_cost": 1.0}, "needs prices"),
    ):
        with pytest.raises(UserError, match=words):
            ChatEndpoint(**{"url": "http://x/v1", "model": "m"} | options)
