"""Another rank that went away: which errors of torch.distributed say so, and the one line that a person reads."""

import re

from rollout.errors import UserError

GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out|time ?out|no route to host|unreachable|connection refused"
    r"|connection was likely closed|connectFullMesh failed|ncclRemoteError|ncclSystemError|remote process exited",
    re.IGNORECASE,
)
"""What gloo, NCCL and the store say when the other side does not answer; any other failure of theirs may be a bug."""


class RankLost(UserError):
    """Another rank ended, or its node cannot be reached. What was saved is whole, and the run goes on from there."""


def lost_contact(error: BaseException) -> bool:
    """Whether torch.distributed says that another rank went away: by its own classes or, from gloo, in words.

    >>> lost_contact(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4242"))
    True
    >>> lost_contact(RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes"))
    False
    """
    if not isinstance(error, RuntimeError) or isinstance(error, UserError):
        return False
    from torch import distributed

    named = (distributed.DistBackendError, distributed.DistNetworkError, distributed.DistStoreError)
    told = str(error)
    return (isinstance(error, named) or "gloo" in told.lower()) and bool(GONE.search(told))


def rank_lost(error: BaseException, where: str = "", reached: str = "") -> RankLost:
    """The one line; `where`: in which wait, `reached`: how far this rank had come."""
    told = re.sub(r"^\[[^\]]*\] ", "", str(error).strip().partition("\n")[0])  # without the place in torch's source
    told = told.partition(". ")[0]  # without its advice
    far = f"; it got to: {reached}" if reached else ""
    return RankLost(
        f"lost contact to another rank{where} ({told}){far}; the output of the other ranks says why: start "
        "the same command again, and the run goes on from its last checkpoint"
    )
