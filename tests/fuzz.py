"""Bytes of strangers, a hundred thousand times: mutated contributions, sealed objects, manifests, indexes, commitments.

    python tests/fuzz.py --cases 100000 --seed 1 --json fuzz.json

Each case takes valid bytes, changes them as an attacker could (who signs his own headers and manifests), and hands them
to what a node calls. It must refuse them with a typed reason, or accept what is the one encoding of a valid object;
and allocate at most twice what a valid object takes. A failing case is named by its kind and seed. The suite
runs a sample (test_fuzz.py).
"""

import argparse
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from templar_jax.chain import address
from templar_jax.chain.keys import Keypair
from templar_jax.chain.messages import ManifestMessage, encode_commitment, parse_commitment
from templar_jax.compress import codec
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import tilings
from templar_jax.config import CompressConfig, ModelConfig, RunConfig
from templar_jax.errors import RefusedError
from templar_jax.node import gather
from templar_jax.node.forkchoice import Claim
from templar_jax.store import manifest as manifests
from templar_jax.store import parts, seal
from templar_jax.store.refusals import REASONS

WINDOW, UID, KEY = 7, 3, bytes(range(32))
SMALL = ModelConfig(vocab=320, dim=64, layers=1, heads=1, kv_heads=1, head_dim=64, ffn_dim=64)
MINER = Keypair.create_from_seed(b"\x11" * 32)
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
SLACK = 2**11  # bytes: an error and its traceback weigh more than a tiny object


@dataclass(frozen=True)
class Kind:
    """One kind of bytes: a valid one, what an attacker does after the mutation, and how a node takes them.

    take: raises RefusedError, or returns the canonical bytes of what it accepted (b"": refused without an error).
    """

    valid: Callable[[int], bytes]  # by seed
    take: Callable[[bytes], bytes]
    resign: Callable[[bytes], bytes] = lambda data: data


@dataclass
class Report:
    cases: int = 0
    accepted: int = 0
    refused: Counter = field(default_factory=Counter)
    largest: float = 0.0  # allocation over that of a valid object


@cache
def run_of(quantizer: str) -> RunConfig:
    return RunConfig(name="fuzz", model=SMALL, compress=CompressConfig(k=33, quantizer=quantizer))  # type: ignore[arg-type]


def contribution(quantizer: str, seed: int) -> bytes:
    """A valid contribution with random content."""
    rng, run, packed = np.random.default_rng(seed), run_of(quantizer), {}
    for name, tiling in tilings(run).items():
        shape, stack = tiling.packed_shape, tiling.param.shape[: tiling.param.stack]
        order = np.argsort(rng.random((*shape[:-1], tiling.size)), -1)[..., : tiling.k]
        scales = rng.integers(0, 256, shape[:-1]).astype(np.uint8)
        if quantizer == "v213":
            scales = rng.standard_normal((*stack, 4)).astype(np.float32)
        packed[name] = Packed(np.sort(order, -1).astype(np.uint16), rng.integers(0, 4, shape).astype(np.uint8), scales)
    return codec.encode(run, packed)


def decode_again(quantizer: str, data: bytes) -> bytes:
    return codec.encode(run_of(quantizer), codec.decode(run_of(quantizer), data))


def sealed(seed: int) -> bytes:
    return reseal(contribution("sign1", seed))


def resign_header(data: bytes) -> bytes:
    """The owner of a hotkey signs whatever header it likes."""
    if len(data) < seal.HEADER_BYTES:
        return data
    body = data[: seal.SIGNATURE_AT]
    return body + bytes(MINER.sign(seal._SIGNED + body)) + data[seal.HEADER_BYTES :]


def open_as_a_node(data: bytes) -> bytes:
    """As `gather.open_contribution`, for a commitment that the attacker made to these very bytes."""
    run, digest = run_of("sign1"), seal.sealed_hash(data)
    header = gather.check(run, Claim(UID, MINER.ss58_address, "files:/x", digest, 5, 0), WINDOW, data)
    codec.decode(run, seal.open_sealed(data, KEY, header))
    return data


def reseal(data: bytes) -> bytes:
    """Any plaintext, properly sealed."""
    claim = seal.Claim(run_of("sign1").run_id, WINDOW, UID, inner_steps=30, first_loss=5.5)
    return seal.seal(claim, data, MINER, KEY)


def manifest(seed: int) -> bytes:
    rng = random.Random(seed)
    hotkeys = [Keypair.create_from_seed(bytes([n]) * 32).ss58_address for n in range(1, 6)]
    accepted = tuple(
        manifests.Accepted(uid, hotkeys[uid], rng.randbytes(32), rng.randbytes(32), rng.randbytes(32), 30)
        for uid in range(4)
    )
    refused = ((5, "late"), (9, "no-key"))
    found = manifests.Manifest(bytes(16), WINDOW, 4, rng.randbytes(32), rng.randbytes(32), accepted, refused)
    return manifests.encode_manifest(manifests.sign_manifest(found, MINER))


def resign_manifest(data: bytes) -> bytes:
    """A leader signs whatever well-formed manifest it likes."""
    try:
        found = manifests.decode_manifest(data)
    except RefusedError:
        return data
    return manifests.encode_manifest(manifests.sign_manifest(replace(found, signatures=()), MINER))


