"""Request router of Ray Serve that obeys the front's ranking of the replicas."""

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from hybridmoe.serve.replicas.asgi_call import ForwardedRequest
from hybridmoe.serve.replicas.live_replicas import replica_tag, set_live_replicas

__all__ = ["RankedRouter"]


class RankedRouter(RequestRouter):
    """Tries the replicas that a `ForwardedRequest` wants, in their order, and then the others.

    Ray skips those that are full, and waits where all are.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in the replicas that run now."""
        super().update_replicas(replicas)
        self._publish()

    def on_replica_actor_died(self, replica_id: Any) -> None:
        """Forget a replica before Ray's controller does."""
        super().on_replica_actor_died(replica_id)
        self._publish()

    def _publish(self) -> None:
        set_live_replicas(replica_id.unique_id for replica_id in self.curr_replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Rank the replicas for a request."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        request = pending_request.args[0]
        assert isinstance(request, ForwardedRequest)
        by_tag = {replica_tag(one.replica_id.unique_id): one for one in candidate_replicas}
        ranked = [[by_tag.pop(tag)] for tag in request.wanted if tag in by_tag]
        if ranked and request.is_bound:
            return ranked[:1]
        return [*ranked, [*by_tag.values()]]
