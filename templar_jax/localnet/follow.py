"""Reads the events of a network's nodes as they write them, each once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS = "metrics.jsonl"  # as node/home.py names it


class Follow:
    """All nodes under the folder of one run, also those that somebody else starts there."""

    def __init__(self, network: Path) -> None:
        self._network = network
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name of the node, event) of every whole line since the last call; what is half written waits."""
        for path in sorted(self._network.glob(f"*/{EVENTS}")):
            for event in self._lines(path):
                yield path.parent.name, event

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
        except OSError:  # removed, or unreadable: its node will say why
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # cut in half by a kill
                continue
            if isinstance(event, dict) and "event" in event:
                yield event
