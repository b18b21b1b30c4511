"""Jobs on SLURM: scripts, submissions that cannot get lost, states with and without accounting."""
