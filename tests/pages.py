"""The pages of the documentation, and the fenced blocks in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", *(f"docs/{name}.md" for name in (
    "launching", "data", "encodec_mmd", "mmd", "dependence", "tokens", "lm", "gap", "metrics", "generation", "results",
    "report", "listening", "logging", "training", "extending", "interchange", "MAP", "studies/factorisation_gap",
)))  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    text: str
    index: int  # among those of its kind on its page

    @property
    def commands(self) -> list[str]:
        """Command lines of a shell or console block, whole and without comments."""
        text = self.text.replace("\\\n", "")
        lines = [line.removeprefix("$ ") for line in text.splitlines() if self.kind == "shell" or line.startswith("$ ")]
        return [found for line in lines if (found := re.sub(r"(^|\s+)# .*$", "", " ".join(line.split())).strip())]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = (ROOT / page).read_text()
        seen: dict[str, int] = {}
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            kind = match[1] or "text"
            yield Block(page, text[: match.start()].count("\n") + 1, kind, match[2], seen.get(kind, 0))
            seen[kind] = seen.get(kind, 0) + 1
