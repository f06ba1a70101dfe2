"""A stand-in for the local Cog server, which behaves as coglet 0.23.1 was seen to.

One prediction at a time, 409 to a second; a failure is a 200; a dead worker is UNHEALTHY and answers 409 for
ever; a caller that hangs up cancels; webhooks carry a bearer token and are not repeated before the end.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.studio_parts import data_uri, picture


class CogStandIn:
    """What the server does next is set on this object."""

    def __init__(self) -> None:
        self.health: str | None = None  # None: READY or BUSY, as it is
        self.refusal: dict | None = None  # the answer 422
        self.outcome: dict = {"status": "succeeded", "output": data_uri(picture())}
        self.is_deaf = False  # its worker is stopped: a cancel has no effect
        self.hangs_up = False  # the server is killed in the middle of a prediction
        self.is_cut = False  # the network between takes what is sent and brings nothing back
        self.draw_seconds = 0.0
        self.gate = threading.Event()  # predictions end when it is set
        self.gate.set()
        self.begun = threading.Event()
        self.token = "a-token-of-the-webhooks"  # noqa: S105  a test's own
        self.asked: list[tuple[str, dict]] = []  # id, body of every prediction that was begun
        self.canceled: list[str] = []
        self.url = ""
        self._slot = threading.Lock()

    def state(self) -> str:
        return self.health or ("BUSY" if self._slot.locked() else "READY")

    def predict(self, identity: str, body: dict) -> tuple[int, dict] | None:
        if self.state() != "READY" or not self._slot.acquire(blocking=False):
            return 409, {"error": "At capacity - all prediction slots busy"}
        try:
            if self.refusal is not None:
                return 422, self.refusal
            self.asked.append((identity, body))
            self._send(body, {"id": identity, "status": "processing", "logs": "", "metrics": {}})
            self._send(body, {"id": identity, "status": "processing", "logs": "  4%|#| 1/25 denoise\n"})
            self.begun.set()
            time.sleep(self.draw_seconds)
            self.gate.wait(20)
            if self.hangs_up:
                return None
            if identity in self.canceled:
                return 200, {"id": identity, "status": "canceled", "logs": "", "metrics": {}}
            return 200, {
                "id": identity,
                "logs": "",
                "metrics": {"seed": body["input"].get("seed")},
                **self.outcome,
            }
        finally:
            self._slot.release()

    def cancel(self, identity: str) -> tuple[int, dict]:
        if not any(asked == identity for asked, _ in self.asked):
            return 404, {}
        if not self.is_deaf:
            self.canceled.append(identity)
            self.gate.set()
        return 200, {}

    def _send(self, body: dict, payload: dict) -> None:
        if "webhook" not in body:
            return
        event = "logs" if payload.get("logs") else "start"
        if event in body["webhook_events_filter"]:
            with contextlib.suppress(httpx.HTTPError):  # one try, whatever comes of it
                headers = {"Authorization": f"Bearer {self.token}"}
                httpx.post(body["webhook"], json=payload, headers=headers, trust_env=False)


@contextlib.contextmanager
def run_cog_stand_in() -> Iterator[CogStandIn]:
    """Run a stand-in on a free port."""
    stand_in = CogStandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, {"status": stand_in.state()})

        def do_PUT(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = stand_in.predict(self.path.removeprefix("/predictions/"), body)
            if answer is None:
                self.close_connection = True
                return
            self.answer(*answer)

        def do_POST(self):
            self.answer(*stand_in.cancel(self.path.split("/")[2]))

        def answer(self, status, body):
            while stand_in.is_cut:
                time.sleep(0.02)
            data = json.dumps(body).encode()
            with contextlib.suppress(ConnectionError):  # the caller may have hung up
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        stand_in.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stand_in
        finally:
            stand_in.gate.set()
            listener.shutdown()
            thread.join()
