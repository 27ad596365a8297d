"""What a contribution is on a device: one `Packed` per parameter.

Letters: T tiles of a unit (row-major over the unit), k values kept per tile.
"""

from typing import NamedTuple

import jax
import numpy as np


class Packed(NamedTuple):
    """The kept values of one parameter, tile by tile; leading dims are the parameter's stack (layer).

    indices: uint16 [*stack, T, k], offset in the tile, strictly ascending.
    codes: uint8 [*stack, T, k], 0..3.
    scales: quantiser sign1: uint8 [*stack, T], the tile's log scale code;
      v213: float32 [*stack, 4], the unit's table of values, one per code.
    """

    indices: jax.Array | np.ndarray
    codes: jax.Array | np.ndarray
    scales: jax.Array | np.ndarray
