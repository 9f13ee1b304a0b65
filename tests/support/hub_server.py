"""Stand-in for a model hub on the loopback interface: lists of files, redirects, ranges, faults."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

REPO = "me/Tiny-GGUF"


@dataclass
class HubServer:
    """Files of one repository, the requests that came, and faults to come."""

    files: dict[str, bytes]
    url: str = ""
    cdn: str = ""  # another server, which files are redirected to
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # path, range, authorization
    cuts: list[int] = field(default_factory=list)  # bytes after which a file's connection ends
    has_ranges: bool = True
    status: int = 200
    wrong_sums: bool = False

    def tree(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = [{"type": "directory", "path": "Q4_K", "oid": "0"}]
        for path, data in self.files.items():
            oid = hashlib.sha256(data + b"x" * self.wrong_sums).hexdigest()
            lfs = {"oid": oid, "size": len(data), "pointerSize": 1}
            entries.append({"type": "file", "path": path, "size": len(data), "lfs": lfs})
        return entries


@contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[HubServer]:
    """Serve `files`, the list of them in two pages, and each file by a redirect."""
    hub = HubServer(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            ranges = self.headers.get("Range", "")
            hub.requests.append((self.path, ranges, self.headers.get("Authorization", "")))
            if hub.status != 200:
                self._send(hub.status, b"no")
            elif path == f"/api/models/{REPO}/tree/main":
                tree = hub.tree()
                half = len(tree) // 2
                if "cursor" in query:
                    self._send(200, json.dumps(tree[half:]).encode())
                else:
                    link = f'<{hub.url}{path}?cursor=1>; rel="next"'
                    self._send(200, json.dumps(tree[:half]).encode(), Link=link)
            elif match := re.fullmatch(f"/{REPO}/resolve/main/(.*)", path):
                self._send(302, b"", Location=f"{hub.cdn}/cdn/{match[1]}")
            elif path.startswith("/cdn/"):
                self._send_file(hub.files[unquote(path[5:])], ranges)
            else:
                self._send(404, b"")

        def _send_file(self, data: bytes, ranges: str) -> None:
            start = int(ranges[6:-1]) if ranges and hub.has_ranges else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = start + hub.cuts.pop(0) if hub.cuts else len(data)
            self.wfile.write(data[start:end])
            self.close_connection = True

        def _send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
