"""An https server on this machine, whose answers a test chooses, faults included."""

import contextlib
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tilemix.weights.web import Web

CERTIFICATE = Path(__file__).with_name("localhost.pem")
ETAG = '"v1"'


class Server:
    """`routes` maps a path to a function of the handler; `requests` are (method, path, headers), as they came."""

    def __init__(self):
        self.routes = {}
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append((self.command, self.path, dict(self.headers.items())))
                route = outer.routes.get(self.path.partition("?")[0])
                with contextlib.suppress(ConnectionError, ssl.SSLError):  # the client may go at any moment
                    route(self) if route else answer(b"not here", status=404)(self)

            do_HEAD = do_GET  # noqa: N815  the base class spells it so

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_):
                pass  # a client that does not trust the certificate, or was killed

        self.server = Quiet(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        # The handshake is made in the request's own thread: one slow client keeps no other waiting.
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"https://{self.host}"
        self.other_host = f"localhost:{self.port}"  # the same server by another name
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def web(self, **changes):
        """The rules that let a client come here, and nowhere else."""
        usual = {
            "hosts": frozenset({self.host}),
            "context": trust(),
            "pause_seconds": 0.0,
            "timeout_seconds": 5.0,
        }
        return Web(**usual | changes)


def trust():
    return ssl.create_default_context(cafile=CERTIFICATE)


def answer(body=b"", *, status=200, **headers):
    """A whole answer; `content_type="text/html"` is a header."""

    def route(handler):
        handler.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"content-length": str(len(body))} | given).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return route


def serve(body, *, etag=ETAG, drops=(), pause=0.0, piece=65536):
    """A file with Range and If-Range; the n-th answer breaks off after drops[n] bytes of its body."""
    drops = list(drops)

    def route(handler):
        start = 0
        wanted = handler.headers.get("Range")
        if wanted and handler.headers.get("If-Range") == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body) > 0:
            answer(status=416)(handler)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        if etag:
            handler.send_header("ETag", etag)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        end = start + drops.pop(0) if drops else len(body)
        for at in range(start, min(end, len(body)), piece):
            handler.wfile.write(body[at : min(at + piece, end)])
            time.sleep(pause)
        handler.close_connection = True

    return route


def redirect(target, status=302):
    return answer(status=status, location=target)
