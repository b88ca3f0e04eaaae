"""How a model reasons in parallel: trajectories, dialects, engines, the orchestrator."""
