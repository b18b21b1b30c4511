"""Models of the Hugging Face hub, by name: fetched when a name is given, and never otherwise.

The package `huggingface_hub` does it and keeps what it fetched. audiotok does not need it for anything else.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiotok.errors import CheckpointError, first_line
from audiotok.interchange import audiocraft, huggingface

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILES = (".th", ".pt", ".bin", ".ckpt", ".safetensors")
_PATIENCE_S = 3.0  # for the first answer, unless _TIMEOUT is set
_TIMEOUT = "HF_HUB_ETAG_TIMEOUT"


def is_name(text: str) -> bool:
    """Whether a text names a model of the hub, owner/name, rather than a path: there is no such folder here."""
    owner = text.partition("/")[0]
    return bool(NAME.fullmatch(text)) and not text.endswith(_FILES) and not os.path.isdir(owner)


def fetch(name: str, *, kept_only: bool = False) -> Path:
    """Folder or file of a codec of the hub: EnCodec of Transformers, or the codec in the folder of a MusicGen.

    What was fetched before is used if the hub does not answer.

    Args:
        name: owner/name.
        kept_only: only what was fetched before, without a request to the network.

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

    with _quiet():
        fault = None if kept_only else _fault(name)
    local = kept_only or fault is not None

    def fetched(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo_id=name, filename=file, local_files_only=local))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not local:  # the hub did not answer
                raise
            return None

    try:
        with _quiet():
            config = fetched(huggingface.CONFIG)
            names = huggingface.WEIGHTS if config is not None and huggingface.is_encodec(config) else ()
            files = (path for path in map(fetched, names) if path is not None)
            found = next((path.parent for path in files), None) or fetched(audiocraft.EXPORTED)
    except Exception as error:  # of many kinds, of the package and of what it connects with
        reason = first_line(error).rstrip(".")
        raise CheckpointError(
            f"no file or folder {name} here, and it cannot be fetched from the hub ({reason}); give the path of a copy"
        ) from error
    if found is None and fault:
        raise CheckpointError(f"no file or folder {name} here, and {fault}; give the path of a copy")
    if found is None:
        kept = "among what was fetched before" if kept_only else "on the hub"
        raise CheckpointError(f"no codec {name} {kept}: neither an EnCodec of Transformers nor {audiocraft.EXPORTED}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines of the packages about each request and each retry: an error has its reason once."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx", "httpx2")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _fault(name: str) -> str | None:
    """Why the hub has nothing of this name for us, by one short request: a download tries for half a minute.

    The request has a thread of its own: its timeout is of each address that the hub has, and not of finding them.
    """
    from huggingface_hub import constants

    patience_s = constants.HF_HUB_ETAG_TIMEOUT if _TIMEOUT in os.environ else _PATIENCE_S
    answers: list[str | None] = []
    asking = threading.Thread(target=lambda: answers.append(_asked(name, patience_s)), daemon=True)
    asking.start()
    asking.join(patience_s)
    if answers:
        return answers[0]
    return f"the hub cannot be reached (no answer within {patience_s:g} s; {_TIMEOUT}=30 in the environment waits 30)"


def _asked(name: str, patience_s: float) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, huggingface.CONFIG), timeout=patience_s)
    except EntryNotFoundError:  # it has other files
        return None
    except RepositoryNotFoundError:
        return "the hub has no model of this name that it gives without a login (`hf auth login`)"
    except Exception as error:  # of many kinds, of the package and of what it connects with
        return f"the hub cannot be reached ({first_line(error).rstrip('.')})"
    return None
