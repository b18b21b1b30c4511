#!/bin/sh
# Stands before the real sbatch ($REAL_SBATCH) and lets its N-th call go wrong, as a file in $FAULTS tells:
#   refuse-N       SLURM is not reached
#   lose-answer-N  SLURM takes the job, but its answer does not come back
#   kill-before-N  the command that submits is killed before SLURM hears of it
#   kill-after-N   the command that submits is killed after SLURM has taken the job
#   wait-N         the call waits for the end of this file, then goes on
#   banner-N       the answer stands below lines that a site prints
#   late-N         the command that submits is killed, and SLURM gets the job as soon as there is a file `go`
# While there is a file `hold`, a call writes `held` and waits.
echo "$@" >> "$FAULTS/calls"
n=$(wc -l < "$FAULTS/calls")
if [ -f "$FAULTS/hold" ]; then touch "$FAULTS/held"; fi
while [ -f "$FAULTS/hold" ]; do sleep 0.05; done
while [ -f "$FAULTS/wait-$n" ]; do sleep 0.05; done
if [ -f "$FAULTS/banner-$n" ]; then printf 'Welcome to this cluster\n2026 jobs were run today\n'; fi
if [ -f "$FAULTS/kill-before-$n" ]; then kill -9 $PPID; exit 1; fi
if [ -f "$FAULTS/late-$n" ]; then
    kill -9 $PPID
    while [ -d "$FAULTS" ] && [ ! -f "$FAULTS/go" ]; do sleep 0.05; done
    "$REAL_SBATCH" "$@" > "$FAULTS/went"
    exit 1
fi
if [ -f "$FAULTS/refuse-$n" ]; then
    echo "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
answer=$("$REAL_SBATCH" "$@"); code=$?
if [ -f "$FAULTS/kill-after-$n" ]; then kill -9 $PPID; exit 1; fi
if [ -f "$FAULTS/lose-answer-$n" ]; then
    echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
    exit 1
fi
echo "$answer"
exit $code
