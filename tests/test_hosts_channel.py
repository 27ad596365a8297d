"""Process 0 and another find each other on the channel; here both ends are in one process."""

import contextlib
import dataclasses
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client
from pathlib import Path

import pytest
from hosts_ports import free_ports
from node_network import RUN

from templar_jax.config import HostsConfig, NodeConfig
from templar_jax.errors import ConfigError, DataError
from templar_jax.hosts.channel import Caller, Listening, address, key_of
from templar_jax.hosts.open import ending, follow_host

SECONDS = 30.0  # for what takes a moment


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    """Host 0 of two."""
    return NodeConfig(home=str(tmp_path), hosts=HostsConfig(2, 0, f"127.0.0.1:{free_ports()}"))


@contextlib.contextmanager
def beside(work) -> Iterator[None]:
    """Runs `work` on a thread, which has ended afterwards."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(SECONDS)
        assert not thread.is_alive()


def listen(node: NodeConfig) -> Listening:
    return Listening(dataclasses.replace(node, hosts=dataclasses.replace(node.hosts, index=1)))


def end(caller: Caller, listening: Listening, code: int) -> None:
    with beside(lambda: caller.end(code)):
        assert listening.receive() == ("end", code)
        listening._connection.close()


def test_strangers_do_not_keep_the_hosts_from_meeting(node):
    caller, where = Caller(node), address(node.hosts)
    with contextlib.ExitStack() as open_until_the_end:
        silent = [open_until_the_end.enter_context(socket.create_connection(where)) for _ in range(3)]
        silent[1].sendall(b"\x00\x00")  # half of a message's length, and nothing after it
        with socket.create_connection(where) as other:
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with beside(lambda: caller.gather(SECONDS)):
            Client(where, authkey=key_of(node)).close()  # a host that died when it had shown that it has the key
            listening = listen(node)
        caller.announce("step", [3], True, memoryview(b"arguments"))
        assert listening.receive() == ("call", "step", [3], True, b"arguments")
        end(caller, listening, 0)


def test_hosts_that_do_not_come_are_named(node):
    node = dataclasses.replace(node, hosts=dataclasses.replace(node.hosts, count=3))
    caller = Caller(node)
    with socket.create_connection(address(node.hosts)), pytest.raises(ConfigError, match="host 1, 2 of 3 did not come"):
        caller.gather(0.5)


def test_a_host_0_that_fails_before_it_compares_ends_the_others_in_one_line(node):
    caller, said = Caller(node), []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with beside(lambda: caller.gather(SECONDS)):
        listening = listen(node)

    def fail() -> None:
        with contextlib.suppress(DataError), ending(caller):
            raise DataError("others' pages")

    try:
        with beside(fail):
            code = follow_host(listening, RUN, node, Path(node.home), said.append, pytest.fail)
            listening._connection.close()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert code == 1 and said == ["host 0 failed, and says why; this host ends with it"]
