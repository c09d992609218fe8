"""A small real HTTP server that speaks as topk does, and whose every answer is known."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

LABELS = ("cat", "dog", "bird", "fish", "cow", "hen")
INFO = {
    "model": "known",
    "weights": "w",
    "digest": "sha256:00",
    "engine": "torch",
    "device": "cpu",
    "precision": "float32",
    "preprocessing": {"resize": 256, "crop": 224, "interpolation": "bilinear"},
    "warning": None,
    "classes": len(LABELS),
    "decode": {"fast": True},
    "limits": {"request_timeout_ms": 4321},
}
Problem = tuple[int, dict[str, Any], dict[str, str]]


@dataclass
class Service:
    """``first`` maps an image to the class it is answered with; ``problem`` may answer a request otherwise.

    ``images`` are those that came, without the first one, that asks for all classes.
    """

    first: Callable[[bytes], int] = lambda content: content[0] % len(LABELS)
    problem: Callable[[bytes], Problem | None] = lambda content: None
    info: dict[str, Any] = field(default_factory=lambda: dict(INFO))
    images: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*((200, service.info, {}) if self.path == "/v1/info" else (404, {}, {})))

            def do_POST(self) -> None:
                url = urlsplit(self.path)
                assert url.path == "/v1/predict"
                k = int(parse_qs(url.query)["top_k"][0])
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if k < len(LABELS):
                    service.headers.append(dict(self.headers))
                    service.images.append(content)
                self._answer(*(service.problem(content) or (200, service.prediction(content, k), {})))

            def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may leave
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def prediction(self, content: bytes, k: int) -> dict[str, Any]:
        """The class that ``first`` names, then the others in order."""
        best = self.first(content)
        ids = [best, *(i for i in range(len(LABELS)) if i != best)][:k]
        predictions = [
            {"class_id": i, "wnid": None, "label": LABELS[i], "score": 0.75 if n == 0 else 0.05}
            for n, i in enumerate(ids)
        ]
        return {"model": self.info["model"], "weights": self.info["weights"], "predictions": predictions}
