"""Locators come off the chain: one spelling each, nothing that breaks out, nowhere that strangers may point us."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templar_jax.chain.port import FIELD_BYTES
from templar_jax.errors import ConfigError, StoreError
from templar_jax.store.open import WRITE_ACCESS, WRITE_SECRET, open_bucket, open_reader, parse, s3_locator
from templar_jax.store.s3 import S3Address, S3Bucket, S3Reader, write_spec

HEX = random.Random(0)
R2 = S3Address(
    f"{HEX.randbytes(16).hex()}.r2.cloudflarestorage.com", "b" * 32, HEX.randbytes(16).hex(), HEX.randbytes(32).hex()
)
AWS = S3Address("s3.us-east-1.amazonaws.com", "my-bucket", "A" * 20, "s/+" + "x" * 37, "us-east-1")
OWN = S3Address("127.0.0.1:8333", "local", "reader1", "secret123", secure=False)


@pytest.mark.parametrize("address", [R2, AWS, OWN])
def test_an_s3_locator_fits_the_chain_and_comes_back(address):
    locator = s3_locator(address)
    assert len(locator) <= FIELD_BYTES and parse(locator) == address
    assert locator.startswith("s3:2," if address is R2 else "s3:1,")


GOOD = [s3_locator(R2), s3_locator(AWS), s3_locator(OWN), "file:///some/path"]


@settings(max_examples=300)
@given(st.sampled_from(GOOD), st.integers(0, 10**6), st.characters(max_codepoint=300), st.sampled_from("ird"))
def test_a_changed_locator_is_refused_or_canonical(locator, at, character, how):
    at %= len(locator)
    changed = locator[:at] + ("" if how == "d" else character) + locator[at + (how != "i") :]
    try:
        place = parse(changed)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:  # another address, then; but never a second spelling of one
        if changed != locator:
            assert place != parse(locator)
        if isinstance(place, S3Address):
            assert s3_locator(place) == changed


@pytest.mark.parametrize(
    "text",
    ["", "file://relative", "file:///a/../b", "file:///a//b", "file:///a/", "file:///%61", "file:///a%00", "ftp://x",
     "sim:x", "s3:3,x", "s3:1,host",
     "s3:1,h.com,bucket,auto,key1,secret\nx", "s3:1,h.com,bucket,auto,k[e]y,secretsecret",
     "s3:1,u@h.com,bucket,auto,key1,secretsecret", "s3:1,h.com/x,bucket,auto,key1,secretsecret",
     "file:///" + "x" * 200],
)  # fmt: skip
def test_what_is_no_locator_is_refused(text):
    with pytest.raises(ConfigError):
        parse(text)
    with pytest.raises(StoreError):
        open_reader(text, local=True)


def test_strangers_cannot_point_at_files_or_private_addresses():
    hosts = [
        "127.0.0.1",
        "10.0.0.8:9000",
        "169.254.169.254",
        "localhost",
        "host.internal",
        "printer.local",
        "2130706433",
    ]
    for host in hosts:
        locator = s3_locator(replace(AWS, host=host))
        with pytest.raises(StoreError, match="only read on a local network"):
            open_reader(locator)
        assert isinstance(open_reader(locator, local=True), S3Reader)
    for locator in ("file:///etc", s3_locator(OWN), s3_locator(replace(AWS, secure=False))):
        with pytest.raises(StoreError, match="only read on a local network"):
            open_reader(locator)
    assert isinstance(open_reader(s3_locator(R2)), S3Reader)


def test_own_s3_bucket_takes_write_keys_from_the_environment_only(tmp_path):
    locator = s3_locator(AWS)
    with pytest.raises(ConfigError, match=WRITE_SECRET):
        open_bucket(locator, {WRITE_ACCESS: "writer123"})
    bucket = open_bucket(locator, {WRITE_ACCESS: "writer123", WRITE_SECRET: "hidden/hidden+1"})
    assert isinstance(bucket, S3Bucket) and bucket.locator == locator
    assert "hidden" not in repr(bucket.address)
    with pytest.raises(ConfigError) as caught:
        open_bucket(locator, {WRITE_ACCESS: "writer123", WRITE_SECRET: "x\n[other]\n"})
    assert "[other]" not in str(caught.value)


def test_the_write_spec_bounds_retries_and_reads_no_other_configuration():
    import tensorstore as ts

    spec = write_spec(AWS, "/nowhere/credentials")
    assert spec["aws_credentials"]["config_file"] == "/dev/null"
    assert spec["context"]["s3_request_retries"]["max_retries"] <= 5
    assert ts.KvStore.Spec(spec).to_json()["endpoint"] == "https://s3.us-east-1.amazonaws.com"
