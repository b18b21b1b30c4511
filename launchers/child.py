"""How another program is asked something: what it says, or why it says nothing. Standard library only."""

import subprocess as sp
from collections.abc import Mapping, Sequence

PATIENCE_S = 20.0
REASON_CHARS = 300


def ask(
    command: Sequence[str], seconds: float = PATIENCE_S, *, environ: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Run a command; returns its output and, if it failed, why in one line. Never raises.

    Args:
        command: what to run; it gets no input.
        seconds: how long it may take.
        environ: all of its environment; by default ours.
    """
    try:
        process = sp.run(
            command, env=environ, stdin=sp.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except sp.TimeoutExpired:
        return "", f"no answer within {seconds:g} s"
    except OSError as error:
        return "", str(error)
    if process.returncode == 0:
        return process.stdout, ""
    said = " ".join(process.stderr.split())[-REASON_CHARS:]
    return process.stdout, said or f"{command[0]} exit code {process.returncode}"
