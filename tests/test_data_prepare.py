"""Preparing pages: what they hold, and on what they depend."""

import fcntl
import gzip
import hashlib
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from corpus import folder_of, texts
from test_data_tokenizer import byte_level

from templar_jax.data import merge, runs, sources
from templar_jax.data.manifest import NAME, Manifest
from templar_jax.data.pages import open_pages
from templar_jax.data.prepare import Progress, prepare, standard_library
from templar_jax.data.tokenizer import open_tokenizer
from templar_jax.errors import ConfigError, DataError, StoreError

S, P = 32, 4


def heldout_and_training(documents: list[str], heldout: float = 0.05) -> tuple[list[int], list[int]]:
    """Both token streams by the rules in plain Python: by sha256, duplicates dropped, the first of them held out."""
    ordered = sorted({hashlib.sha256(text.encode()).digest(): text for text in documents}.items())
    streams = [[*text.encode(), 256] for _, text in ordered]
    wanted = max(int(heldout * sum(map(len, streams))), S * P) if heldout else 0
    held: list[int] = []
    while len(held) < wanted:
        held += streams.pop(0)
    return held, sum(streams, [])


def rows(tokens: np.ndarray) -> list[list[int]]:
    return sorted(tokens.reshape(-1, S).tolist())


def test_pages_hold_the_documents(tmp_path: Path) -> None:
    documents = texts(150)
    manifest = prepare([folder_of(tmp_path / "text", documents)], tmp_path / "out", sequence=S, page=P)
    held, train = heldout_and_training(documents)
    pages = open_pages(tmp_path / "out")
    for stream, count, tokens in (
        (train, manifest.n_pages, pages.read(range(manifest.n_pages))),
        (held, manifest.n_heldout_pages, pages.read_heldout(manifest.n_heldout_pages * P)[0]),
    ):
        assert count == len(stream) // (S * P)
        assert rows(tokens) == sorted(stream[i : i + S] for i in range(0, count * S * P, S))
    used = train[: manifest.tokens]
    assert (manifest.tokens, manifest.bytes) == (len(used), sum(token < 256 for token in used))
    assert manifest.documents + manifest.heldout_documents == len(documents)
    assert (manifest.tokenizer, manifest.vocab, manifest.separator) == ("bytes", 257, 256)
    assert not (tmp_path / "out" / ".work").exists()


def test_heldout_bytes_are_those_of_what_is_predicted(tmp_path: Path) -> None:
    prepare([folder_of(tmp_path / "text", texts(150))], tmp_path / "out", sequence=S, page=P, heldout=0.2)
    for count in (1, 3, 9):
        tokens, n_bytes = open_pages(tmp_path / "out").read_heldout(count)
        assert tokens.shape == (count, S) and tokens.dtype == np.int32
        assert n_bytes == (tokens[:, 1:] < 256).sum()


def test_no_page_is_all_one_document(tmp_path: Path) -> None:
    documents = [chr(ord("a") + i) * 2000 for i in range(20)]
    prepare([folder_of(tmp_path / "text", documents)], tmp_path / "out", sequence=S, page=P)
    pages = open_pages(tmp_path / "out")
    letters = [len(set(page.ravel().tolist()) - {256}) for page in pages.read(range(pages.manifest.n_pages))]
    assert np.mean(letters) > 3


