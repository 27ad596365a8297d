"""What the tests of the faces share: a small corpus, homes with a common compile cache, and `mine.py` in processes."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from corpus import folder_of, texts
from kills import ROOT, Miner

from templar_jax.data.prepare import prepare

CACHE = ROOT / ".pytest_cache" / "jax-processes"  # compiled once for all homes, kept between runs
S, P = 64, 16  # as in configs/nano.toml


def make_pages(folder: Path) -> Path:
    """Some 300 pages of made-up text, in a second."""
    text = folder_of(folder / "text", texts(12, words=6_000))
    prepare([text], folder / "pages", sequence=S, page=P)
    return folder / "pages"


def make_home(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    (folder / "jax").symlink_to(CACHE, target_is_directory=True)
    return folder


def nano(pages: Path, seconds: float = 0.25) -> list[str]:
    return ["--config", "nano", "--node.data", str(pages), "--node.network.block_seconds", str(seconds)]


class Unnamed(Miner):
    """Like a Miner, but `mine.py` chooses the name: `name` is what is expected of it."""

    def __init__(self, home: Path, name: str, arguments: list[str]) -> None:
        super().__init__(home, name, arguments)
        del self._command[-2:]

    def end(self, number: int = signal.SIGINT, seconds: float = 30) -> int:
        """Asks it to stop; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(seconds)


def applied(event: dict) -> bool:
    return event["event"] == "ManifestApplied"


def noted(words: str) -> Callable[[dict], bool]:
    return lambda event: event["event"] in ("Noted", "Warned") and words in event["text"]


def run_mine(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "mine.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def one_line(stderr: str, *words: str) -> None:
    """Asserts that an error was said in one line with all `words` in it."""
    assert len(stderr.strip().splitlines()) == 1 and "Traceback" not in stderr, stderr
    assert all(word in stderr for word in words), (words, stderr)
