"""Both configurations as the text of a TOML file: what `config_load` reads, written."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from templar_jax.config import NodeConfig, RunConfig


def to_toml(run: RunConfig, node: NodeConfig) -> str:
    """Both configurations as one file that `config_load.load` reads back to the same values."""
    tables = _tables({**dataclasses.asdict(run), "node": dataclasses.asdict(node)}, "")
    parts = ["\n".join([f"[{name}]"] * bool(name) + lines) for name, lines in tables]
    return "\n\n".join(parts) + "\n"


def _tables(values: Mapping[str, Any], name: str) -> Iterator[tuple[str, list[str]]]:
    yield name, [f"{key} = {_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _tables(value, f"{name}.{key}" if name else key)


def _value(value: Any) -> str:
    """TOML's strings, numbers, booleans and lists are JSON's, as far as settings go."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
