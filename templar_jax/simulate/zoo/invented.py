"""Class (a): contributions in the right format with wrong values."""

import numpy as np

from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import SCALES
from templar_jax.node.craft import Trained
from templar_jax.node.world import Node
from templar_jax.simulate.role import Role
from templar_jax.simulate.zoo.entry import Adversary, alone
from templar_jax.simulate.zoo.sending import Contribution, added, between, changed, idle, negated, own, scaled, sending


async def noise(node: Node, _: Trained) -> Contribution:
    """As large as H optimizer steps could come to; what is larger than the median is clipped to it anyway."""
    inner, start = node.run.inner, node.state.params
    return await between(node, start, lambda: added(node, start, inner.lr * inner.steps))


async def zeros(node: Node, _: Trained) -> Contribution:
    start = node.state.params
    return await between(node, start, lambda: start)


async def flipped(node: Node, trained: Trained) -> Contribution:
    """Up the hill instead of down: the most harmful direction that one contribution has."""
    return changed(await own(node, trained), negated)


async def hundredfold(node: Node, trained: Trained) -> Contribution:
    return changed(await own(node, trained), lambda packed: scaled(packed, 100.0))


async def not_numbers(node: Node, trained: Trained) -> Contribution:
    """Not-a-numbers where the quantiser's table can hold them, else the largest value that it can express."""

    def change(packed: Packed) -> Packed:
        number = np.nan if packed.scales.dtype == np.float32 else SCALES - 1
        return packed._replace(scales=np.full_like(packed.scales, number))

    return changed(await own(node, trained), change)


ROWS = {
    "noise": Adversary("a", "trains nothing, sends noise", alone(lambda: Role(craft=idle(noise)))),
    "zeros": Adversary("a", "trains nothing, sends a contribution of zeros", alone(lambda: Role(craft=idle(zeros)))),
    "sign-flip": Adversary("a", "trains and sends the opposite", alone(lambda: Role(craft=sending(flipped)))),
    "norm-x100": Adversary(
        "a", "trains and sends 100 times the values", alone(lambda: Role(craft=sending(hundredfold)))
    ),
    "nan": Adversary(
        "a",
        "NaN where the quantiser can hold it (v213), else the largest value that it can express",
        alone(lambda: Role(craft=sending(not_numbers))),
    ),
}
