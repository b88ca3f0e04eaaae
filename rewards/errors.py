"""The error of a reward that cannot be built."""

from rollout.errors import UserError


class RewardError(UserError, ValueError):
    """A reward's configuration cannot be used. One line: the term, what is wrong with it, the nearest valid name."""
