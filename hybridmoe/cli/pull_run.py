"""Run of `hybridmoe pull`: choose, judge, ask, download, check."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from hybridmoe.cli.plan_run import verdict_of
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.tables import Section, print_sections
from hybridmoe.env import models_folder
from hybridmoe.errors import ConfigError, GGUFError, UnsupportedModelError
from hybridmoe.gguf.cursor import printable
from hybridmoe.library.download import download_file, part_of
from hybridmoe.library.hub import NETWORK_ERRORS, Hub, HubFile
from hybridmoe.library.hub_models import HubModel, choose_model, models_of
from hybridmoe.llm.progress import Progress
from hybridmoe.planning.releases import release_named
from hybridmoe.units import format_bytes

__all__ = ["run_pull"]

_HEADER_BYTES = (24 << 20, 192 << 20)  # tried in turn
_SPARE_BYTES = 1 << 30  # of the disk, that stays free


def run_pull(text: str, *, must_ask: bool) -> None:
    """Download what is asked for. Errors: ConfigError, DownloadError, GGUFError, OSError."""
    root = models_folder()
    if root is None:
        raise ConfigError("no home folder: set HYBRIDMOE_MODELS to a folder for models")
    repo, quant = _parsed(text)
    hub = Hub()
    models = models_of(repo, hub.files(repo))
    model = choose_model(repo, models, quant)
    if model is None:
        _print_quants(models)
        raise ConfigError(f"which quantization? hybridmoe pull {repo}:{models[-1].quant or 'NAME'}")
    folder = root.joinpath(*repo.split("/"))
    todo = [(file, folder / file.path) for file in model.files]
    todo = [(file, target) for file, target in todo if not _is_there(file, target)]
    if not todo:
        click.echo(f"all of {printable(model.name, 120)} is there: {folder}")
        return
    num_bytes = sum(file.num_bytes - _num_bytes(part_of(target)) for file, target in todo)
    size = format_bytes(num_bytes)
    _check_space(root, num_bytes)
    click.echo(f"{printable(model.name, 120)}: {_judgement(hub, repo, model, folder)}")
    if must_ask:
        if not sys.stdin.isatty():
            raise ConfigError(f"{size} to download: --yes downloads without asking")
        if not click.confirm(f"Download {size} to {folder}?", default=True):
            return
    try:
        _download(hub, repo, todo)
    except KeyboardInterrupt:
        click.echo(
            f"\ninterrupted; hybridmoe pull {repo}:{quant or model.name} continues", err=True
        )
        raise
    click.echo(f"ready: hybridmoe chat {printable(model.name, 120)}")


def _parsed(text: str) -> tuple[str, str | None]:
    """Split REPO:QUANT; REPO may be a page's address or a published model's name."""
    for start in ("https://", "http://"):
        text = text.removeprefix(start)
    for start in ("huggingface.co/", "hf.co/"):
        text = text.removeprefix(start)
    repo, _, quant = text.partition(":")
    release = release_named(repo)
    if release is not None:
        if release.repo is None:
            raise ConfigError(f"{release.name}: no repository of it is known here; give OWNER/NAME")
        repo = release.repo
    return repo.rstrip("/"), quant or None


def _print_quants(models: Sequence[HubModel]) -> None:
    rows = [
        (printable(m.quant or m.name, 80), format_bytes(m.num_bytes), str(len(m.files)))
        for m in models
    ]
    print_sections([Section("", ("quant", "size", "parts"), rows)])


def _is_there(file: HubFile, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == file.num_bytes


def _num_bytes(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _check_space(root: Path, num_bytes: int) -> None:
    """Errors: ConfigError if the disk of the models folder has no room."""
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes + _SPARE_BYTES > free:
        raise ConfigError(
            f"{format_bytes(num_bytes)} to download, and 1 GiB to spare, but {format_bytes(free)}"
            f" are free in {existing}: HYBRIDMOE_MODELS names a folder on another disk"
        )


def _judgement(hub: Hub, repo: str, model: HubModel, folder: Path) -> str:
    """Plan from the first part's header. Errors: GGUFError, DownloadError."""
    first = model.files[0]
    for limit in _HEADER_BYTES:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, Path(first.path).name)
            path.write_bytes(_first_bytes(hub, repo, first, folder / first.path, limit))
            try:
                return verdict_of(path)
            except UnsupportedModelError:
                raise
            except ConfigError as error:
                return f"does not run on this machine as it is: {error}"
            except GGUFError:
                if limit == _HEADER_BYTES[-1] or limit >= first.num_bytes:
                    raise
    raise AssertionError(first)


def _first_bytes(hub: Hub, repo: str, file: HubFile, target: Path, limit: int) -> bytes:
    for path in (target, part_of(target)):
        if _num_bytes(path) >= min(limit, file.num_bytes):
            with path.open("rb") as there:
                return there.read(limit)
    try:
        with hub.open(repo, file.path) as response:
            return response.read(limit)
    except NETWORK_ERRORS as error:
        raise hub.unreachable(error) from None


def _download(hub: Hub, repo: str, todo: Sequence[tuple[HubFile, Path]]) -> None:
    total = sum(file.num_bytes for file, _ in todo)
    before = 0
    with ProgressBar() as bar:
        for file, target in todo:

            def on_bytes(done: int, before: int = before) -> None:
                bar(Progress("download", before + done, total, "bytes"))

            download_file(hub, repo, file, target, on_bytes)
            before += file.num_bytes
            if not sys.stderr.isatty():
                click.echo(
                    f"{printable(target.name, 200)}: {format_bytes(file.num_bytes)}", err=True
                )
