"""Errors that a user may meet. Each names the cause and the next step; scripts print it as one line."""


def line_of(error: BaseException) -> str:
    """The beginning of its first line, to name a library's error in one of ours: libraries append debug dumps."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class TemplarError(Exception):
    """Base of every typed error of this project. `str(error)` is one line: cause, then what to do."""


class ConfigError(TemplarError):
    """A configuration that cannot work: unknown key, wrong type, or two values that do not fit together."""


class DataError(TemplarError):
    """Pages that are missing, corrupt, or belong to another run."""


class StoreError(TemplarError):
    """A bucket that does not answer, is not writable, is full, or holds something else than asked for."""


class NotFound(StoreError):
    """The object does not exist (yet)."""


class RefusedError(TemplarError):
    """Bytes of a peer that were refused. `reason` is a short stable code, e.g. "hash", "size", "late"."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class ChainError(TemplarError):
    """The chain refused a call (rate limit, not registered, too large) or does not answer."""


class CheckpointError(TemplarError):
    """A checkpoint that is incomplete, corrupt, or of another run."""
