"""Models of the Hugging Face hub, by name: fetched when a name is given, and never otherwise.

The package `huggingface_hub` does it and keeps what it fetched. audiotok does not need it for anything else.
"""

import logging
import os
import re
from pathlib import Path

from audiotok.errors import CheckpointError, first_line
from audiotok.interchange import audiocraft, huggingface

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILES = (".th", ".pt", ".bin", ".ckpt", ".safetensors")


def is_name(text: str) -> bool:
    """Whether a text names a model of the hub, owner/name, rather than a path: there is no such folder here."""
    owner = text.partition("/")[0]
    return bool(NAME.fullmatch(text)) and not text.endswith(_FILES) and not os.path.isdir(owner)


def fetch(name: str, *, kept_only: bool = False) -> Path:
    """Folder or file of a codec of the hub: EnCodec of Transformers, or the codec in the folder of a MusicGen.

    Args:
        name: owner/name.
        kept_only: only what was fetched before; nothing is asked of the network.

    Raises:
        CheckpointError: if the package is missing, or the model cannot be fetched or holds no codec.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"no file or folder {name} here, and to fetch it from the hub huggingface_hub is needed: "
            "pip install huggingface_hub, or give the path of a copy"
        ) from error

    def fetched(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo_id=name, filename=file, local_files_only=kept_only))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not kept_only:  # the hub did not answer
                raise
            return None

    retries = logging.getLogger("huggingface_hub")  # which it reports one by one: the error below says it once
    level = retries.level
    retries.setLevel(logging.ERROR)
    try:
        config = fetched(huggingface.CONFIG)
        names = huggingface.WEIGHTS if config is not None and huggingface.is_encodec(config) else ()
        files = (path for path in map(fetched, names) if path is not None)
        found = next((path.parent for path in files), None) or fetched(audiocraft.EXPORTED)
    except Exception as error:  # of many kinds, of the package and of what it connects with
        reason = first_line(error).rstrip(".")
        raise CheckpointError(
            f"no file or folder {name} here, and it cannot be fetched from the hub ({reason}); give the path of a copy"
        ) from error
    finally:
        retries.setLevel(level)
    if found is None:
        kept = "among what was fetched before" if kept_only else "on the hub"
        raise CheckpointError(f"no codec {name} {kept}: neither an EnCodec of Transformers nor {audiocraft.EXPORTED}")
    return found
