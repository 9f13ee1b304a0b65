"""`hybridmoe serve`: the HTTP endpoint, which listens while the model still loads."""

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridmoe.cli.duration import time_option
from hybridmoe.cli.listener import (
    LOOPBACK_NAMES,
    UNIX,
    is_local,
    listening,
    network_url,
    own_names,
    url_of,
)
from hybridmoe.cli.options import (
    SectionedCommand,
    load_options,
    load_options_of,
    model_argument,
)
from hybridmoe.cli.ranks import has_served_experts
from hybridmoe.cli.server_log import ServerLog, notify_supervisor
from hybridmoe.cli.signals import ENDING, SignalCounter, Terminated, handled
from hybridmoe.cli.thinking import thinking_of, thinking_options
from hybridmoe.errors import ConfigError

if TYPE_CHECKING:
    from hybridmoe.cli.served_files import ServedFiles
    from hybridmoe.serve import ModelPool, ServeConfig, Server

__all__ = ["serve_command"]


@click.command("serve", cls=SectionedCommand)
@model_argument
@click.option(
    "--model",
    "pairs",
    multiple=True,
    metavar="NAME=FILE",
    help="Serve FILE too, as NAME; repeatable. Models that do not fit together take turns",
)
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Address to listen on, or unix:/path of a socket [default: 127.0.0.1]",
)
@click.option(
    "--port",
    default=8000,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on; 0 = any free one [default: 8000]",
)
@click.option(
    "--socket-mode",
    default="600",
    metavar="OCTAL",
    help="Permission bits of the socket of unix:/path [default: 600]",
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
@click.option(
    "--max-loaded",
    type=click.IntRange(min=1),
    metavar="N",
    help="Models loaded at the same time, at most [default: as many as fit]",
)
@click.option(
    "--on-unloaded",
    type=click.Choice(("hold", "refuse")),
    default="hold",
    help="Requests for a model that is not loaded: wait for it, or get 503 [default: hold]",
)
@time_option("--hold", "hold_s", default="10m", help="Longest wait for a model that is not loaded")
@time_option(
    "--idle-unload",
    "idle_unload_s",
    help="Unload a model that was not used for so long; the next request loads it",
)
@time_option(
    "--drain",
    "drain_s",
    default="5s",
    help="Time that running requests get to end after SIGTERM; 0: none",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    help="Form of the log on standard error [default: text]",
)
@click.option(
    "--log-prefix",
    is_flag=True,
    help="Log how much of each prompt was cached, and a few tokens of text where it differs from"
    " earlier ones",
)
@thinking_options
@click.option("--quiet", is_flag=True, help="Log no line for each request")
@load_options()
def serve_command(model: Path | None, host: str, port: int, **options: Any) -> None:
    """Serve MODEL.gguf, or the embedded model, over HTTP.

    Compatible with OpenAI's and Anthropic's clients; / is a chat page, /docs the API reference.
    """
    from hybridmoe.cli.served_files import ServedFiles, named_files  # imports numpy

    loading = load_options_of(options)
    files = named_files(model, options["names"], options["pairs"])
    if loading.expert_parallel:
        _check_alone(files, options)
    if has_served_experts(model, loading):
        return
    mode = _mode(options["socket_mode"])
    log = ServerLog(is_json=options["log_format"] == "json", is_quiet=options["quiet"])
    from hybridmoe.serve import PrefixLog, ServeConfig, Server, Service  # takes seconds
    from hybridmoe.serve.api_keys import read_api_keys

    key_file = options["api_key_file"]
    file_keys = () if key_file is None else read_api_keys(key_file, "--api-key-file")
    keys = (*options["api_keys"], *file_keys)
    config = ServeConfig(
        model_name=next(iter(files)),
        model_aliases=tuple(options["names"][1:]),
        api_keys=keys,
        cors_origins=options["cors_origins"],
        thinking=thinking_of(options),
        allowed_hosts=_allowed_hosts(host, options["allowed_hosts"], has_keys=bool(keys)),
    )
    failures: list[Exception] = []

    def on_first_failure(error: Exception) -> None:
        failures.append(error)
        server.stop()

    served = ServedFiles(files, loading, options["max_loaded"], log.say, config.thinking)
    models = _model_pool(served, config, options, log, on_first_failure)
    server = Server(
        Service(config, models, PrefixLog(log.say) if options["log_prefix"] else None),
        None if log.is_quiet else log.request,
        is_logging_ready=True,
    )
    ender = _Ender(server, options["drain_s"])
    with listening(host, port, mode) as listener:
        if not is_local(host) and not keys:
            log.say(f"warning: {host} is reachable from other machines, and no --api-key is set")
        with handled(ENDING, ender):
            served.url = url_of(host, listener)
            models.start()
            also = network_url(host, listener)
            where = f"in the network at {also}; " if also else ""
            log.say(f"listening at {served.url} ({where}the model is loading)")
            try:
                server.run(sockets=[listener])
            finally:
                models.close()
    if failures:
        raise failures[0]
    ender.raise_again()


def _model_pool(
    served: "ServedFiles",
    config: "ServeConfig",
    options: Mapping[str, Any],
    log: ServerLog,
    on_first_failure: Callable[[Exception], None],
) -> "ModelPool":
    from hybridmoe.serve import ModelPool, ModelSource, ScheduleRules, patient

    def source(name: str) -> ModelSource:
        aliases = config.model_aliases if name == config.model_name else ()
        return ModelSource(
            name=name,
            aliases=aliases,
            load=lambda progress: served.load(name, progress),
            announce=lambda llm: served.announce(name, llm),
        )

    refuses = options["on_unloaded"] == "refuse"
    rules = ScheduleRules(fit=served.fit, idle_unload_s=options["idle_unload_s"])
    return ModelPool(
        [source(name) for name in served.names],
        patient(rules, config.retry_after_s) if refuses else rules,
        hold_s=None if refuses else options["hold_s"],
        max_held=config.max_preparing,
        retry_after_s=config.retry_after_s,
        report=log.say,
        on_first_failure=on_first_failure,
    )


class _Ender(SignalCounter):
    """Ends the server in order at the first signal; after SIGTERM running requests end first.

    A second signal ends them, too; a second Ctrl-C does not wait for clients.
    """

    def __init__(self, server: "Server", drain_s: float) -> None:
        super().__init__()
        self._server = server
        self._drain_s = drain_s

    def __call__(self, number: int) -> None:
        super().__call__(number)
        notify_supervisor(STOPPING="1")
        if self.arrived == [signal.SIGTERM] and self._drain_s:
            self._server.drain(self._drain_s)
        else:
            self._server.stop(force=self.num_interrupts > 1)

    def raise_again(self) -> None:
        """End the command as the first signal does by default; call after all is closed."""
        if self.arrived:
            first = self.arrived[0]
            raise KeyboardInterrupt if first == signal.SIGINT else Terminated(first)


def _check_alone(files: Mapping[str, Path | None], options: Mapping[str, Any]) -> None:
    """Refuse what workers do not follow: they end with their model. Errors: ConfigError."""
    if len(files) > 1:
        raise ConfigError("--expert-parallel: expected one model, without --model NAME=FILE")
    if options["idle_unload_s"] is not None:
        raise ConfigError("--expert-parallel: --idle-unload is not supported with it")


def _mode(octal: str) -> int:
    """Read permission bits. Errors: ConfigError."""
    try:
        mode = int(octal, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ConfigError(f"--socket-mode {octal!r:.40}: expected permission bits such as 600")
    return mode


def _allowed_hosts(host: str, more: Sequence[str], *, has_keys: bool) -> tuple[str, ...]:
    """Names in the Host header; empty: any. Through a socket in the file system no page comes."""
    if has_keys or host.startswith(UNIX):
        return ()
    names = (*LOOPBACK_NAMES, host, *more, *(() if is_local(host) else own_names()))
    return tuple(name.lower() for name in names)
