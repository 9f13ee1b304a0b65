"""Model hub over HTTP: lists the files of a repository, and reads them from any byte on.

Speaks the part of huggingface.co's API that a download needs, by Python's own client, so that it
costs no dependency, and so that a part of 48 GB goes on after an interruption of the program
(`huggingface_hub` begins it anew). `HF_ENDPOINT` names a mirror, `HF_TOKEN` a token for gated
repositories; else that of `hf auth login` counts.
"""

import json
import os
import re
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from hybridmoe.errors import ConfigError, DownloadError
from hybridmoe.gguf.cursor import printable

__all__ = ["NETWORK_ERRORS", "Hub", "HubFile"]

NETWORK_ERRORS = (OSError, HTTPException)  # that a second try may mend

_TIMEOUT_S = 30.0
_MAX_LIST_BYTES = 64 << 20
_MAX_PAGES = 1000
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubFile(NamedTuple):
    """File of a repository."""

    path: str  # relative, without `..`
    num_bytes: int
    sha256: str | None  # of large files


class Hub:
    """Repositories of one hub."""

    def __init__(self) -> None:
        """Take endpoint and token from the environment. Errors: ConfigError."""
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        if urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ConfigError(f"HF_ENDPOINT={self.endpoint!r:.200}: expected an http or https URL")
        self._token = _token()
        self._opener = build_opener(_Redirects())

    def files(self, repo: str) -> list[HubFile]:
        """List all files of a repository. Errors: ConfigError, DownloadError."""
        if not _REPO.fullmatch(repo) or ".." in repo:
            raise ConfigError(f"{printable(repo, 120)}: expected a repository as OWNER/NAME")
        url: str | None = f"{self.endpoint}/api/models/{repo}/tree/main?recursive=true"
        found = []
        for _ in range(_MAX_PAGES):
            if url is None:
                break
            try:
                with self._open(url, repo) as response:
                    entries = json.loads(response.read(_MAX_LIST_BYTES))
                    url = _next_page(response.headers.get("Link", ""), url)
                found += [_file(entry) for entry in entries if entry["type"] == "file"]
            except NETWORK_ERRORS as error:
                raise self.unreachable(error) from None
            except (ValueError, KeyError, TypeError):
                raise DownloadError(
                    f"{self.endpoint}: the list of {repo} is not readable"
                ) from None
        return found

    def open(self, repo: str, path: str, start: int = 0) -> HTTPResponse:
        """Open a file from a byte on. Status 200 instead of 206: from the first one.

        Errors: NETWORK_ERRORS, DownloadError.
        """
        ranges = {"Range": f"bytes={start}-"} if start else {}
        return self._open(f"{self.endpoint}/{repo}/resolve/main/{quote(path)}", repo, ranges)

    def unreachable(self, error: Exception) -> DownloadError:
        """Explain an error of the network in one line."""
        reason: object = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, OSError) and reason.strerror:
            reason = reason.strerror
        host = urlsplit(self.endpoint).netloc
        return DownloadError(
            f"{printable(host, 120)} cannot be reached ({printable(str(reason), 200)}): is this"
            " machine on the network? Files that are copied into the models folder work, too"
        )

    def _open(self, url: str, repo: str, headers: dict[str, str] | None = None) -> HTTPResponse:
        request = Request(url, headers={"User-Agent": "hybridmoe", **(headers or {})})
        if self._token:
            # Not sent on to another host.
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            response: HTTPResponse = self._opener.open(request, timeout=_TIMEOUT_S)
        except HTTPError as error:
            with error:
                if error.code >= 500 or error.code in (408, 429):
                    raise
            raise DownloadError(self._refusal(repo, error.code)) from None
        return response

    def _refusal(self, repo: str, code: int) -> str:
        if code in (401, 403):
            token = "the token was not accepted" if self._token else "HF_TOKEN is not set"
            return f"{repo}: no such repository, or not for everyone ({token}; status {code})"
        if code == 404:
            return f"{repo}: no such repository or file on {self.endpoint}"
        return f"{repo}: {self.endpoint} answered with status {code}"


class _Redirects(HTTPRedirectHandler):
    """Follows redirects over HTTP and HTTPS, never from HTTPS to HTTP."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"{printable(newurl, 200)}: a redirect away from https")
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        authorization = req.get_header("Authorization")
        if new is not None and authorization and _host(newurl) == _host(req.full_url):
            new.add_unredirected_header("Authorization", authorization)
        return new


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _file(entry: dict[str, Any]) -> HubFile:
    path, size = str(entry["path"]), int(entry["size"])
    if size < 0 or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(path)
    sha256 = str((entry.get("lfs") or {}).get("oid", ""))
    return HubFile(path, size, sha256 if _SHA256.fullmatch(sha256) else None)


def _next_page(link: str, url: str) -> str | None:
    match = re.search(r'<([^>]+)>\s*;\s*rel="next"', link)
    if match is None:
        return None
    following: str = urljoin(url, match[1])
    if _host(following) != _host(url):
        raise ValueError(following)
    return following


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        try:
            home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
            token = Path(home, "token").read_text(encoding="utf-8")
        except (OSError, RuntimeError, ValueError):
            return ""
    return token.strip() if token.strip().isprintable() else ""
