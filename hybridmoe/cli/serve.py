"""`hybridmoe serve`: the HTTP endpoint, which listens while the model still loads."""

import signal
import socket
import sys
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

import hybridmoe
from hybridmoe.cli.loading import placement_lines
from hybridmoe.cli.options import (
    SectionedCommand,
    load_options,
    load_options_of,
    model_argument,
)
from hybridmoe.cli.render import ProgressBar
from hybridmoe.cli.signals import ENDING, SignalCounter, Terminated, handled
from hybridmoe.errors import ConfigError
from hybridmoe.placement.options import LoadOptions

__all__ = ["listen", "serve_command"]

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@click.command("serve", cls=SectionedCommand)
@model_argument
@click.option("--host", default="127.0.0.1", help="Address to listen on [default: 127.0.0.1]")
@click.option(
    "--port",
    default=8000,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on; 0 = any free one [default: 8000]",
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    help="Require this API key; repeatable [default: none required]",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Require one of the API keys in FILE, one a line; hides them from the process list",
)
@click.option(
    "--model-name",
    "names",
    multiple=True,
    metavar="NAME",
    help="Model name in the API; repeatable [default: the file's name]",
)
@click.option(
    "--cors",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Allow requests from pages of this origin, or '*'; repeatable [default: none]",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Accept this Host header without an API key, or '*'; repeatable"
    " [default: addresses and this machine's names]",
)
@load_options()
def serve_command(model: Path | None, host: str, port: int, **options: Any) -> None:
    """Serve MODEL.gguf, or the embedded model, over HTTP.

    Compatible with OpenAI's and Anthropic's clients; / is a chat page, /docs the API reference.
    """
    loading = load_options_of(options)
    from hybridmoe.serve import ServeConfig, Server, Service  # takes seconds

    keys = (*options["api_keys"], *_read_keys(options["api_key_file"]))
    is_local = _is_loopback(host)
    names = options["names"] or (_model_name(model),)
    hosts = (*_LOOPBACK_NAMES, host, *options["allowed_hosts"])
    hosts += () if is_local else _own_names()
    config = ServeConfig(
        model_name=names[0],
        model_aliases=tuple(names[1:]),
        api_keys=keys,
        cors_origins=options["cors_origins"],
        allowed_hosts=() if keys else tuple(name.lower() for name in hosts),
    )
    listener = listen(host, port)
    if not is_local and not keys:
        _say(f"warning: {host} is reachable from other machines, and no --api-key is set")
    service = Service(config)
    server = Server(service)
    loader = _Loader(service, server, model, loading)
    ender = _Ender(server)
    with handled(ENDING, ender):
        loader.start()
        url = f"http://{_shown(host)}:{listener.getsockname()[1]}"
        _say(f"listening at {url} (the model is loading)")
        try:
            server.run(sockets=[listener])
        finally:
            loader.close()
    if loader.error is not None:
        raise loader.error
    ender.raise_again()


class _Ender(SignalCounter):
    """Ends the server in order at the first signal, at once at a second Ctrl-C."""

    def __init__(self, server: Any) -> None:
        super().__init__()
        self._server = server

    def __call__(self, number: int) -> None:
        super().__call__(number)
        self._server.stop(force=self.num_interrupts > 1)

    def raise_again(self) -> None:
        """End the command as the first signal does by default; call after all is closed."""
        if self.arrived:
            first = self.arrived[0]
            raise KeyboardInterrupt if first == signal.SIGINT else Terminated(first)


class _Ended(Exception):
    """Loading was cancelled."""


class _Loader(threading.Thread):
    """Thread that opens the model beside the server; if that fails, the server ends."""

    def __init__(self, service: Any, server: Any, model: Path | None, options: LoadOptions) -> None:
        super().__init__(name="load", daemon=True)
        self.error: Exception | None = None
        self._service = service
        self._server = server
        self._model = model
        self._options = options
        self._llm: Any = None
        self._is_ending = False

    def run(self) -> None:
        try:
            with ProgressBar() as bar:

                def progress(step: hybridmoe.Progress) -> None:
                    if self._is_ending:
                        raise _Ended
                    self._service.load_progress = step.done / max(1, step.total)
                    bar(step)

                self._llm = hybridmoe.load(self._model, self._options, progress=progress)
            if self._is_ending:
                return
            self._service.attach(self._llm)
            for line in placement_lines(self._llm):
                _say(line)
            _say(f"ready: {self._service.config.model_name}; {self._llm.engine.kv_plan}")
        except _Ended:
            pass
        except Exception as error:
            self.error = error
            self._service.fail(str(error))
            self._server.stop()

    def close(self) -> None:
        """Close the model, or cancel its loading: no thread may outlive the interpreter."""
        self._is_ending = True
        self.join()
        if self._llm is not None:
            self._llm.close()


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens on the address; port 0 = any free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends each token at once; else Nagle delays some by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # before "listening at" is printed: clients may connect then
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _own_names() -> tuple[str, ...]:
    """Host names of this machine in its network."""
    name = socket.gethostname()
    label = name.partition(".")[0]
    return (name, label, f"{label}.local")


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _model_name(model: Path | None) -> str:
    return "hybridmoe-demo" if model is None else model.stem


def _read_keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} has no API key; expected one a line")
    return keys


def _say(message: str) -> None:
    print(f"hybridmoe: {message}", file=sys.stderr, flush=True)
