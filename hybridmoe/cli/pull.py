"""`hybridmoe pull`: download a model. What it needs is imported when it runs (pull_run.py)."""

import click

from hybridmoe.cli.options import SectionedCommand, debug_option

__all__ = ["pull_command"]


@click.command("pull", cls=SectionedCommand)
@click.argument("repo", metavar="REPO[:QUANT]")
@click.option("--yes", "-y", is_flag=True, help="Do not ask")
@debug_option
def pull_command(repo: str, yes: bool) -> None:
    """Download the GGUF files of REPO, such as unsloth/Kimi-K2-Instruct-GGUF:Q4_K_M.

    REPO may also be a published model by name: kimi-k2, deepseek-r1, glm-4.7-flash. Without QUANT
    the quantizations are listed. First comes plan's verdict on this machine, from the first
    megabytes. Interrupted, the same command continues. Files go to the models folder,
    $HYBRIDMOE_MODELS; $HF_TOKEN opens gated repositories, $HF_ENDPOINT names a mirror.
    """
    from hybridmoe.cli.pull_run import run_pull

    run_pull(repo, must_ask=not yes)
