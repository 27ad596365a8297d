"""A sample of the fuzzer: nothing that a stranger sends crashes a node, inflates in its memory, or passes as what it
is not. `python tests/fuzz.py --cases 100000` runs as many as there is time for."""

import fuzz
import pytest


def test_a_sample():
    reports = fuzz.fuzz(900, seed=1)
    assert all(report.cases == 100 for report in reports.values())
    assert sum(reports["sealed"].refused.values()) >= 95  # a changed byte breaks the signature
    assert {"size", "seal", "signature", "key", "auth"} <= set(reports["sealed-signed"].refused)
    assert reports["contribution"].accepted > 5, "no mutation came out valid: the fuzzer only tests the length"


def test_the_fuzzer_sees_what_it_looks_for(monkeypatch):
    def careless(data: bytes) -> bytes:
        return bytes(data[:1]) * 10_000_000 if len(data) % 3 else data

    monkeypatch.setitem(fuzz.KINDS, "index", fuzz.Kind(fuzz.index, careless))
    fuzz.valid.cache_clear()
    with pytest.raises(AssertionError, match="index, seed"):
        fuzz.fuzz(200, seed=1)
    fuzz.valid.cache_clear()
