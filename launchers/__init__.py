"""Where experiments run: on SLURM with sbatch, or as local jobs that outlive the terminal.

- `dora_patches` installs all of it in Dora; `grid` runs a grid; `shepherd` decides, with `decide` and under one `lock`,
  what is submitted; an `engine` makes it run: `slurm/`, `local/`; `child` is what runs inside of a job.
- `profile`: what a job requests. `plan`: what a launch would do. `table`: the table of a grid. `doctor`: checks.

This file imports nothing on purpose: what runs inside of jobs must start at once, without Dora and torch.
"""