def take_manifest(data: bytes) -> bytes:
    found = manifests.decode_manifest(data)
    return manifests.encode_manifest(found) if manifests.verify_manifest(found, MINER.ss58_address) else b""


def index(seed: int) -> bytes:
    rng = random.Random(seed)
    return parts.encode_index(parts.Index(100, 30, rng.randbytes(32), tuple(rng.randbytes(32) for _ in range(4))))


def commitment(seed: int) -> bytes:
    rng = random.Random(seed)
    locator, message = encode_commitment(
        "files:/bucket", ManifestMessage(WINDOW, rng.randbytes(32), 4, rng.randbytes(32))
    )
    return bytes([len(locator)]) + locator + message


def take_commitment(data: bytes) -> bytes:
    split = 1 + (data[0] if data else 0)
    parsed = parse_commitment((data[1:split], data[split:]))
    if parsed is None:
        return b""
    locator, message = encode_commitment(parsed.locator, parsed.message)
    return bytes([len(locator)]) + locator + message


KINDS: dict[str, Kind] = {
    "contribution": Kind(lambda s: contribution("sign1", s), lambda d: decode_again("sign1", d)),
    "contribution-v213": Kind(lambda s: contribution("v213", s), lambda d: decode_again("v213", d)),
    "sealed": Kind(sealed, open_as_a_node),
    "sealed-signed": Kind(sealed, open_as_a_node, resign_header),
    "sealed-plaintext": Kind(lambda s: contribution("sign1", s), open_as_a_node, reseal),
    "manifest": Kind(manifest, take_manifest),
    "manifest-signed": Kind(manifest, take_manifest, resign_manifest),
    "index": Kind(index, lambda data: parts.encode_index(parts.decode_index(data))),
    "commitment": Kind(commitment, take_commitment),
}


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One to four changes; half of them in the first 256 bytes, where headers and counts stand."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        reach = min(len(out), 256) if rng.random() < 0.5 else len(out)
        at = rng.randrange(reach) if reach else 0
        match rng.randrange(8):
            case 0 | 1 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 2 if out:
                out[at] = rng.randrange(256)
            case 3:
                width = rng.choice((1, 2, 4, 8))
                out[at : at + width] = (rng.choice(EXTREMES) % 256**width).to_bytes(width, "little")
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 16, 300)))
            case 5:
                del out[at : at + rng.choice((1, 2, 16, 300))]
            case 6:
                out[at:] = other[at:]  # the tail of another valid object
            case _:
                del out[at:]
    return bytes(out)


@cache
def valid(name: str, seed: int) -> tuple[bytes, int]:
    """(a valid object as the node gets it, bytes that taking it allocates at most)."""
    kind = KINDS[name]
    data = kind.valid(seed)
    signed = kind.resign(data)
    assert kind.take(signed) == signed, f"a valid {name} was refused"
    return data, _peak(lambda: kind.take(signed))


def _peak(work: Callable[[], object]) -> int:
    """Bytes. The bounded caches of addresses start empty: their growth is no object's doing."""
    for cached in (address.address, address.public_key):
        cached.cache_clear()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    work()
    return tracemalloc.get_traced_memory()[1] - before


def one(name: str, seed: int, report: Report) -> None:
    """Runs one case. AssertionError, or whatever the bytes set off, where a node would fail."""
    rng, kind = random.Random(f"{name}/{seed}"), KINDS[name]
    data, usual = valid(name, seed % 16)
    changed = kind.resign(mutate(rng, data, valid(name, (seed + 1) % 16)[0]))

    def take() -> None:
        try:
            taken = kind.take(changed)
        except RefusedError as error:
            assert error.reason in REASONS and "\n" not in str(error), error
            report.refused[error.reason] += 1
            return
        assert taken in (b"", changed), "accepted, but not the one encoding of what was accepted"
        report.accepted += taken == changed
        report.refused["ignored"] += taken == b""

    peak = _peak(take)
    assert peak <= 2 * usual + SLACK, f"{peak} bytes allocated, a valid one takes {usual}"
    report.cases += 1
    report.largest = max(report.largest, peak / usual)


def fuzz(cases: int, seed: int) -> dict[str, Report]:
    """Runs `cases` cases, spread evenly over the kinds. AssertionError names the first that fails."""
    reports = {name: Report() for name in KINDS}
    tracemalloc.start()
    try:
        for name, number in _spread(cases, seed):
            try:
                one(name, number, reports[name])
            except Exception as error:
                raise AssertionError(f"{name}, seed {number}: {type(error).__name__}: {error}") from error
    finally:
        tracemalloc.stop()
    return reports


def _spread(cases: int, seed: int) -> Iterator[tuple[str, int]]:
    names = list(KINDS)
    return ((names[n % len(names)], seed * 10_000_000 + n) for n in range(cases))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    reports = fuzz(args.cases, args.seed)
    figures = {name: {**vars(report), "refused": dict(report.refused)} for name, report in reports.items()}
    for name, found in figures.items():
        print(f"{name:18} {found['cases']:6} cases, {found['accepted']:5} valid, {found['largest']:.2f} x memory")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
