"""Where experiments run: on SLURM through submitit, or as local jobs that outlive the terminal.

From the top: `hooks` plugs all of it into Dora; `shepherd` decides, with `rules` and under one lock, what is submitted;
an `engine` makes it run (`slurm/`, `local/`); inside the job is `job/`. `profiles/` say what a job asks for, `plans/`
what a launch would do, `watching/` shows it, `doctor/` checks the machine.

This file imports nothing on purpose: what runs inside jobs must start in a blink, without Dora and torch.
"""
