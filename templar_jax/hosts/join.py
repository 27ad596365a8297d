"""How the processes of one miner find each other."""

import time

import jax

from templar_jax.config import NodeConfig
from templar_jax.errors import ConfigError, line_of
from templar_jax.hosts.channel import GRACE, Caller, Listening

MEET_SECONDS = 300  # that a process waits for the others to be started


def lead(config: NodeConfig) -> Caller | None:
    """Process 0: waits for all others; afterwards `jax.devices()` are those of all. None: there is but one process.

    Before the first use of a device. Raises ConfigError: they do not come together.
    """
    if config.hosts.count == 1:
        return None
    caller, deadline = Caller(config), time.monotonic() + MEET_SECONDS
    _meet(config)
    caller.gather(max(GRACE, deadline - time.monotonic()))  # who came last has still to connect
    return caller


def listen(config: NodeConfig) -> Listening:
    """Another process: the same. Raises ConfigError, also where it has not the same key."""
    _meet(config)
    return Listening(config)


def _meet(config: NodeConfig) -> None:
    """A host that is silent for `heartbeat_seconds` is lost from here on.

    JAX then aborts the other processes (SIGABRT, no Python exception), which their parents tell the user (watch.py).
    """
    hosts = config.hosts
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from the node's clean stop
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.count,
            hosts.index,
            initialization_timeout=MEET_SECONDS,
            heartbeat_timeout_seconds=hosts.heartbeat_seconds,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"the {hosts.count} hosts did not meet at {hosts.coordinator} within {MEET_SECONDS} s "
            f"({line_of(error)}): start one process for each index, and check the address"
        ) from error
    jax.devices()  # returns when every process has shown its devices; one that waited on the channel first would not
