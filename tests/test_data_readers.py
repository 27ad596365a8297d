"""Readers of text, jsonl and parquet: what they yield, what they pass over, what they refuse."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from corpus import texts
from hypothesis import given
from hypothesis import strategies as st

from templar_jax.data import readers, runs, sources
from templar_jax.data.readers import Bad, read_jsonl, read_text
from templar_jax.data.sources import find_sources, shards, standard_library
from templar_jax.errors import DataError


def read(path: Path, key: str = "text") -> list[readers.Record]:
    """All records of a path, through the plan that `prepare` makes."""
    return [record for shard in shards(find_sources([path])) for part in shard for record in runs.documents(part, key)]


def good(path: Path, key: str = "text") -> list[str]:
    return [record.decode() for record in read(path, key) if not isinstance(record, Bad)]


def jsonl(documents: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False).encode() + b"\n" for text in documents)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("größer\r\n".encode())
    assert read(tmp_path / "a.py") == ["größer\r\n".encode()]


def test_a_long_text_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    data = "".join(f"{i} größer {'x' * (i % 500)}\n" for i in range(12_000)).encode()
    assert len(data) > readers.WHOLE_FILE
    (tmp_path / "a.txt").write_bytes(data)
    records = read(tmp_path / "a.txt")
    assert b"".join(records) == data  # type: ignore[arg-type]
    assert all(len(record) <= readers.PIECE and record.endswith(b"\n") for record in records)  # type: ignore[union-attr]


def test_a_long_line_is_cut_between_characters(tmp_path: Path) -> None:
    data = "窗口".encode() * (readers.WHOLE_FILE // 5)
    (tmp_path / "a.txt").write_bytes(data)
    records = list(read_text(tmp_path / "a.txt"))
    assert not any(isinstance(record, Bad) for record in records)
    assert b"".join(records) == data  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a\0b"])
def test_what_is_no_text_is_passed_over(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "b.txt").write_text("good")
    records = read(tmp_path)
    assert [type(record) for record in records] == [Bad, bytes]
    assert "a.bin" in records[0].where  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_with_bad_lines(tmp_path: Path, suffix: str) -> None:
    lines = [b'{"text": "one"}', b"{broken", b'{"other": 1}', b'{"text": 5}', b'{"text": "\\ud800"}', b"", b"[1]"]
    data = b"\n".join([*lines, b'{"text": "last, with no line end"}'])
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix](data)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed)
    records = read(path)
    assert [record for record in records if isinstance(record, bytes)] == [b"one", b"last, with no line end"]
    reasons = [record.why for record in records if isinstance(record, Bad)]
    assert reasons == ["not JSON", "no key 'text'", "not a text", "half a surrogate pair, so no UTF-8", "no key 'text'"]
    assert isinstance(records[1], Bad) and records[1].where.endswith("line 2")


@given(count=st.integers(1, 40), pieces=st.integers(1, 50))
def test_parts_of_a_jsonl_file_hold_each_line_once(tmp_path_factory, count: int, pieces: int) -> None:
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    documents = texts(count, words=12)
    path.write_bytes(jsonl(documents))
    size = path.stat().st_size
    edges = [size * i // pieces for i in range(pieces + 1)]
    found = [r for a, b in zip(edges, edges[1:], strict=False) for r in read_jsonl(path, a, b, "text")]
    assert found == [text.encode() for text in documents]


def test_a_large_jsonl_file_becomes_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MIN_SHARD", 1000)
    documents = texts(300)
    (tmp_path / "a.jsonl").write_bytes(jsonl(documents))
    assert len(shards(find_sources([tmp_path]))) > 20
    assert good(tmp_path) == documents


def test_too_long_a_line_is_passed_over_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["x" * 5000, "short"]))
    assert good(path) == ["short"]
    assert "longer than 1000 bytes" in [r.why for r in read(path) if isinstance(r, Bad)]


def test_frames_and_members_in_a_row(tmp_path: Path) -> None:
    documents = texts(50)
    first, second = jsonl(documents[:20]), jsonl(documents[20:])
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(pack(first) + pack(second))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(first) + gzip.compress(second))
    assert good(tmp_path / "a.jsonl.zst") == good(tmp_path / "b.jsonl.gz") == documents


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, suffix: str, damage: str) -> None:
    data = jsonl(texts(2000))
    compress = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(compress(data))
    if damage == "cut":
        del packed[-9:]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0x10
    else:
        packed[:] = b"this is plain text"
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl.*; repair or remove the file") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_parquet(tmp_path: Path) -> None:
    documents = texts(100)
    table = pyarrow.table({"text": [*documents, None], "n": range(101)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    records = read(tmp_path / "a.parquet")
    assert [record for record in records if isinstance(record, bytes)] == [text.encode() for text in documents]
    assert [record.why for record in records if isinstance(record, Bad)] == ["not a text"]
    with pytest.raises(DataError, match="no column 'body' but text, n: set --text-key"):
        read(tmp_path / "a.parquet", "body")


def test_parquet_row_groups_are_spread_over_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MIN_SHARD", 2000)
    documents = texts(200)
    pyarrow.parquet.write_table(pyarrow.table({"body": documents}), tmp_path / "a.parquet", row_group_size=7)
    assert len(shards(find_sources([tmp_path]))) > 5
    assert good(tmp_path, "body") == documents


def test_no_parquet_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match="cannot read .*a.parquet"):
        read(tmp_path)


def test_kinds_of_files() -> None:
    names = ["a.jsonl", "a.JSONL.gz", "a.ndjson", "a.json.gz", "a.json", "a.txt.zst", "a.parquet", "a"]
    here = Path(__file__)
    kinds = [sources._source(_named(here, name), name).kind for name in names]
    assert kinds == ["jsonl", "jsonl", "jsonl", "jsonl", "text", "text", "parquet", "text"]


def _named(real: Path, name: str) -> Path:
    class Named(type(real)):
        def stat(self, **_):
            return real.stat()

    return Named(name)


def test_folders_leave_out_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a.txt", ".git/config", ".hidden", "b/__pycache__/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    assert [source.name for source in find_sources([tmp_path])] == ["a.txt", "b/x.txt"]


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder: .*nowhere"):
        find_sources([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no files to read"):
        find_sources([tmp_path])
    with pytest.raises(DataError, match="not a regular file"):
        find_sources([Path("/dev/null")])


def test_standard_library_is_large_and_names_no_machine() -> None:
    paths = standard_library()
    assert 5_000_000 < sum(path.stat().st_size for path in paths) < 40_000_000
    assert any(path.name == "argparse.py" for path in paths)
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-3:]) for path in paths)
    assert not any(path.name.startswith("_sysconfigdata") for path in paths)
