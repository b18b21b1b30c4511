"""JSON files that may be half-written, and texts that no file can hold."""

import json
from pathlib import Path
from typing import Any


def read_json_file(path: Path, kind: type, problems: list[str]) -> Any:
    """Read a JSON file that should hold a list or an object.

    Args:
        path: the file.
        kind: `list` or `dict`.
        problems: told what is wrong, where the file is damaged.

    Returns:
        Its content; None where there is no file or no use in it.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        if b"\\ud" in raw.lower():
            content = json.loads(encodable(json.dumps(content, ensure_ascii=False)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__}: {error})")
        return None
    if not isinstance(content, kind):
        problems.append(f"{path.name} holds a {type(content).__name__}, not a {kind.__name__}")
        return None
    return content


def encodable(text: str) -> str:
    """Text without the lone surrogates that JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
