"""Worker of a cluster: computes its share of each layer's experts, request by request."""

import torch

from hybridmoe.cluster.link import Link
from hybridmoe.cluster.message import Frame, Header, Kind
from hybridmoe.errors import ClusterError, HybridMoeError, StalledReadError
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.model.threads import torch_threads

__all__ = ["answer_requests"]


@torch.inference_mode()
def answer_requests(link: Link, own: ExpertBackend, experts: RoutedExperts) -> None:
    """Answer until rank 0 says farewell. Errors: ClusterError once the connection is lost.

    own: computes `experts`, which are this worker's share.
    """
    own.abandon_when(lambda: link.is_unwanted)
    step = 0
    with torch_threads(1):
        while True:
            request, frame = link.receive()
            if request.kind is Kind.FAREWELL:
                return
            _check(link, request, frame, experts)
            reply, line = request._replace(kind=Kind.SUM), ""
            try:
                if request.step != step:
                    if step:
                        own.end_step()
                    step = request.step
                    own.begin_step(request.step_tokens)
                _compute(own, request, frame, link.outgoing)
            except StalledReadError:
                reply = request._replace(kind=Kind.ABANDONED)
            except HybridMoeError as error:
                reply, line = request._replace(kind=Kind.FAILURE), str(error)
            link.post()
            link.send(reply, line)


def _compute(own: ExpertBackend, request: Header, frame: Frame, out: Frame) -> None:
    tokens = request.num_tokens
    ids, weights, x = map(torch.from_numpy, frame.request(tokens))
    pending = own.submit(request.layer, x, ids, weights)
    torch.from_numpy(out.sums(tokens)).copy_(pending.result())


def _check(link: Link, request: Header, frame: Frame, experts: RoutedExperts) -> None:
    """Refuse what no rank 0 sends, by ending the connection. Errors: ClusterError."""
    problem = None
    if request.kind is not Kind.REQUEST:
        problem = f"kind is {request.kind.name}"
    elif request.layer not in experts.layers:
        problem = f"layer {request.layer} has no experts"
    else:
        ids = frame.request(request.num_tokens).ids
        if ids.size and not (ids.min() >= -1 and ids.max() < experts.num_experts):
            problem = (
                f"ids from {ids.min()} to {ids.max()}, expected -1 to {experts.num_experts - 1}"
            )
    if problem is not None:
        link.fail(f"{link.peer}: malformed request: {problem}")
        raise ClusterError(link.failure)
