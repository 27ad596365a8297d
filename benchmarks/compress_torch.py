"""The same compression in plain eager torch: tiles by permutation, torch.topk, scatter, bytes packed with tensor ops.

Written for comparison, the way one would write it without looking at a profile; it uses all cores.

Letters: n all tiles of a parameter, N elements of a tile, k values kept.
"""

from collections.abc import Mapping

import torch  # pyright: ignore[reportMissingImports]

from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import UNIT_CODE, levels, sign1_table
from templar_jax.compress.tiles import Tiling


def to_tiles(x: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    if len(tiling.sides) == 1:
        return x.reshape(-1, tiling.size)
    (rows, cols), (grid_rows, grid_cols) = tiling.sides, tiling.grid
    return x.reshape(-1, grid_rows, rows, grid_cols, cols).permute(0, 1, 3, 2, 4).reshape(-1, tiling.size)


def from_tiles(tiles: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    if len(tiling.sides) == 1:
        return tiles.reshape(tiling.param.shape)
    (rows, cols), (grid_rows, grid_cols) = tiling.sides, tiling.grid
    return tiles.reshape(-1, grid_rows, grid_cols, rows, cols).permute(0, 1, 3, 2, 4).reshape(tiling.param.shape)


def pack(indices: torch.Tensor | None, codes: torch.Tensor, scales: torch.Tensor) -> list[torch.Tensor]:
    quads = codes.reshape(-1, 4)
    packed = [scales, quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6]
    if indices is not None:
        pairs = indices.to(torch.int32).reshape(-1, 2)
        word = pairs[:, 0] | pairs[:, 1] << 12
        packed.append(torch.stack([word & 0xFF, word >> 8 & 0xFF, word >> 16], 1).to(torch.uint8))
    return packed


def taken(packed: Mapping[str, Packed]) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """One of our decoded contributions, as `TorchCompress.unpack` would give it."""
    return {
        name: (
            torch.from_numpy(one.indices.astype("int64")).reshape(-1, one.indices.shape[-1]),
            torch.from_numpy(one.codes.copy()).reshape(-1, one.codes.shape[-1]),
            torch.from_numpy(one.scales.copy()).reshape(-1),
        )
        for name, one in packed.items()
    }


class TorchCompress:
    """Tensors of one peer, and the three jobs."""

    def __init__(self, cut: Mapping[str, Tiling], start: dict, end: dict, decay: float) -> None:
        self.cut, self.decay = cut, decay
        self.start = {name: torch.from_numpy(value) for name, value in start.items()}
        self.end = {name: torch.from_numpy(value) for name, value in end.items()}
        self.feedback = {name: torch.zeros_like(value) for name, value in self.start.items()}
        self.levels = {n: levels(t.k, t.size) for n, t in cut.items()}
        self.tables = {n: torch.from_numpy(sign1_table(t.k, t.size)).reshape(-1) for n, t in cut.items()}

    def compress(self) -> bytes:
        parts = []
        for name, tiling in self.cut.items():
            total = self.feedback[name].mul_(self.decay).add_(self.start[name] - self.end[name])
            tiles = to_tiles(total, tiling)
            indices = torch.topk(tiles.abs(), tiling.k, sorted=False).indices.sort().values
            values = tiles.gather(1, indices)
            mean = values.abs().mean(1)
            scales = (torch.log2(mean) * 8).round().add_(UNIT_CODE).clamp_(0, 255).to(torch.uint8)
            high = values.abs() >= torch.exp2((scales.float() - UNIT_CODE) / 8)[:, None] * self.levels[name][2]
            codes = (values < 0).to(torch.uint8) * 2 + high.to(torch.uint8)
            sent = self.tables[name][scales.to(torch.int64)[:, None] * 4 + codes]
            self.feedback[name] = from_tiles(tiles.scatter_(1, indices, values - sent), tiling)
            parts += pack(None if tiling.full else indices, codes, scales)
        return b"".join(part.numpy().tobytes() for part in parts)

    def pack(self, contribution: dict) -> bytes:
        """The inverse of `unpack`."""
        parts = []
        for name, tiling in self.cut.items():
            indices, codes, scales = contribution[name]
            parts += pack(None if tiling.full else indices, codes, scales)
        return b"".join(part.numpy().tobytes() for part in parts)

    def unpack(self, data: bytes) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Per parameter indices int64 [n, k], codes uint8 [n, k], scales uint8 [n]; checked as a peer's would be.

        Indices have 12 bits here, as in the reference; ours are coded, which is more work for fewer bytes.
        """
        flat, used, out = torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, {}

        def take(count: int) -> torch.Tensor:
            nonlocal used
            used += count
            return flat[used - count : used]

        for name, tiling in self.cut.items():
            n, k = tiling.param.units * tiling.tiles, tiling.k
            scales = take(n)
            quads = take(n * k // 4)
            codes = torch.stack([quads >> place & 3 for place in (0, 2, 4, 6)], 1).reshape(n, k)
            if tiling.full:
                indices = torch.arange(k).expand(n, k)
            else:
                three = take(n * k * 3 // 2).reshape(-1, 3).to(torch.int64)
                word = three[:, 0] | three[:, 1] << 8 | three[:, 2] << 16
                indices = torch.stack([word & 0xFFF, word >> 12], 1).reshape(n, k)
                if not (indices[:, 1:] > indices[:, :-1]).all() or int(indices.max()) >= tiling.size:
                    raise ValueError("bad indices")
            out[name] = indices, codes, scales
        return out

    def values(self, name: str, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return self.tables[name][scales.to(torch.int64)[:, None] * 4 + codes]

    def decode(self, data: bytes) -> dict[str, torch.Tensor]:
        dense = {}
        for name, (indices, codes, scales) in self.unpack(data).items():
            tiling = self.cut[name]
            tiles = torch.zeros(indices.shape[0], tiling.size)
            tiles.scatter_(1, indices, self.values(name, codes, scales))
            dense[name] = from_tiles(tiles, tiling)
        return dense

    @staticmethod
    def compact(contribution: dict) -> dict:
        """As a node would hold it until it is needed: 2 bytes an index, like ours."""
        return {n: (indices.to(torch.int16), codes, scales) for n, (indices, codes, scales) in contribution.items()}

    def aggregate(self, contributions: list[dict]) -> dict[str, torch.Tensor]:
        """start - mean of the contributions, each clipped per unit to the lower median norm."""
        params = {}
        for name, tiling in self.cut.items():
            units = tiling.param.units
            all_values = [self.values(name, *one[name][1:]).reshape(units, -1) for one in contributions]
            norms = torch.stack([values.norm(dim=1) for values in all_values])
            factors = (norms.median(0).values / norms.clamp(min=1e-30)).clamp(max=1.0) / len(contributions)
            total = torch.zeros(units * tiling.tiles, tiling.size)
            for one, values, factor in zip(contributions, all_values, factors, strict=True):
                indices = one[name][0].to(torch.int64)
                total.scatter_add_(1, indices, (values * factor[:, None]).reshape(indices.shape))
            params[name] = self.start[name] - from_tiles(total, tiling)
        return params


def use_cores(cores: int) -> None:
    torch.set_num_threads(cores)
