"""Requests byte by byte: what polite clients never send."""

import select
import socket


class Wire:
    """One connection; what came back so far is in ``received``."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.received = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, path: str, *headers: str) -> None:
        """The head of a POST."""
        lines = [f"POST {path} HTTP/1.1", "Host: topk", *headers]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    def answered(self, seconds: float) -> bool:
        """Whether something came within these seconds."""
        return bool(select.select([self.socket], [], [], seconds)[0])

    def read_all(self) -> bytes:
        """Everything up to the end of the connection."""
        while data := self.socket.recv(65536):
            self.received += data
        return self.received

    def status(self) -> int:
        """The answer's status, read up to the end of its head."""
        while b"\r\n\r\n" not in self.received:
            data = self.socket.recv(65536)
            if not data:
                break
            self.received += data
        return int(self.received.split(b" ", 2)[1])


def multipart(*parts: tuple[str, str | None, bytes], boundary: str = "b0undary") -> tuple[str, bytes]:
    """Content type and body of these (field, filename, content)."""
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()
