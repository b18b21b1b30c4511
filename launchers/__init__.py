"""Where experiments run: on SLURM through submitit, or as local jobs that outlive the terminal.

`launchers.hooks.install(main)` plugs the right one into Dora. This file imports nothing on purpose: the
supervisor and the runners of local jobs must start in a blink, without Dora and torch.
"""
