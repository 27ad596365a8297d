"""The SQLite file of a local chain: schema, creation, transactions, and errors as one clear line.

Rows carry the block that they stand in. A row's block is always newer than the sealed height at the time of writing,
so nothing at or below that height ever changes (see `local`).
"""

import dataclasses
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from templar_jax.errors import ChainError

MEMORY = ":memory:"
BUSY_SECONDS = 10.0  # that a call waits for another process's transaction
SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE rules (version INTEGER, network TEXT, secret BLOB, genesis REAL, rules TEXT);
CREATE TABLE sealed (height INTEGER);
CREATE TABLE neurons (uid INTEGER, registered INTEGER, hotkey TEXT, replaced INTEGER,
                      PRIMARY KEY (uid, registered)) WITHOUT ROWID;
CREATE INDEX neurons_by_hotkey ON neurons (hotkey);
CREATE TABLE stakes (hotkey TEXT, block INTEGER, stake REAL, PRIMARY KEY (hotkey, block)) WITHOUT ROWID;
CREATE TABLE weights (hotkey TEXT, block INTEGER, weights BLOB, PRIMARY KEY (hotkey, block)) WITHOUT ROWID;
CREATE TABLE commitments (block INTEGER, idx INTEGER, hotkey TEXT, fields BLOB, space INTEGER,
                          PRIMARY KEY (block, idx)) WITHOUT ROWID;
CREATE INDEX commitments_by_hotkey ON commitments (hotkey, block);
CREATE TABLE epochs (block INTEGER PRIMARY KEY, incentive BLOB, dividends BLOB, emission BLOB);
CREATE TABLE bonds (bonds BLOB);
INSERT INTO sealed VALUES (0);
INSERT INTO bonds VALUES (x'');
"""


@dataclass(frozen=True)
class Limits:
    """What a subnet allows; defaults are Bittensor's. All times in blocks."""

    max_uids: int = 256
    immunity: int = 4096  # a newcomer cannot be replaced for so long, unless all are newcomers
    max_validators: int = 64  # neurons of most stake that hold a permit; without stake none does
    weights_interval: int = 100  # between two set_weights of one hotkey
    activity_cutoff: int = 5000  # a validator that has set no weights for longer has no vote
    space: int = 3100  # bytes that one hotkey may commit in a tempo
    min_space: int = 100  # that a commitment takes at least
    emission: float = 1.0  # per block


@dataclass(frozen=True)
class Rules:
    """The parameters of a local chain, fixed when it is created."""

    block_seconds: float = 1.0
    finality: int = 1  # blocks until a block is final
    tempo: int = 360  # blocks from one epoch (Yuma consensus, payment) to the next
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.block_seconds <= 0 or self.finality < 0 or self.tempo < 1 or self.limits.max_uids < 1:
            raise ChainError(
                f"a chain cannot have {self}: use block_seconds > 0, finality >= 0, tempo >= 1, max_uids >= 1"
            )


@dataclass(frozen=True)
class Ledger:
    """An open chain file with what was fixed at its creation."""

    db: sqlite3.Connection
    path: str
    network: str
    secret: bytes  # keys the block hashes
    genesis: float  # clock time of block 0
    rules: Rules


def create(path: str | Path, network: str, rules: Rules, genesis: float, secret: bytes | None) -> Ledger:
    """The chain at `path`, made if there is none; of several processes that start together one makes it.

    A file appears under its name only when it is complete (a hard link of a finished draft), in WAL mode already:
    switching an open database to WAL is the one step that SQLite does not let concurrent processes wait for.
    """
    secret = secret or secrets.token_bytes(32)
    row = (SCHEMA_VERSION, network, secret, genesis, json.dumps(dataclasses.asdict(rules)))
    if str(path) == MEMORY:
        db = sqlite3.connect(MEMORY, isolation_level=None)
        _fill(db, row)
        return Ledger(db, MEMORY, network, secret, genesis, rules)
    path = Path(path)
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with guarded(str(path)), closing(sqlite3.connect(draft, isolation_level=None)) as db:
                    db.execute("PRAGMA journal_mode = WAL")
                    _fill(db, row)
                os.link(draft, path)
            finally:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{draft}{suffix}").unlink(missing_ok=True)
        except FileExistsError:
            if not path.is_file():  # not the draft of another process, but something in the way
                raise ChainError(f"cannot create the local chain {path}: something else lies there; move it") from None
        except OSError as error:
            raise ChainError(f"cannot create the local chain {path}: {error.strerror or error}") from error
    ledger = open_file(path)
    if ledger.network != network:
        ledger.db.close()
        raise ChainError(
            f"{path} is the chain of network {ledger.network!r}, not {network!r}: use that name or another path"
        )
    return ledger


def open_file(path: str | Path) -> Ledger:
    """The existing chain at `path`. ChainError if there is none or the file is something else."""
    if not Path(path).is_file():
        raise ChainError(f"no local chain at {path}: start a miner there first, or check the path")
    with guarded(str(path)):
        db = sqlite3.connect(f"file:{_uri(path)}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")  # a block that was seen survives a power cut
            found = db.execute("SELECT version, network, secret, genesis, rules FROM rules").fetchone()
        except BaseException:
            db.close()
            raise
    version, network, secret, genesis, text = found
    if version != SCHEMA_VERSION:
        db.close()
        raise ChainError(f"{path} has schema {version}, this program reads {SCHEMA_VERSION}: start a new chain")
    fields = json.loads(text)
    return Ledger(db, str(path), network, secret, genesis, Rules(**{**fields, "limits": Limits(**fields["limits"])}))


def _uri(path: str | Path) -> str:
    return Path(path).absolute().as_uri().removeprefix("file://")


def _fill(db: sqlite3.Connection, rules_row: tuple[object, ...]) -> None:
    with transaction(db):
        for statement in filter(str.strip, SCHEMA.split(";")):
            db.execute(statement)
        db.execute("INSERT INTO rules VALUES (?, ?, ?, ?, ?)", rules_row)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Holds the write lock of the whole file; all or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def guarded(path: str) -> Iterator[None]:
    """Turns SQLite's errors into a ChainError that says what to do. Nothing half-written stays behind."""
    try:
        yield
    except sqlite3.Error as error:
        raise ChainError(_explain(path, error)) from error


def _explain(path: str, error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            f"local chain {path} has been locked by another process for {BUSY_SECONDS:g} s: stop that one or try again"
        )
    if code == sqlite3.SQLITE_FULL:
        return f"disk full at local chain {path}: free some space and start again; what was committed is safe"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"local chain {path} is not writable ({error}): check the owner and mode of the file and its folder"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return f"{path} is not a readable local chain ({error}): restore it or start a new one elsewhere"
    return f"local chain {path} failed: {error}; check the disk and start again"
