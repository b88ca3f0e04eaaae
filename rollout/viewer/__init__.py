"""Recorded trajectories as a page that needs nothing but itself, or as text for a terminal."""

from rollout.viewer.page import page
from rollout.viewer.recorded import Recorded, ViewerError
from rollout.viewer.terminal import print_trees

__all__ = ["Recorded", "ViewerError", "page", "print_trees"]
