"""Small corpora for the data room's tests, the same on every machine."""

import random
from pathlib import Path

from templar_jax.data.pages import Pages, open_pages
from templar_jax.data.prepare import prepare

WORDS = "window block tile miner root page größer 窗口 🙂 sequence\n leader def return the of and a".split(" ")


def texts(count: int, words: int = 60, seed: int = 0) -> list[str]:
    """`count` distinct documents of about `words` words."""
    draw = random.Random(seed)
    return [f"{i}: " + " ".join(draw.choices(WORDS, k=draw.randint(words // 2, words))) for i in range(count)]


def folder_of(path: Path, documents: list[str]) -> Path:
    """A folder with one text file a document."""
    path.mkdir(parents=True)
    for number, text in enumerate(documents):
        (path / f"{number:04d}.txt").write_bytes(text.encode())
    return path


def small_pages(path: Path, count: int = 120, sequence: int = 32, page: int = 4) -> Pages:
    """Pages of `count` small documents, prepared in `path`."""
    prepare([folder_of(path / "text", texts(count))], path / "pages", sequence=sequence, page=page)
    return open_pages(path / "pages")
