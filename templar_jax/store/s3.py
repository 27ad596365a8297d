"""S3 buckets (R2, AWS, SeaweedFS, ...): tensorstore writes the own one, obstore reads everybody's.

tensorstore's s3 driver would decompress whatever a peer marks as `Content-Encoding`, so it never reads a peer's bucket;
obstore hands out the raw bytes and shows the attribute, which is refused. Everything in a locator comes off the chain:
`S3Address` admits only plain characters, so nothing of it can break out of an INI file or a URL.
"""

import asyncio
import ipaddress
import os
import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import tensorstore as ts
from obstore.exceptions import BaseError
from obstore.store import S3Store

from templar_jax.errors import ConfigError, NotFound, StoreError, line_of
from templar_jax.store.bucket import ObjectInfo, check_key, check_prefix, is_key
from templar_jax.store.files import put_timeout

CONNECT_TIMEOUT = 10.0  # seconds
LIST_TIMEOUT = 60.0
RETRIES = 3  # the libraries' defaults are many minutes
REQUESTS = 8  # at once, per bucket

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,60}[a-z0-9])?(?::[0-9]{1,5})?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{1,24}")
_ACCESS = re.compile(r"[A-Za-z0-9]{3,64}")
_SECRET = re.compile(r"[A-Za-z0-9/+=]{8,64}")


@dataclass(frozen=True)
class S3Address:
    """Where a bucket is and the key pair to reach it with. Raises ConfigError on a character out of place."""

    host: str  # [a-z0-9.-] with an optional port
    bucket: str
    access: str
    secret: str = field(repr=False)
    region: str = "auto"
    secure: bool = True  # https

    def __post_init__(self) -> None:
        patterns = {"host": _HOST, "bucket": _BUCKET, "access": _ACCESS, "secret": _SECRET, "region": _REGION}
        for name, pattern in patterns.items():
            if not pattern.fullmatch(getattr(self, name)):
                raise ConfigError(f"an S3 {name} of this form is not allowed: it must match {pattern.pattern}")

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}"

    @property
    def public(self) -> bool:
        """False for what a stranger has no business to point us at: plain http, localhost, private addresses."""
        name = self.host.partition(":")[0]
        try:
            return self.secure and ipaddress.ip_address(name).is_global
        except ValueError:  # a name, not a number
            last = name.rpartition(".")[2]
            return self.secure and "." in name and last not in ("localhost", "local", "internal") and not last.isdigit()


def write_spec(address: S3Address, credentials_file: str) -> dict[str, Any]:
    """tensorstore's kvstore spec; the driver takes static keys only from a file."""
    return {
        "driver": "s3",
        "bucket": address.bucket,
        "endpoint": address.endpoint,
        "aws_region": address.region,
        "aws_credentials": {
            "type": "profile",
            "profile": "default",
            "credentials_file": credentials_file,
            "config_file": "/dev/null",
        },
        "context": {
            "s3_request_retries": {"max_retries": RETRIES, "initial_delay": "200ms", "max_delay": "2s"},
            "s3_request_concurrency": {"limit": REQUESTS},
        },
    }


def read_store(address: S3Address, timeout: float) -> S3Store:
    """obstore's store for these keys. `timeout` bounds one request, in seconds."""
    return S3Store(
        address.bucket,
        endpoint=address.endpoint,
        region=address.region,
        access_key_id=address.access,
        secret_access_key=address.secret,
        virtual_hosted_style_request=False,
        client_options={
            "timeout": timedelta(seconds=timeout),
            "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT, timeout)),
            "allow_http": not address.secure,
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=timeout)},
    )


class S3Reader:
    """Somebody's bucket."""

    def __init__(self, address: S3Address, locator: str) -> None:
        self.address = address
        self.locator = locator
        self._where = f"{address.endpoint}/{address.bucket}"  # for messages: the locator holds a key
        self._store = read_store(address, LIST_TIMEOUT)

    async def get(self, key: str, max_bytes: int, timeout: float) -> bytes:
        check_key(key)
        try:
            async with asyncio.timeout(timeout):
                result = await self._store.get_async(key)
                if result.meta["size"] > max_bytes:
                    raise StoreError(
                        f"{self._where}/{key}: {result.meta['size']} bytes, more than the {max_bytes} allowed"
                    )
                if "Content-Encoding" in result.attributes:
                    raise StoreError(f"{self._where}/{key} is marked as compressed: refused")
                data = bytes(await result.bytes_async())
        except FileNotFoundError as error:
            raise NotFound(f"no object {self._where}/{key}") from error
        except TimeoutError as error:
            raise StoreError(f"{self._where} did not send {key} within {timeout:.0f} s") from error
        except (OSError, ValueError, BaseError) as error:
            raise StoreError(f"{self._where}/{key}: {line_of(error)}") from error
        if len(data) > max_bytes:
            raise StoreError(f"{self._where}/{key}: {len(data)} bytes, more than the {max_bytes} allowed")
        return data

    async def list(self, prefix: str, limit: int = 10_000) -> list[ObjectInfo]:
        check_prefix(prefix)
        folder = prefix.rstrip("/") + "/" if prefix else ""
        found: list[ObjectInfo] = []
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                async for chunk in self._store.list(folder or None, chunk_size=1000):
                    for item in chunk:
                        if is_key(item["path"]) and item["path"].startswith(folder):
                            found.append(ObjectInfo(item["path"], item["size"], item["last_modified"].timestamp()))
                    if len(found) >= limit:  # S3 lists in ascending order: a bucket without end costs nothing
                        break
        except TimeoutError as error:
            raise StoreError(f"{self._where} did not list {prefix} within {LIST_TIMEOUT:.0f} s") from error
        except (OSError, ValueError, BaseError) as error:
            raise StoreError(f"cannot list {self._where}/{prefix}: {line_of(error)}") from error
        return sorted(found, key=lambda item: item.key)[:limit]


class S3Bucket(S3Reader):
    """The node's own bucket: `address` carries the write keys, `locator` the read keys that stand on the chain."""

    def __init__(self, address: S3Address, locator: str) -> None:
        super().__init__(address, locator)
        self._writer: ts.KvStore | None = None
        folder = tempfile.mkdtemp(prefix="templar-s3-")  # mode 0700, gone with this object or the process
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, "credentials")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"[default]\naws_access_key_id={address.access}\naws_secret_access_key={address.secret}\n")
        self._spec = write_spec(address, path)

    async def put(self, key: str, data: bytes) -> None:
        check_key(key)
        limit = put_timeout(len(data))
        try:
            async with asyncio.timeout(limit):
                writer = self._writer = self._writer or await ts.KvStore.open(self._spec)
                await writer.write(key, data)
        except TimeoutError as error:
            raise StoreError(f"{self._where} did not take {key} within {limit:.0f} s") from error
        except ValueError as error:
            raise StoreError(f"cannot write {self._where}/{key}: {line_of(error)}") from error

    async def delete(self, keys: list[str]) -> None:
        for key in keys:
            check_key(key)
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                for first in range(0, len(keys), 1000):  # S3's limit of one request
                    await self._store.delete_async(keys[first : first + 1000])
        except FileNotFoundError:
            pass
        except TimeoutError as error:
            raise StoreError(f"{self._where} did not delete within {LIST_TIMEOUT:.0f} s") from error
        except (OSError, ValueError, BaseError) as error:
            raise StoreError(f"cannot delete in {self._where}: {line_of(error)}") from error
