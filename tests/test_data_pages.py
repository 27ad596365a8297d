"""Prepared pages: reading, and every way in which they can be damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from corpus import small_pages

from templar_jax.data.manifest import NAME, encode_manifest, manifest_hash, parse_manifest
from templar_jax.data.pages import Pages, open_pages
from templar_jax.errors import DataError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return small_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def pages(whole: Pages, tmp_path: Path) -> Pages:
    """A copy to damage."""
    shutil.copytree(whole.folder, tmp_path / "pages")
    return open_pages(tmp_path / "pages")


def chunk(pages: Pages, page: int, array: str = "train") -> Path:
    return pages.folder / array / "c" / str(page) / "0" / "0"


def test_read_any_pages_in_any_order(whole: Pages) -> None:
    n = whole.manifest.n_pages
    all_pages = whole.read(range(n))
    assert all_pages.shape == (n, 4, 32) and all_pages.dtype == np.uint16
    assert np.array_equal(whole.read([5, 2, 5]), all_pages[[5, 2, 5]])
    assert whole.read([]).shape == (0, 4, 32)


def test_verify_says_how_far_it_is(whole: Pages) -> None:
    seen: list[tuple[int, int]] = []
    whole.verify(lambda done, total: seen.append((done, total)))
    total = whole.manifest.n_pages + whole.manifest.n_heldout_pages
    assert seen[-1] == (total, total)


def test_hash_is_that_of_the_file(whole: Pages) -> None:
    data = (whole.folder / NAME).read_bytes()
    assert whole.manifest_hash == manifest_hash(data) and len(whole.manifest_hash) == 64
    assert encode_manifest(whole.manifest) == data


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "another page", "empty"])
def test_a_corrupt_page_is_named(pages: Pages, damage: str) -> None:
    path = chunk(pages, 3)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    else:
        shutil.copy(chunk(pages, 4), path)  # its checksum is right
    assert pages.read([2, 4]).shape == (2, 4, 32)
    for act in (lambda: pages.read([2, 3]), pages.verify):
        with pytest.raises(DataError, match=r"training page 3 is .*: copy .*/train/c/3/0/0 from a good copy") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_corrupt_heldout_page(pages: Pages) -> None:
    chunk(pages, 0, "heldout").write_bytes(b"damaged")
    assert pages.read([0]).shape == (1, 4, 32)
    for act in (lambda: pages.read_heldout(1), pages.verify):
        with pytest.raises(DataError, match="held-out page 0"):
            act()


def test_corrupt_heldout_counts(pages: Pages) -> None:
    (pages.folder / "heldout_bytes.u32").write_bytes(b"\0\0\0\0")
    for act in (lambda: pages.read_heldout(1), pages.verify):
        with pytest.raises(DataError, match="heldout_bytes"):
            act()


def test_arrays_describe_nothing(pages: Pages) -> None:
    """What an array says of itself is not asked: the manifest's shape counts, whatever lies there."""
    path = pages.folder / "train" / "zarr.json"
    values = json.loads(path.read_text())
    values["shape"] = [1 << 40, 4, 32]
    path.write_text(json.dumps(values))
    assert open_pages(pages.folder).read([1]).shape == (1, 4, 32)


def test_pages_that_do_not_exist(whole: Pages) -> None:
    n = whole.manifest.n_pages
    for page in (-1, n):
        with pytest.raises(DataError, match=f"page {page} of .*: there are {n} pages"):
            whole.read([page])
    with pytest.raises(DataError, match="9999 held-out sequences asked for, .* holds .*: set node.eval_sequences"):
        whole.read_heldout(9999)


def test_no_pages_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared pages in .*: run scripts/prepare_data.py"):
        open_pages(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("format", 2, "has format 2, this version reads 1"),
        ("n_pages", 7, "contradicts itself"),
        ("tokens", 7, "contradicts itself"),
        ("page", "4", "page is '4'"),
        ("page", -4, "page is -4"),
        ("sequence", True, "sequence is True"),
        ("sha256", 5, "not iterable"),
        ("new", 5, "other fields"),
    ],
)
def test_a_damaged_manifest(whole: Pages, name: str, value: object, words: str) -> None:
    values = json.loads((whole.folder / NAME).read_text()) | {name: value}
    data = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(DataError, match=words):
        parse_manifest(data, whole.folder / NAME)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"null"])
def test_no_manifest_at_all(whole: Pages, data: bytes) -> None:
    with pytest.raises(DataError, match="is damaged"):
        parse_manifest(data, whole.folder / NAME)


def test_manifest_has_one_spelling(whole: Pages) -> None:
    data = (whole.folder / NAME).read_bytes()
    with pytest.raises(DataError, match="contradicts itself"):
        parse_manifest(data + b"\n", whole.folder / NAME)
