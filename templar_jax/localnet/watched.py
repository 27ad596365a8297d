"""What localnet.py knows of its network: while it runs, and for the report after it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from templar_jax.chain.port import Metagraph
from templar_jax.localnet import processes
from templar_jax.localnet.follow import Follow
from templar_jax.localnet.network import Network
from templar_jax.localnet.processes import Child
from templar_jax.localnet.story import Row, Story, rows


@dataclass
class Watched:
    """All that is known of a network while it runs and after it."""

    network: Network
    follow: Follow
    block_seconds: float = 0.0
    genesis: float = 0.0  # clock time of block 0
    story: Story = field(default_factory=Story)
    children: list[Child] = field(default_factory=list)  # the nodes
    helpers: list[Child] = field(default_factory=list)  # what measures, and the S3 server: killed at the end
    litter: list[Path] = field(default_factory=list)  # files of the helpers that go with them
    dead: dict[str, int] = field(default_factory=dict)  # name -> exit code of those that ended before they were asked
    killed: list[str] = field(default_factory=list)  # did not end when asked
    metagraph: Metagraph | None = None
    history: list[Metagraph] = field(default_factory=list)  # at each epoch
    first: int | None = None  # window in which all nodes took part
    asked: bool = False  # a signal ended it
    notes: list[tuple[str, str]] = field(default_factory=list)  # (who, what) in the order in which it was said
    windows: int = 0  # that were asked for

    @property
    def last(self) -> int | None:
        """The last window that counts."""
        return None if self.first is None else self.first + self.windows - 1

    @property
    def failed(self) -> list[str]:
        return sorted({*self.dead, *self.killed})

    def rows(self) -> list[Row]:
        neurons = self.metagraph.neurons if self.metagraph else ()
        paid = {neuron.uid: (neuron.incentive, neuron.dividends) for neuron in neurons}
        found = rows(self.story, paid, self.last)
        return [self._with_fate(row) for row in found]

    def _with_fate(self, row: Row) -> Row:
        code = self.dead.get(row.name)
        return row if code is None else dataclasses.replace(row, state=f"died: {processes.ended(code)}")
