"""From trajectories to weights: packing, attention, losses, trainers."""
