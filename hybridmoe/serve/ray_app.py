"""Application of Ray Serve: replicas of a model behind one endpoint.

    serve run hybridmoe.serve.ray_app:app model=/models/k2.gguf min_replicas=2

The front is an endpoint like that of `hybridmoe serve`, but for the model: what needs one goes to
a replica that has the conversation's prefix. docs/cluster.md has the arguments.
"""

from functools import partial
from typing import Any

import click
from starlette.types import ASGIApp

from hybridmoe.errors import HybridMoeError
from hybridmoe.packages import missing_packages
from hybridmoe.serve.app import create_app
from hybridmoe.serve.replicas.forward import ForwardMiddleware
from hybridmoe.serve.replicas.live_replicas import replica_tag
from hybridmoe.serve.replicas.model_replica import ModelReplica
from hybridmoe.serve.replicas.options import ReplicaOptions, parse_options
from hybridmoe.serve.service import Service

try:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig
    from ray.serve.schema import LoggingConfig

    from hybridmoe.serve.replicas.ray_handle import RayReplicas, without_cancellation
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(missing_packages("ray") or str(error)) from None

__all__ = ["app"]

_FRONT, _REPLICA = "front", "replica"
_ROUTER = "hybridmoe.serve.replicas.ray_router.RankedRouter"
_LOGGING = LoggingConfig(enable_access_log=False)  # each replica has a line for each request
_MOST_CLIENTS = 4096  # requests at the front, which only waits for replicas


class _RayReplica(ModelReplica):
    """Replica that Ray makes, checks and ends."""

    def __init__(self, options: ReplicaOptions) -> None:
        unique_id = serve.get_replica_context().replica_id.unique_id
        super().__init__(options, replica_tag(unique_id))

    def __del__(self) -> None:
        self.close()


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application. arguments: fields of `ReplicaOptions`, and of `hybridmoe.load`."""
    try:
        options = parse_options(arguments)
        options.front_config()  # refuses a bad key file here, not in every replica
    except HybridMoeError as error:
        raise click.ClickException(str(error)) from None
    replicas = serve.deployment(_RayReplica, name=_REPLICA).options(**_replica_settings(options))

    def build() -> ASGIApp:
        return _front(options)

    front = serve.deployment(serve.ingress(build)(), name=_FRONT).options(
        max_ongoing_requests=_MOST_CLIENTS,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGGING,
    )
    return front.bind(replicas.bind(options))


def _front(options: ReplicaOptions) -> ASGIApp:
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(_REPLICA, app_name=context.app_name)
    service = Service(options.front_config())
    innermost = partial(
        ForwardMiddleware,
        replicas=RayReplicas(handle),
        service=service,
        can_sleep=options.min_replicas == 0,
        hold_s=options.hold_s,
    )
    return without_cancellation(create_app(service, innermost=innermost))


def _replica_settings(options: ReplicaOptions) -> dict[str, Any]:
    """Make the options of the replicas' deployment, which Ray's config files can replace."""
    settings: dict[str, Any] = {
        "logging_config": _LOGGING,
        "max_ongoing_requests": options.most_ongoing,
        "max_queued_requests": options.max_queued,
        "request_router_config": RequestRouterConfig(request_router_class=_ROUTER),
        "ray_actor_options": {"num_cpus": options.num_threads or 1, "num_gpus": options.gpus},
    }
    if options.min_replicas == options.most_replicas:
        return settings | {"num_replicas": options.min_replicas}
    scaling = AutoscalingConfig(
        min_replicas=options.min_replicas,
        max_replicas=options.most_replicas,
        initial_replicas=options.min_replicas,
        target_ongoing_requests=options.max_running,
        downscale_delay_s=options.idle_s,
    )
    return settings | {"autoscaling_config": scaling}
