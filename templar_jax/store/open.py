"""Locators: the text of at most 128 bytes by which a bucket is published on the chain, and how one is opened.

    file:///absolute/path                             percent-encoded where a byte is not plain
    s3:1,H,BUCKET,REGION,ACCESS,SECRET                H = host[:port] by https; http where it begins with "!"
    s3:2,BUCKET,KEYS                                  Cloudflare R2: KEYS = base64url of account id (16 bytes),
                                                      access key (16) and secret (32), 86 characters instead of 128
    sim:NAME                                          simulation only, opened by its own `SimStore`

The keys in a published locator only read. The own bucket's write keys come from the environment and are never
written anywhere but into a private file for the library that needs them.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from templar_jax.chain.port import FIELD_BYTES
from templar_jax.errors import ConfigError, StoreError
from templar_jax.store.bucket import Bucket, Reader
from templar_jax.store.files import FilesBucket, FilesReader
from templar_jax.store.s3 import S3Address, S3Bucket, S3Reader

WRITE_ACCESS = "TEMPLAR_S3_WRITE_ACCESS_KEY"
WRITE_SECRET = "TEMPLAR_S3_WRITE_SECRET_KEY"
_R2 = "r2.cloudflarestorage.com"
_HEX = re.compile(r"[0-9a-f]+")
_PLAIN_PATH = "/-._~"


def file_locator(folder: Path) -> str:
    """Locator of a folder. Raises ConfigError where the path is too long for the chain."""
    return _checked("file://" + quote(os.fsencode(folder.absolute()), safe=_PLAIN_PATH))


def s3_locator(address: S3Address) -> str:
    """Locator with the keys in `address`, which everybody will read on the chain: read-only keys."""
    account = address.host.removesuffix("." + _R2)
    keys = account + address.access + address.secret
    if address.host.endswith(_R2) and address.secure and address.region == "auto":
        if (len(account), len(address.access), len(address.secret)) == (32, 32, 64) and _HEX.fullmatch(keys):
            packed = base64.urlsafe_b64encode(bytes.fromhex(keys)).decode().rstrip("=")
            return _checked(f"s3:2,{address.bucket},{packed}")
    host = address.host if address.secure else "!" + address.host
    return _checked(f"s3:1,{host},{address.bucket},{address.region},{address.access},{address.secret}")


def parse(locator: str) -> Path | S3Address:
    """What a locator names. Raises ConfigError on anything that is not exactly of the grammar."""
    _checked(locator)
    if locator.startswith("file:///"):
        path = Path(os.fsdecode(unquote_to_bytes(locator.removeprefix("file://"))))
        if ".." in path.parts or "\0" in str(path) or file_locator(path) != locator:
            raise ConfigError(f"not a canonical file locator: {locator}")
        return path
    if not locator.startswith("s3:"):
        raise ConfigError(f"unknown locator {locator[:24]!r}: it begins with file:/// or s3:")
    version, *fields = locator.removeprefix("s3:").split(",")
    if version == "1" and len(fields) == 5:
        host, bucket, region, access, secret = fields
        address = S3Address(host.removeprefix("!"), bucket, access, secret, region, secure=not host.startswith("!"))
    elif version == "2" and len(fields) == 2:
        keys = _unpack_keys(fields[1])
        address = S3Address(f"{keys[:32]}.{_R2}", fields[0], keys[32:64], keys[64:])
    else:
        raise ConfigError("not an s3 locator of a known version (s3:1,... or s3:2,...)")
    if s3_locator(address) != locator:
        raise ConfigError("not a canonical s3 locator")
    return address


def open_reader(locator: str, *, local: bool = False) -> Reader:
    """Opens a peer's bucket. Nothing is contacted yet.

    Args:
      locator: untrusted text from the chain.
      local: True on a network of this machine or site; elsewhere nobody may point us at files, at plain http or at
        private addresses.
    Raises:
      StoreError: the locator is malformed, or not allowed here.
    """
    try:
        place = parse(locator)
    except ConfigError as error:
        raise StoreError(f"unusable bucket locator: {error}") from error
    if isinstance(place, Path):
        if not local:
            raise StoreError("a file:// bucket is only read on a local network")
        return FilesReader(place, locator)
    if not local and not place.public:
        raise StoreError(f"a bucket at {place.endpoint} is only read on a local network")
    return S3Reader(place, locator)


def open_bucket(locator: str, environment: Mapping[str, str] = os.environ) -> Bucket:
    """Opens the node's own bucket for writing; a folder is created. Raises ConfigError, StoreError.

    An S3 locator holds the read keys to be published; the write keys come from `environment`.
    """
    place = parse(locator)
    if isinstance(place, Path):
        return FilesBucket(place, locator)
    access, secret = environment.get(WRITE_ACCESS, ""), environment.get(WRITE_SECRET, "")
    if not access or not secret:
        raise ConfigError(f"set {WRITE_ACCESS} and {WRITE_SECRET} to the write keys of bucket {place.bucket}")
    return S3Bucket(S3Address(place.host, place.bucket, access, secret, place.region, place.secure), locator)


def _checked(locator: str) -> str:
    if not locator.isascii() or not locator.isprintable() or " " in locator:
        raise ConfigError("a bucket locator is plain text without spaces")
    if len(locator) > FIELD_BYTES:
        shown = locator if locator.startswith("file:") else locator[:3] + "..."
        raise ConfigError(
            f"the bucket locator has {len(locator)} characters, the chain takes {FIELD_BYTES}: "
            f"use a shorter folder or bucket name ({shown})"
        )
    return locator


def _unpack_keys(text: str) -> str:
    """128 hex digits: account id, access key, secret."""
    try:
        raw = base64.b64decode(text + "==", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("the keys of an s3:2 locator are not base64url") from error
    if len(raw) != 64:
        raise ConfigError("the keys of an s3:2 locator are not 64 bytes")
    return raw.hex()
