"""One shard of a results folder: what its cache file still knows, what has to be read again, and what is kept.

Experiments are spread over shards by the first two digits of their signature, so that a change rewrites little, and a
cold start has pieces to share out.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audiotok.results import entries
from audiotok.results.block import Block, StaleBlockError, concat_blocks, single_block, take
from audiotok.results.cache import read_block, write_block
from audiotok.results.entries import Entry, Part
from audiotok.results.files import mark
from audiotok.results.read import parse_overrides

_PARTS = ("history", "argv", "state", "config")
_ATTEMPTS = 3


@dataclass(frozen=True)
class Shard:
    """Experiments of one shard.

    Attributes:
        path: file of the cache; None to work without one.
        root: results folder; an experiment in it is known by its path within it, so that a copy is known too.
        folders: absolute folders of the experiments that are asked for; their entries get
            `folder` and `overrides` besides, which are not kept.
    """

    path: Path | None
    root: str
    folders: tuple[str, ...]

    def key(self, folder: str) -> str:
        """Name of an experiment in the cache."""
        return folder.removeprefix(f"{self.root}{os.sep}")

    def open(self) -> "OpenShard":
        """Read what the cache knows."""
        block = None if self.path is None else read_block(self.path)
        return OpenShard(self, block or Block([]))


class OpenShard:
    """A shard and what the cache knew of it when it was opened."""

    def __init__(self, shard: Shard, block: Block) -> None:
        self.shard, self.block = shard, block
        self._places = {entry["key"]: place for place, entry in enumerate(block.entries)}
        self._argv: dict[str, tuple[Part, dict[str, Any]]] = {}

    def stale_bytes(self) -> int:
        """Bytes of the histories that have to be parsed."""
        size = 0
        for folder in self.shard.folders:
            found = mark(f"{folder}/{entries.HISTORY_FILES[0]}")
            part = self._known(folder).get("history")
            if found is not None and (part is None or part["marks"] != [found]):
                size += found[0]
        return size

    def overrides(self, folder: str) -> dict[str, Any]:
        """Parameters given to an experiment."""
        if folder not in self._argv:
            part = self._known(folder).get("argv")
            fresh = part is not None and entries.is_fresh(part, folder, entries.ARGV_FILES)
            part = part if part is not None and fresh else entries.read_argv_part(folder)
            self._argv[folder] = part, parse_overrides(part["argv"])
        return self._argv[folder][1]

    def load(self, keys: Sequence[str]) -> list[Block]:
        """Bring the experiments up to date; what is worth it goes into the cache.

        Args:
            keys: parameters wanted; where an experiment does not override one, it is taken from its configuration.

        Returns:
            Blocks that hold all of them; other experiments may be in them too.

        Raises:
            StaleBlockError: if somebody else has rewritten the shard.
        """
        old = list(self.block.entries)
        new: list[Block] = []
        gained = False
        for folder in self.shard.folders:
            known = self._known(folder)
            entry, block = self._update(folder, known, keys)
            gained = gained or any(entry.get(name) is not known.get(name) and _keeps(entry, name) for name in _PARTS)
            if block is None:
                old[self._places[entry["key"]]] = entry
            else:
                new.append(block)
        if gained and self.shard.path is not None:
            written = self._write(self.shard.path, old, new)
            if written is not None:
                return written
        return [replace(self.block, entries=old), concat_blocks(new)]

    def _known(self, folder: str) -> Entry:
        place = self._places.get(self.shard.key(folder))
        return {} if place is None else self.block.entries[place]

    def _update(self, folder: str, known: Entry, keys: Sequence[str]) -> tuple[Entry, Block | None]:
        """Entry of an experiment, and its block unless the one in the cache holds."""
        overrides = self.overrides(folder)
        entry: Entry = {"key": self.shard.key(folder), "folder": folder, "overrides": overrides}
        entry["argv"] = self._argv[folder][0]
        state = known.get("state")
        fresh = state is not None and entries.is_fresh(state, folder, entries.STATE_FILES)
        entry["state"] = state if fresh else entries.read_state_part(folder)
        wanted = [key for key in keys if key not in overrides]
        if wanted:
            entry["config"] = _config(folder, known.get("config"), wanted)
        elif "config" in known:
            entry["config"] = known["config"]
        history = known.get("history")
        if history is not None and entries.is_fresh(history, folder, entries.HISTORY_FILES):
            return {**entry, "history": history}, None
        entry["history"], tables = entries.read_history_part(folder)
        return entry, single_block(entry, tables)

    def _write(self, path: Path, old: list[Entry], new: list[Block]) -> list[Block] | None:
        """Write all that is worth it, experiments that were not asked for included; None where it cannot be written."""
        kept = [block for block in new if _keeps(block.entries[0], "history")]
        passing = [block for block in new if not _keeps(block.entries[0], "history")]
        replaced = {block.entries[0]["key"] for block in kept}
        places = [
            place for place, entry in enumerate(old) if entry["key"] not in replaced and self._exists(entry["key"])
        ]
        merged = concat_blocks([take(self.block, places), *kept])
        full = [*(old[place] for place in places), *(block.entries[0] for block in kept)]
        written = write_block(path, replace(merged, entries=[_kept_parts(entry) for entry in full]))
        if written is None:
            return None
        return [replace(written, entries=full), concat_blocks(passing)]

    def _exists(self, key: str) -> bool:
        return mark(os.path.join(self.shard.root, key)) is not None  # noqa: PTH118  an absolute key stays as it is


def load_shard(shard: Shard, keys: Sequence[str], opened: OpenShard | None = None) -> list[Block]:
    """Bring a shard up to date, see `OpenShard.load`; without the cache, if others keep rewriting it."""
    for _ in range(_ATTEMPTS):
        try:
            return (opened or shard.open()).load(keys)
        except StaleBlockError:
            opened = None
    return replace(shard, path=None).open().load(keys)


def _config(folder: str, known: Part | None, wanted: Sequence[str]) -> Part:
    if known is not None and entries.is_fresh(known, folder, entries.CONFIG_FILES):
        missing = [key for key in wanted if key not in known["values"]]
        if not missing:
            return known
        wanted = [*known["values"], *missing]
    return entries.read_config_part(folder, wanted)


def _keeps(entry: Mapping[str, Any], name: str) -> bool:
    return name in entry and entries.worth_keeping(entry[name])


def _kept_parts(entry: Entry) -> Entry:
    return {"key": entry["key"]} | {name: entry[name] for name in _PARTS if _keeps(entry, name)}
