"""The parts of hosts/ that need no second process."""

import dataclasses
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from node_network import RUN

from templar_jax.compress.codec import encode, encode_stream, join_streams
from templar_jax.compress.feedback import make_compressor
from templar_jax.compress.tiles import tilings
from templar_jax.config import HostsConfig, MeshConfig, NodeConfig
from templar_jax.config_check import node_problems
from templar_jax.errors import ConfigError
from templar_jax.hosts.calls import dumps, loads
from templar_jax.hosts.channel import LOST, Hello, key_of
from templar_jax.hosts.spread import stream_writers
from templar_jax.hosts.watch import AT_ONCE, verdict
from templar_jax.sharding import make_mesh

HOSTS = HostsConfig(count=2, index=1, coordinator="127.0.0.1:7000", heartbeat_seconds=30)


@pytest.mark.parametrize(
    "code, asked, exit_code, words",
    [
        (0, [], 0, ""),
        (1, [], 1, ""),
        (LOST, [], LOST, ""),  # the worker said so itself
        (-signal.SIGABRT, [], LOST, "silent for 30 s"),
        (-signal.SIGKILL, [], 128 + signal.SIGKILL, "killed by SIGKILL"),
        (-signal.SIGSEGV, [], 128 + signal.SIGSEGV, "ended by SIGSEGV"),
        (-signal.SIGTERM, [signal.SIGTERM], 0, "before the first window"),
        (-signal.SIGKILL, [signal.SIGINT, signal.SIGINT], AT_ONCE, "at once"),
    ],
)
def test_every_end_of_a_worker_is_told_in_one_line(code, asked, exit_code, words):
    text, result = verdict(HOSTS, code, asked)
    assert result == exit_code
    assert words in text and bool(text) == bool(words) and "\n" not in text


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_streams_of_all_processes_make_the_contribution(count):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    compressor = make_compressor(RUN, mesh)
    rng = np.random.default_rng(3)
    end = {name: jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for name, x in compressor.init().items()}
    _, packed = compressor.update(compressor.init(), compressor.init(), end)
    writers = stream_writers(RUN, count)
    assert writers.keys() == packed.keys() and set(writers.values()) <= set(range(count))
    streams = {}
    for index in reversed(range(count)):
        own = [name for name in packed if writers[name] == index]
        streams |= {name: encode_stream(tilings(RUN)[name], packed[name]) for name in own}
    assert join_streams(RUN, streams) == encode(RUN, packed)


def test_no_process_encodes_much_more_than_its_share():
    kept = {name: tiling.kept for name, tiling in tilings(RUN).items()}
    writers = stream_writers(RUN, 2)
    work = [sum(kept[name] for name in kept if writers[name] == index) for index in range(2)]
    assert max(work) <= sum(work) / 2 + max(kept.values())


def test_arguments_travel_with_arrays_as_numbers_and_the_mesh_as_itself():
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    at = NamedSharding(mesh, jax.P("fsdp"))
    array, theirs = jnp.arange(4.0), jnp.arange(4.0) + 1
    like = jax.ShapeDtypeStruct((4,), np.float32, sharding=at)
    data = dumps(({"a": array}, [like], 7, np.arange(3)), {id(array): 5})
    tree, (struct,), number, tokens = loads(bytes(data), {5: theirs}, mesh)
    assert tree["a"] is theirs and number == 7 and tokens.tolist() == [0, 1, 2]
    assert struct.sharding == at and struct.sharding.mesh is mesh and struct.shape == (4,)
    with pytest.raises(KeyError):  # an array that no call has made
        dumps((theirs,), {id(array): 5})


def test_what_differs_between_hosts_is_named():
    hello = Hello("run", "settings", "folder: token", "0.10.2")
    assert hello.differs(hello) == ""
    named = (
        ("run_id", "run or data"),
        ("settings", "settings"),
        ("folder", "home folder"),
        ("jax", "version of jax"),
    )
    for field, words in named:
        assert words in hello.differs(dataclasses.replace(hello, **{field: "other"}))


def test_the_key_is_made_by_host_0_and_missed_by_others(tmp_path: Path):
    node = NodeConfig(home=str(tmp_path), hosts=dataclasses.replace(HOSTS, index=0))
    other = dataclasses.replace(node, hosts=HOSTS)
    with pytest.raises(ConfigError, match="no usable key"):
        key_of(other)
    key = key_of(node)
    assert len(key) == 32 and key_of(other) == key == key_of(node)
    assert (tmp_path / "hosts.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"index": 2}, "node.hosts.index"),
        ({"count": 0}, "node.hosts.index"),
        ({"heartbeat_seconds": 1}, "heartbeat_seconds"),
        ({"coordinator": "somewhere"}, "host:port"),
        ({"coordinator": "host:123456"}, "host:port"),
        ({"coordinator": "host:65535"}, "host:port"),  # the port after it carries the calls
    ],
)
def test_settings_that_cannot_be(change, words):
    node = NodeConfig(hosts=dataclasses.replace(HOSTS, **change))
    assert any(words in problem for problem in node_problems(RUN, node))
    assert not any("hosts" in problem for problem in node_problems(RUN, NodeConfig(hosts=HOSTS)))
