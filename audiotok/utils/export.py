"""Small files to give away: the best weights and the configuration of a training checkpoint, nothing else.

The layout is AudioCraft's (`best_state`, `xp.cfg` as YAML text, `version`, `exported`), so files load both ways.
"""

from pathlib import Path

from audiotok import __version__
from audiotok.checkpoint import load_checkpoint, resolve_checkpoint, save_checkpoint
from audiotok.errors import CheckpointError


def export_encodec(checkpoint_path: str | Path, out_file: str | Path) -> Path:
    """Write the best state of a training checkpoint as a file for `CompressionModel.get_pretrained`.

    Args:
        checkpoint_path: a training checkpoint, its folder, or //sig/SIG.
        out_file: where to write; missing folders are made.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged, or already exported.
    """
    path = resolve_checkpoint(checkpoint_path)
    state = load_checkpoint(path)
    if state.get("exported"):
        raise CheckpointError(f"{path} is an exported file already; copy it, or give the training checkpoint")
    missing = [key for key in ("best_state", "xp.cfg") if not state.get(key)]
    if missing or "model" not in state["best_state"]:
        lacking = ", ".join(missing) or "best_state.model"
        raise CheckpointError(f"{path} lacks {lacking}; is it a checkpoint of a solver?")
    out = Path(out_file)
    content = {"best_state": state["best_state"]["model"], "xp.cfg": state["xp.cfg"]}
    save_checkpoint({**content, "version": __version__, "exported": True}, out)
    return out
