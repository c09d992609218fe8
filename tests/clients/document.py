"""docs/clients.md: its code, and a server that is overloaded at first, in front of a real one."""

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import orjson

from app.api.problems import problem
from app.errors import Overloaded
from tests.conftest import REPOSITORY, Server

TEXT = (REPOSITORY / "docs" / "clients.md").read_text()
SAMPLES = TEXT[TEXT.index("## curl") :]
BLOCKS = [
    block
    for block in re.findall(r"^```(\w+)\n(.*?)^```\n(?:```text\n(.*?)^```)?", SAMPLES, re.MULTILINE | re.DOTALL)
    if not block[1].startswith("# needs")
]
_OVERLOADED = Overloaded("the answer would come too late", 0.3)


@contextmanager
def overloaded_at_first(server: Server) -> Iterator[str]:
    """The address of what refuses one request, and hands on all that come after it."""
    refused: list[str] = []

    class Front(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if not refused:
                refused.append(self.path)
                self.send_response(503)
                for name, value in _OVERLOADED.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/problem+json")
                self.end_headers()
                self.wfile.write(orjson.dumps(problem(_OVERLOADED, "0")))
                return
            behind = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            behind.request("POST", self.path, content, dict(self.headers))
            answer = behind.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            behind.close()

        def log_message(self, *_: object) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = Thread(target=front.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{front.server_port}"
        assert refused
    finally:
        front.shutdown()
        front.server_close()
        thread.join()


def code_for(code: str, address: str) -> str:
    """A block's code, asking there instead of where the document says."""
    assert "localhost:8000" in code
    return code.replace("localhost:8000", address)
