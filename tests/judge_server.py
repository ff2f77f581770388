"""A small server with OpenAI's chat completions on this machine, for tests of what asks a judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str], str]


class Server:
    """What it says, and what it was asked.

    Attributes:
        answer: the prompt to the reply.
        faults: sent first, one a call: (status, body, headers).
        asked: bodies of the calls, in order.
        keys: what the calls had as authorization.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.faults: list[tuple[int, bytes, dict[str, str]]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def fail(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append((status, content, named))


@contextmanager
def judge_server(answer: Answer) -> Iterator[Server]:
    server = Server(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.asked.append(body)
                server.keys.append(self.headers.get("Authorization"))
                fault = server.faults.pop(0) if server.faults else None
            if fault is None:
                text = server.answer(body["messages"][0]["content"])
                usage = {"prompt_tokens": 10, "completion_tokens": 2}
                found = self.path == "/v1/chat/completions"
                content = {"choices": [{"message": {"content": text}}], "usage": usage}
                fault = (200 if found else 404, json.dumps(content).encode(), {})
            status, content_bytes, headers = fault
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content_bytes)))
            self.end_headers()
            self.wfile.write(content_bytes)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