@pytest.mark.parametrize("heldout", [0.0, 0.05, 0.3])
def test_manifest_depends_on_the_documents_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heldout: float
) -> None:
    """Other files, another order, duplicates, other shards, runs and buckets: the same pages."""
    documents = texts(120)
    plain = prepare([folder_of(tmp_path / "text", documents)], tmp_path / "a", sequence=S, page=P, heldout=heldout)
    other = folder_of(tmp_path / "other", documents[50:90])
    lines = [json.dumps({"body": text}) for text in documents[::-1]]
    (other / "all.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (other / "some.jsonl").write_text("\n".join(lines[:30]))
    monkeypatch.setattr(sources, "MIN_SHARD", 1000)
    monkeypatch.setattr(runs, "RUN_TOKENS", 1500)
    monkeypatch.setattr(merge, "BUCKET_TOKENS", 4000)
    prepare([other], tmp_path / "b", sequence=S, page=P, heldout=heldout, text_key="body")
    assert (tmp_path / "a" / NAME).read_bytes() == (tmp_path / "b" / NAME).read_bytes()
    open_pages(tmp_path / "b").verify()
    assert plain.documents + plain.heldout_documents == 120


def test_several_blocks_hold_the_same_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = folder_of(tmp_path / "text", texts(150))
    one = prepare([text], tmp_path / "one", sequence=S, page=P)
    monkeypatch.setattr(merge, "BLOCK_TOKENS", 7 * S * P)
    seen: list[Progress] = []
    many = prepare([text], tmp_path / "many", sequence=S, page=P, progress=seen.append)
    assert sum(step.phase == "write" for step in seen) > 5
    assert many.sha256 != one.sha256 and (many.tokens, many.bytes) == (one.tokens, one.bytes)
    everything = range(one.n_pages)
    assert rows(open_pages(tmp_path / "one").read(everything)) == rows(open_pages(tmp_path / "many").read(everything))


@pytest.mark.processes
def test_any_number_of_processes_gives_the_same_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MIN_SHARD", 4000)
    text = folder_of(tmp_path / "text", texts(400))
    found = [
        prepare([text], tmp_path / f"out-{workers}", sequence=S, page=P, workers=workers) for workers in (0, 1, 2, 3)
    ]
    assert found[0] == found[1] == found[2] == found[3]


def test_manifest_is_golden(tmp_path: Path) -> None:
    prepare([folder_of(tmp_path / "text", texts(100))], tmp_path / "out", sequence=S, page=P)
    assert open_pages(tmp_path / "out").manifest_hash[:16] == "f35d17bcba990134", (
        "the same documents give other pages than before: every run with pinned data is cut off. If that is meant, "
        "raise FORMAT in data/manifest.py and put the new hash here"
    )


def test_a_tokenizer_file(tmp_path: Path) -> None:
    documents = texts(200)
    path = byte_level(tmp_path / "t.json", ["<|endoftext|>"])
    text = folder_of(tmp_path / "text", documents)
    manifest = prepare([text], tmp_path / "out", tokenizer=path, sequence=S, page=P)
    path.unlink()
    pages = open_pages(tmp_path / "out")
    tokenizer = pages.tokenizer()
    assert manifest.tokenizer == tokenizer.name and manifest.vocab == tokenizer.vocab
    streams = {}
    for document in documents:
        ids, sizes = tokenizer.encode(document.encode())
        streams[hashlib.sha256(document.encode()).digest()] = list(zip(ids.tolist(), sizes.tolist(), strict=True))
    stream = sum((streams[key] for key in sorted(streams)), [])
    held = sum(len(streams[key]) for key in sorted(streams)[: manifest.heldout_documents])
    train = stream[held:][: manifest.tokens]
    assert rows(pages.read(range(manifest.n_pages))) == sorted(
        [token for token, _ in train[i : i + S]] for i in range(0, len(train), S)
    )
    assert manifest.bytes == sum(size for _, size in train)


def test_large_vocabularies_are_stored_in_four_bytes(tmp_path: Path) -> None:
    assert open_tokenizer("bytes").dtype == "<u2"
    path = byte_level(tmp_path / "t.json", ["<|endoftext|>"])
    library = json.loads(path.read_text())
    library["added_tokens"].append(
        {"id": 70_000, "content": "</s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
    )
    library["model"]["vocab"]["</s>"] = 70_000
    path.write_text(json.dumps(library))
    manifest = prepare([folder_of(tmp_path / "x", texts(200))], tmp_path / "out", tokenizer=path, sequence=S, page=P)
    assert manifest.vocab == 70_001 and manifest.dtype == "<u4"
    assert open_pages(tmp_path / "out").read([0]).dtype == "<u4"


def test_bad_records_are_counted_and_said(tmp_path: Path) -> None:
    text = folder_of(tmp_path / "text", texts(100))
    (text / "picture.png").write_bytes(b"\x89PNG\xff")
    (text / "more.jsonl").write_text('{"text": "a document"}\n{broken\n{"no": 1}\n')
    seen: list[Progress] = []
    manifest = prepare([text], tmp_path / "out", sequence=S, page=P, progress=seen.append)
    assert manifest.documents + manifest.heldout_documents == 101
    notes = [step.note for step in seen if step.phase == "note"]
    assert len(notes) == 1 and notes[0].startswith("passed over 3 bad records, the first: ")


def test_nothing_but_bad_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n" * 5)
    with pytest.raises(DataError, match=r"no document in 1 files \(5 bad records\)"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "out", sequence=S, page=P)
    with pytest.raises(DataError, match="no prepared pages"):
        open_pages(tmp_path / "out")


def test_too_little_text(tmp_path: Path) -> None:
    text = folder_of(tmp_path / "text", texts(2, words=10))
    with pytest.raises(
        DataError, match=r"too little text: \d+ tokens in 2 documents give 0 training and .* lower data"
    ):
        prepare([text], tmp_path / "out", sequence=S, page=P)


@pytest.mark.parametrize("wrong", [{"sequence": 1}, {"page": 0}, {"workers": -1}, {"heldout": 1.0}])
def test_options_that_cannot_be(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError, match="prepare needs"):
        prepare([tmp_path], tmp_path / "out", **{"sequence": S, "page": P, **wrong})


def test_prepared_twice_returns_at_once(tmp_path: Path) -> None:
    text, out = folder_of(tmp_path / "text", texts(100)), tmp_path / "out"
    first = prepare([text], out, sequence=S, page=P)
    seen: list[Progress] = []
    assert prepare([text], out, sequence=S, page=P, progress=seen.append) == first
    assert [step.note for step in seen] == [f"{out} is already prepared"]
    with pytest.raises(DataError, match="holds pages of other sources or options"):
        prepare([text], out, sequence=S, page=2 * P)
    (text / "new.txt").write_text("new")
    with pytest.raises(DataError, match="holds pages of other sources or options"):
        prepare([text], out, sequence=S, page=P)


def test_others_wait_for_the_one_that_prepares(tmp_path: Path) -> None:
    text, out = folder_of(tmp_path / "text", texts(100)), tmp_path / "out"
    out.mkdir()
    found: list[Manifest] = []
    waiting = threading.Event()

    def show(step: Progress) -> None:
        if "another process is preparing" in step.note:
            waiting.set()

    with open(out / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: found.append(prepare([text], out, sequence=S, page=P, progress=show)))
        thread.start()
        assert waiting.wait(30)
        assert not found
    thread.join(30)
    assert found and (out / NAME).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="not writable"):
        prepare([folder_of(tmp_path / "text", texts(10))], tmp_path / "out", sequence=S, page=P)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match="a file is in the way"):
        prepare([folder_of(tmp_path / "text", texts(10))], tmp_path / "out", sequence=S, page=P)


def test_standard_library_is_enough_for_the_default_run(tmp_path: Path) -> None:
    manifest = prepare(standard_library(), tmp_path / "out", sequence=256, page=64)
    assert manifest.n_pages >= 17 * 15  # 16 slots and evaluation, 60 steps of 16 sequences
    assert manifest.n_heldout_pages * 64 >= 128
    tokens, n_bytes = open_pages(tmp_path / "out").read_heldout(128)
    assert 0.98 < n_bytes / tokens[:, 1:].size <= 1
