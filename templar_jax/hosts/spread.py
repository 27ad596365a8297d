"""An engine whose functions run on all processes of a miner, each on its part of the arrays and of a batch.

Letters: B sequences of an inner step, S tokens of a sequence.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from templar_jax.compress.codec import encode_stream, join_streams
from templar_jax.compress.packed import Packed
from templar_jax.compress.tiles import tilings
from templar_jax.config import RunConfig
from templar_jax.data.loader import Loader, PageSource, make_loader
from templar_jax.hosts.calls import Announcer, Functions
from templar_jax.node.engine import Engine


@dataclass
class Share:
    """What one process has for itself: its own rows of each batch, its own streams of a contribution."""

    engine: Engine
    source: PageSource
    index: int
    count: int
    loader: Loader | None = None
    packed: dict[str, Packed] | None = None

    def open_loader(self, page_ids: list[int], what: dict[str, Any]) -> None:
        if self.loader is not None:
            self.loader.close()
        self.loader = make_loader(self.source, page_ids, rows=own_rows(self.engine), **what)

    def next_batch(self) -> jax.Array:
        """int32 [B, S] on the mesh, of which this process made its own rows."""
        assert self.loader is not None
        run = self.engine.run
        shape = run.inner.batch, run.data.sequence
        return jax.make_array_from_process_local_data(self.engine.inner.batch_sharding, next(self.loader), shape)

    def step(self, params: Any, opt: Any, batch: np.ndarray | None, number: int) -> Any:
        return self.engine.inner.step(params, opt, self.next_batch() if batch is None else batch, number)

    def compress(self, feedback: Any, start: Any, end: Any) -> tuple[Any, dict[str, Packed]]:
        feedback, self.packed = self.engine.compressor.update(feedback, start, end)
        return feedback, self.packed

    def own_streams(self) -> dict[str, bytes]:
        """Of the contribution that `compress` has just made."""
        assert self.packed is not None
        cut, writers = tilings(self.engine.run), stream_writers(self.engine.run, self.count)
        return {name: encode_stream(cut[name], self.packed[name]) for name in cut if writers[name] == self.index}


def own_rows(engine: Engine) -> list[int]:
    """Rows of a batch that lie on this process's devices, ascending."""
    shape = engine.run.inner.batch, engine.run.data.sequence
    parts = engine.inner.batch_sharding.addressable_devices_indices_map(shape).values()
    return sorted({row for part in parts if part is not None for row in range(*part[0].indices(shape[0]))})


def stream_writers(run: RunConfig, count: int) -> dict[str, int]:
    """Which of `count` processes encodes each parameter: the largest first, to whom has least so far."""
    work, writers = [0] * count, {}
    for name, tiling in sorted(tilings(run).items(), key=lambda item: (-item[1].kept, item[0])):
        writers[name] = work.index(min(work))
        work[writers[name]] += tiling.kept
    return writers


def functions(share: Share) -> Functions:
    """By name, what every process can be told to run."""
    engine = share.engine
    return {
        "theta_0": engine.theta_0,
        "begin": engine.inner.begin,
        "init": engine.inner.init,
        "step": share.step,
        "open_loader": share.open_loader,
        "working": engine.working,
        "feedback": engine.compressor.init,
        "compress": share.compress,
        "own_streams": share.own_streams,
        "momentum": engine.outer.init,
        "apply": engine.outer.apply,
        "root": engine.root,
        "salted_root": engine.salted_root,
        "evaluate": engine.evaluate,
        "ready": lambda: None,
    }


class SharedLoader(Loader):
    """Stands on process 0 for the loaders of all processes: `inner.step` takes from each what it made."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __next__(self) -> Any:
        return None

    def state(self) -> dict[str, Any]:
        return self._loader.state()

    def close(self) -> None:
        self._loader.close()


def spread(share: Share, announcer: Announcer) -> Engine:
    """The engine for a miner on process 0: its functions run on all processes. Peers are evaluated by nobody."""
    engine = share.engine

    def named(name: str) -> Callable[..., Any]:
        return lambda *args: announcer.call(name, *args)

    def open_loader(source: PageSource, page_ids: Any, **what: Any) -> Loader:
        share.source = source
        announcer.call("open_loader", list(map(int, page_ids)), what)
        assert share.loader is not None
        return SharedLoader(share.loader)

    def encode(packed: dict[str, Packed]) -> bytes:
        assert packed is share.packed  # the others have theirs of the same call
        streams = announcer.collect("own_streams")
        return join_streams(engine.run, {name: data for part in streams for name, data in part.items()})

    return dataclasses.replace(
        engine,
        inner=dataclasses.replace(engine.inner, begin=named("begin"), init=named("init"), step=named("step")),
        compressor=dataclasses.replace(engine.compressor, init=named("feedback"), update=named("compress")),
        outer=dataclasses.replace(engine.outer, init=named("momentum"), apply=named("apply")),
        root=named("root"),
        salted_root=named("salted_root"),
        evaluate=named("evaluate"),
        theta_0=named("theta_0"),
        working=named("working"),
        encode=encode,
        make_loader=open_loader,
    )
