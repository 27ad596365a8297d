"""Small durable files of the node itself: written whole or not at all, and still there after a power cut."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from templar_jax.errors import StoreError

DRAFT = ".draft-"  # in the name of every file that is still being written


def explain(error: OSError, path: Path) -> str:
    """One line: what the operating system refused at `path`, and what to do."""
    if error.errno == errno.ENOSPC or error.errno == errno.EDQUOT:
        return f"no space left on the disk of {path}: free some, or set another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} is not writable: change its owner or mode, or set another folder"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path} cannot be a folder, a file is in the way: remove it, or set another folder"
    return f"{path}: {error.strerror or error}"


def make_folder(path: Path) -> None:
    """Creates the folder and its parents. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(explain(error, path)) from error


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, pieces: Iterable[bytes], *, replace: bool = True) -> bool:
    """Writes the concatenated `pieces` to `path` atomically and durably (fsync of file and folder).

    With `replace=False` an existing file stays untouched and the result is False, whatever races with us.
    Raises StoreError (full disk, no permission); nothing half-written is ever seen under `path`.
    """
    make_folder(path.parent)
    draft = path.with_name(f"{path.name}{DRAFT}{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            try:
                os.link(draft, path)  # fails where the name exists, unlike a rename
            except FileExistsError:
                return False
        sync_folder(path.parent)
        return True
    except OSError as error:
        raise StoreError(explain(error, path)) from error
    finally:
        draft.unlink(missing_ok=True)
