"""`file://` buckets: folders that processes of one machine (or one shared disk) use as object storage.

tensorstore writes (lock, fsync, rename: atomic), obstore reads. A writer that was killed leaves `<key>.__lock` and
unfinished drafts behind; neither is a key, so neither is listed or read.
"""

import asyncio
import contextlib
import os
import stat
import time
from pathlib import Path

import tensorstore as ts
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from templar_jax.errors import NotFound, StoreError, line_of
from templar_jax.store.bucket import ObjectInfo, check_key, check_prefix, is_key
from templar_jax.store.disk import explain, make_folder

LEFTOVER_SECONDS = 3600.0  # age from which a writer's lock file is nobody's
PUT_TIMEOUT = 60.0  # seconds for a put, plus
PUT_BYTES_PER_SECOND = 2**20  # the slowest disk or link that is waited for


def put_timeout(size: int) -> float:
    """Seconds after which a put of `size` bytes counts as failed."""
    return PUT_TIMEOUT + size / PUT_BYTES_PER_SECOND


class FilesReader:
    """Somebody's folder. It may not exist yet: then every object is missing."""

    def __init__(self, root: Path, locator: str) -> None:
        self.root = root
        self.locator = locator

    async def get(self, key: str, max_bytes: int, timeout: float) -> bytes:
        check_key(key)
        path = self.root / key
        try:
            async with asyncio.timeout(timeout):
                mode = os.lstat(path).st_mode
                if stat.S_ISDIR(mode):
                    raise IsADirectoryError  # an object's folder is no object
                if not stat.S_ISREG(mode):  # a pipe would block, a link could lead anywhere
                    raise StoreError(f"{path} is not a plain file")
                result = await LocalStore(self.root).get_async(key)
                if result.meta["size"] > max_bytes:
                    raise StoreError(f"{path} has {result.meta['size']} bytes, more than the {max_bytes} allowed")
                data = bytes(await result.bytes_async())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"no object {key} in {self.locator}") from error
        except TimeoutError as error:
            raise StoreError(f"{path} was not read within {timeout:.0f} s") from error
        except OSError as error:
            raise StoreError(explain(error, path)) from error
        except BaseError as error:
            raise StoreError(f"{path}: {line_of(error)}") from error
        if len(data) > max_bytes:  # grew while it was read
            raise StoreError(f"{path} has {len(data)} bytes, more than the {max_bytes} allowed")
        return data

    async def list(self, prefix: str, limit: int = 10_000) -> list[ObjectInfo]:
        check_prefix(prefix)
        if not self.root.is_dir():
            return []
        folder = prefix.rstrip("/") + "/" if prefix else ""
        found: list[ObjectInfo] = []
        try:
            async for chunk in LocalStore(self.root).list(folder or None):
                for item in chunk:
                    if is_key(item["path"]) and item["path"].startswith(folder):
                        found.append(ObjectInfo(item["path"], item["size"], item["last_modified"].timestamp()))
        except FileNotFoundError:
            pass  # a folder vanished while it was walked: what was found stands
        except (OSError, BaseError) as error:
            raise StoreError(f"cannot list {self.locator}: {line_of(error)}") from error
        return sorted(found, key=lambda item: item.key)[:limit]


class FilesBucket(FilesReader):
    """The node's own folder, created on opening."""

    def __init__(self, root: Path, locator: str) -> None:
        super().__init__(root, locator)
        make_folder(root)
        _sweep(root)
        self._writer: ts.KvStore | None = None

    async def _kvstore(self) -> ts.KvStore:
        if self._writer is None:
            self._writer = await ts.KvStore.open({"driver": "file", "path": f"{self.root}/"})
        return self._writer

    async def put(self, key: str, data: bytes) -> None:
        check_key(key)
        path = self.root / key
        try:
            writer = await self._kvstore()
            async with asyncio.timeout(put_timeout(len(data))):
                await writer.write(key, data)
        except TimeoutError as error:
            raise StoreError(
                f"{path} was not written within {put_timeout(len(data)):.0f} s: is the disk alive?"
            ) from error
        except ValueError as error:  # tensorstore's only error: absl status, text, os_error_code
            raise StoreError(explain(_os_error(error), path)) from error

    async def delete(self, keys: list[str]) -> None:
        store = LocalStore(self.root, automatic_cleanup=True)
        for key in keys:
            check_key(key)
            try:
                await store.delete_async(key)
            except FileNotFoundError:
                continue
            except (OSError, BaseError) as error:
                raise StoreError(f"cannot delete {self.root / key}: {line_of(error)}") from error


def _sweep(root: Path) -> None:
    """Removes what killed writers left, parts of up to gigabytes; not what another process may be writing now."""
    for path in root.rglob("*.__lock"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


def _os_error(error: ValueError) -> OSError:
    """The operating system's error inside tensorstore's message."""
    number = str(error).partition("os_error_code='")[2].partition("'")[0]
    return OSError(int(number), os.strerror(int(number))) if number.isdigit() else OSError(line_of(error))
