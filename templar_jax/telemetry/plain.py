"""Plain lines for a log or a pipe: every event that says something new, a step line every few seconds, no silence."""

import threading
import time as wall
from collections.abc import Callable
from typing import TextIO

from templar_jax.telemetry.display import status
from templar_jax.telemetry.events import Event, StepDone
from templar_jax.telemetry.state import View
from templar_jax.telemetry.text import line


class PlainLines:
    """Writes one line an event. Of the inner steps it shows a window's first, and then one each `every` seconds."""

    def __init__(self, stream: TextIO, every: float = 10.0, clock_is_wall: bool = True) -> None:
        self._stream = stream
        self._every = every
        self._wall = clock_is_wall
        self._window = -1
        self._last = float("-inf")  # a step was shown
        self._view = View()
        self._said = float("-inf")  # anything was
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def pulse(self, clock: Callable[[], float], block: Callable[[], float | None], every: float = 10.0) -> None:
        """From now on, says what is going on whenever nothing else was said for `every` seconds."""
        self._said = clock()

        def beat() -> None:
            while not self._closed.wait(every / 10):
                now = clock()
                with self._lock:
                    if now - self._said >= every:
                        self._write(now, f"... {status(self._view, now, block())}")

        threading.Thread(target=beat, name="pulse", daemon=True).start()

    def emit(self, event: Event, time: float) -> None:
        with self._lock:
            self._view.see(event, time)
            if isinstance(event, StepDone):
                if event.window == self._window and time - self._last < self._every:
                    return
                self._window, self._last = event.window, time
            text = line(event)
            if text is not None:
                self._write(time, text)

    def close(self) -> None:
        self._closed.set()
        self._stream.flush()

    def _write(self, time: float, text: str) -> None:
        self._said = time
        stamp = wall.strftime("%H:%M:%S", wall.localtime(time)) if self._wall else f"{time:9.1f}"
        self._stream.write(f"{stamp}  {text}\n")
        self._stream.flush()
