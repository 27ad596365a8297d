"""Yuma consensus 3: how a Bittensor subnet turns validators' weights into incentive, dividends and emission.

Pure NumPy in float64; formulas from docs.learnbittensor.org (Yuma Consensus, epoch, Yuma 3), without liquid alpha.
The chain computes the same in 32.32 fixed point, so values agree to about 1e-6, not to the bit.

Letters: N neurons by uid (as validators i, as miners j).
"""

from dataclasses import dataclass

import numpy as np

KAPPA = 32767 / 65535  # majority: the chain's u16 for one half, just below it, so that exactly half the stake suffices
ALPHA = 0.1  # share of this tempo in the moving average of bonds (bonds_moving_average = 900,000 of 1,000,000)
RESOLUTION = 2.0**-32  # of a bond, as in the chain's fixed point
PENALTY = 1.0  # 1: bonds come from clipped weights; 0: from the weights as they were set


@dataclass(frozen=True)
class Epoch:
    """What one epoch yields. All arrays float64 of shape [N] but `bonds_NN`."""

    consensus_N: np.ndarray  # stake-weighted median weight of each miner
    trust_N: np.ndarray  # sum of a validator's weights after clipping
    incentive_N: np.ndarray  # share of each miner; sums to 1, or all 0
    dividends_N: np.ndarray  # share of each validator; sums to 1, or all 0
    emission_N: np.ndarray  # paid to each neuron; sums to the emission given, if any stake or weight is there
    bonds_NN: np.ndarray  # [i, j] in [0, 1], input of the next epoch


def epoch(
    stake_N: np.ndarray,
    weights_NN: np.ndarray,
    bonds_NN: np.ndarray,
    *,
    permit_N: np.ndarray,
    active_N: np.ndarray,
    emission: float,
    kappa: float = KAPPA,
    alpha: float = ALPHA,
    penalty: float = PENALTY,
) -> Epoch:
    """One epoch.

    Args:
      stake_N: stake, >= 0, any scale.
      weights_NN: [i, j] weight set by i on j, >= 0, any scale per row. The caller has already zeroed entries older
        than j's registration; rows without permit and the diagonal are zeroed here.
      bonds_NN: of the epoch before; the caller has zeroed rows and columns of uids that changed hands.
      permit_N, active_N: bool; only active validators with a permit count.
      emission: paid in all, half to incentive and half to dividends. Where there is neither, by stake.
    """
    stake_N = normalized(np.asarray(stake_N, np.float64))
    voting_N = normalized(np.where(permit_N & active_N, stake_N, 0.0))
    weights_NN = np.where(np.asarray(permit_N)[:, None], np.asarray(weights_NN, np.float64), 0.0)
    np.fill_diagonal(weights_NN, 0.0)
    weights_NN = _divide(weights_NN, weights_NN.sum(1, keepdims=True))

    consensus_N = weighted_median(voting_N, weights_NN, kappa)
    clipped_NN = np.minimum(weights_NN, consensus_N)
    incentive_N = normalized((clipped_NN * voting_N[:, None]).sum(0))

    bought_NN = weights_NN + penalty * (clipped_NN - weights_NN)
    bonds_NN = np.clip((1.0 - alpha) * bonds_NN + alpha * bought_NN, 0.0, 1.0)
    bonds_NN = np.floor(bonds_NN / RESOLUTION) * RESOLUTION  # an average comes to rest, never fades for ever
    held_NN = _divide(bonds_NN, bonds_NN.sum(0, keepdims=True))
    dividends_N = normalized((held_NN * incentive_N).sum(1) * voting_N)

    share_N = normalized(incentive_N + dividends_N)
    if not share_N.any():  # no weights: by stake, of the voting validators if there are any
        share_N = voting_N if voting_N.any() else stake_N
    return Epoch(consensus_N, clipped_NN.sum(1), incentive_N, dividends_N, emission * share_N, bonds_NN)


def weighted_median(stake_N: np.ndarray, weights_NN: np.ndarray, kappa: float = KAPPA) -> np.ndarray:
    """float64 [N]: per column j the largest w that validators with at least `kappa` of the stake reach (w_ij >= w).

    Args:
      stake_N: normalised. All zero gives 0 everywhere.
      weights_NN: [i, j].
    """
    order_NN = np.argsort(-weights_NN, axis=0, kind="stable")
    support_NN = np.cumsum(stake_N[order_NN], axis=0)
    reached_NN = support_NN >= kappa
    first_N = reached_NN.argmax(0)[None] if len(stake_N) else np.zeros((1, 0), np.int64)
    median_N = np.take_along_axis(weights_NN, np.take_along_axis(order_NN, first_N, 0), 0)[0]
    return np.where(reached_NN.any(0), median_N, 0.0)


def normalized(x_N: np.ndarray) -> np.ndarray:
    """x / sum(x), or x where the sum is 0. Plain sums, not BLAS: the same bits in every process of a machine."""
    return _divide(x_N, x_N.sum())


def _divide(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    return x / np.where(by > 0.0, by, 1.0)
