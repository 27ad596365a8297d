"""Roles that replace a method of a port."""

import dataclasses
from collections.abc import Callable
from typing import Any

from templar_jax.chain.messages import parse_commitment
from templar_jax.node.world import World
from templar_jax.simulate.role import Role


class Port:
    """A port with some methods replaced."""

    def __init__(self, inner: Any, **methods: Any) -> None:
        self._inner = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def putting(change: Callable[[str, bytes], bytes | None]) -> Role:
    """Its bucket gets `change(key, data)` instead of the data; nothing where that is None."""

    def alter(world: World) -> World:
        async def put(key: str, data: bytes) -> None:
            changed = change(key, data)
            if changed is not None:
                await world.bucket.put(key, changed)

        return dataclasses.replace(world, bucket=Port(world.bucket, put=put))

    return Role(alter=alter)


def committing(change: Callable[[World, str, Any], Any]) -> Role:
    """Commits the fields that `await change(world, locator, message)` returns; nothing where that is None."""

    def alter(world: World) -> World:
        async def commit(key: Any, fields: tuple[bytes, ...]) -> None:
            parsed = parse_commitment(fields)
            assert parsed is not None
            changed = await change(world, parsed.locator, parsed.message)
            if changed is not None:
                await world.chain.commit(key, changed)

        return dataclasses.replace(world, chain=Port(world.chain, commit=commit))

    return Role(alter=alter)
