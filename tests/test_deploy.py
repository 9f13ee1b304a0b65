"""Files of deploy/: the manifest's options are the program's, and its ranks can meet."""

import re
from pathlib import Path
from typing import Any

import click
import pytest

from hybridmoe.cli.app import cli

DEPLOY = Path(__file__).parent.parent / "deploy"

yaml = pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Objects of the manifest by kind and name."""
    text = (DEPLOY / "kubernetes-pooled.yaml").read_text()
    return {f"{one['kind']} {one['metadata']['name']}": one for one in yaml.safe_load_all(text)}


def test_the_manifest_gives_options_that_serve_has(parts: dict[str, Any]) -> None:
    spec = parts["StatefulSet hybridmoe"]["spec"]["template"]["spec"]
    name, _, *options = spec["containers"][0]["args"]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    known = {option for param in command.params for option in param.opts}
    assert {option.partition("=")[0] for option in options} <= known
    with command.make_context(name, [__file__, *options]) as context:  # reads, but does not run
        assert context.params["expert_parallel"]


def test_the_manifests_ranks_can_meet(parts: dict[str, Any]) -> None:
    ranks = parts["StatefulSet hybridmoe"]["spec"]
    assert ranks["podManagementPolicy"] == "Parallel"  # else each waits for the one before it
    service = parts[f"Service {ranks['serviceName']}"]["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"]
    pod = ranks["template"]["spec"]
    container = pod["containers"][0]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment == {"RANK": None, "WORLD_SIZE": str(ranks["replicas"])}
    options = dict(one.lstrip("-").split("=") for one in container["args"] if "=" in one)
    port = service["ports"][0]["port"]
    assert options["cluster-address"] == f"hybridmoe-0.{ranks['serviceName']}:{port}"
    folder, _, _ = options["cluster-key-file"].rpartition("/")
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (volume,) = (one for one in pod["volumes"] if one["name"] == mounts[folder])
    assert volume["secret"]["defaultMode"] == 0o440
    (user,) = re.findall(r"--uid (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert pod["securityContext"]["fsGroup"] == int(user)
