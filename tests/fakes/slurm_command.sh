#!/bin/sh
# Stands in for every SLURM command. Writes each call to $FAKE_SLURM/calls and answers with the file of the
# command's name there; a file `COMMAND.fails` makes it fail with that text. sbatch keeps the script it is given; with a
# file `waits`, squeue lists the jobs of that script as PENDING, under the id 101.
name=$(basename "$0")
echo "$name $*" >> "$FAKE_SLURM/calls"
for last; do :; done
if [ "$name" = sbatch ]; then cp "$last" "$FAKE_SLURM/script"; fi
if [ -f "$FAKE_SLURM/$name.fails" ]; then cat "$FAKE_SLURM/$name.fails" >&2; exit 1; fi
# as sbatch --parsable has it
if [ -f "$FAKE_SLURM/$name" ]; then sed "s/^Submitted batch job //" "$FAKE_SLURM/$name"; fi
if [ "$name" = squeue ] && [ -f "$FAKE_SLURM/waits" ] && [ -f "$FAKE_SLURM/script" ]; then
    job=$(sed -n 's/^#SBATCH --job-name=//p' "$FAKE_SLURM/script")
    tasks=$(sed -n 's/^#SBATCH --array=\([^%]*\).*/_[\1]/p' "$FAKE_SLURM/script")
    echo "101$tasks|PENDING|None|$job|$job"
fi
