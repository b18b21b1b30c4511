#!/bin/sh
# Stands before the real squeue ($REAL_SQUEUE). A file of these names in $FAULTS makes its next call go wrong, and is removed:
#   squeue-empty  it answers that there are no jobs
#   squeue-fails  the controller is not reached
if rm "$FAULTS/squeue-empty" 2> /dev/null; then exit 0; fi
if rm "$FAULTS/squeue-fails" 2> /dev/null; then
    echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
exec "$REAL_SQUEUE" "$@"
