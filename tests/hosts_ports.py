"""Free ports of this machine for the tests of hosts/."""

import socket


def free_ports() -> int:
    """A port that is free together with the next."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                return port
            except (OSError, OverflowError):
                continue
    raise AssertionError("no two free ports")
