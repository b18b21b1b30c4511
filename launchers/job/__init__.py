"""What runs inside a job: the parent of the training process, on SLURM and here. Standard library only."""
