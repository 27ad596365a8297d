"""One list of reasons: every code that the program gives stands in it, and can stand in a manifest."""

import re
from pathlib import Path

from templar_jax.store.refusals import REASONS, is_reason

PACKAGE = Path(__file__).resolve().parent.parent / "templar_jax"
FORMS = (
    r'(?:RefusedError|Foreign)\(\s*"([^"]+)"',
    r'refused\.append\(\(claim\.uid, "([^"]+)"\)',
    r'missing = "([^"]+)"',
)


def test_every_reason_that_is_given_is_listed():
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    given = {code for source in sources for form in FORMS for code in re.findall(form, source)}
    assert len(given) > 20, "the pattern no longer finds them"
    assert given <= set(REASONS), f"add to store/refusals.REASONS: {sorted(given - set(REASONS))}"


def test_every_reason_fits_a_manifest():
    assert all(is_reason(reason) for reason in REASONS)
