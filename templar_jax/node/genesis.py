"""A run's beginning on the chain: who runs what, from which window, from which parameters."""

from dataclasses import dataclass

from templar_jax.chain.messages import GenesisMessage, encode_commitment, parse_commitment
from templar_jax.chain.wait import until_final
from templar_jax.config import RunConfig
from templar_jax.errors import ConfigError
from templar_jax.node.patience import Stopped
from templar_jax.node.timetable import Timetable, window_of
from templar_jax.node.world import World


@dataclass(frozen=True)
class Genesis:
    """The first finalised genesis commitment of a run."""

    first_window: int
    root: bytes  # state root of theta_0


async def find_genesis(world: World, run: RunConfig) -> Genesis | None:
    """The run's genesis, if the chain holds a final one."""
    for commitment in await world.chain.commitments(0, await world.chain.finalized()):
        parsed = parse_commitment(commitment.fields)
        message = parsed.message if parsed is not None else None
        if isinstance(message, GenesisMessage) and message.run_id == bytes.fromhex(run.run_id):
            return Genesis(message.first_window, message.root)
    return None


async def join_or_start(world: World, run: RunConfig, root_0: bytes) -> Genesis:
    """The run's genesis, committed by this node if there is none. Two nodes that start at once agree on the first.

    Args:
      root_0: state root of theta_0 as this node computes it.

    Raises:
      ConfigError: the chain holds another theta_0 for this run: this machine does not compute the same bits.
    """
    genesis = await find_genesis(world, run)
    if genesis is None:
        head = await world.chain.head()
        first = window_of(head, run.window) + 1
        seed_block = Timetable(first, run.window).seed_block
        if head + 4 >= seed_block:  # registration and this commitment must be final before the first seed
            first += 1
        message = GenesisMessage(bytes.fromhex(run.run_id), bytes.fromhex(run.data.manifest), first, root_0)
        await world.chain.commit(world.key, encode_commitment(world.bucket.locator, message))
        if not await until_final(world.chain, world.clock, await world.chain.head(), world.stop):
            raise Stopped
        genesis = await find_genesis(world, run)
        assert genesis is not None  # final, and at least our own
    if genesis.root != root_0:
        raise ConfigError(
            f"run {run.run_id}: the genesis on chain has theta_0 root {genesis.root.hex()[:16]}, this machine "
            f"computes {root_0.hex()[:16]}: update jax, or report this device, it cannot take part"
        )
    return genesis
