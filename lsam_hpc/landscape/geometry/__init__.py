"""Lines, planes, paths and trajectories in parameter space."""
