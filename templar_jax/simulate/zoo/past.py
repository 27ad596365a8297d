"""What everybody may know of earlier windows: the contributions that were applied, and theta before and after.

Nobody need ask for it: a node opens all of that to apply it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from templar_jax.compress.packed import Packed
from templar_jax.node.engine import Engine, Params


@dataclass(frozen=True)
class Applied:
    """One outer step."""

    contributions: Mapping[int, dict[str, Packed]]  # by uid
    before: Params
    after: Params


@dataclass
class Past:
    """The outer steps that a node has applied, the newest last, at most `keep` of them."""

    keep: int = 1
    steps: list[Applied] = field(default_factory=list)

    @property
    def last(self) -> Applied | None:
        return self.steps[-1] if self.steps else None

    def engine(self, engine: Engine) -> Engine:
        """For `Role.engine`: the same engine, whose outer steps are remembered here."""

        def apply(params: Params, momentum: Params, contributions: Mapping[int, Any], **options: Any) -> Any:
            after = engine.outer.apply(params, momentum, contributions, **options)
            self.steps.append(Applied(dict(contributions), params, after[0]))
            del self.steps[: -self.keep]
            return after

        return dataclasses.replace(engine, outer=dataclasses.replace(engine.outer, apply=apply))
