"""Text from a model: sampling with a key-value cache, one executable for the prompt and one for every token.

Letters: B sequences, P positions of the padded prompt, T positions of the cache, V vocabulary.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from templar_jax.config import ComputeConfig, DataConfig, RunConfig
from templar_jax.data.tokenizer import Tokenizer, open_tokenizer
from templar_jax.errors import ConfigError
from templar_jax.huggingface.config_json import CONFIG, read_config
from templar_jax.huggingface.tokenizer_json import TOKENIZER
from templar_jax.huggingface.weights import read_weights
from templar_jax.model import decode
from templar_jax.model.decode import Cache, Weights
from templar_jax.model.placement import Placement, make_placement
from templar_jax.sharding import shardings, table
from templar_jax.store.checkpoint_read import open_checkpoint

GRAIN = 64  # prompts and caches have a multiple of this many positions, so that executables are met again


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0: the likeliest; top_k 0 and top_p 1: no limit."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95

    def check(self) -> "Sampling":
        """Returns itself. Raises ConfigError."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}: set it to 0 (the likeliest token) or more")
        if self.top_k < 0:
            raise ConfigError(f"top-k is {self.top_k}: set it to 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p is {self.top_p}: set it above 0 and to at most 1 (no limit)")
        return self


@dataclass(frozen=True)
class LoadedModel:
    """What generation needs. `begin`: id that a text starts with; `stops`: ids that end it."""

    run: RunConfig
    place: Placement
    weights: Weights
    tokenizer: Tokenizer
    begin: int
    stops: frozenset[int]
    source: str  # where it came from, for people


def load_model(
    path: Path, run: RunConfig, compute: ComputeConfig, mesh: Mesh, window: int | None, tokenizer: Path | None
) -> LoadedModel:
    """A Hugging Face folder (its own config counts, not `run`), or the newest checkpoint under `path` (of `window`).

    Args:
      mesh: axis fsdp of 1; heads and vocabulary are spread over the axis tensor.
      tokenizer: a tokenizer.json; None: the folder's own, or bytes where that is the run's.

    Raises:
      ConfigError, DataError, CheckpointError: nothing there, or it does not fit; with the next step.
    """
    dtype = jnp.dtype(compute.dtype)
    if (path / CONFIG).exists():
        found = read_config(path)
        run = RunConfig(name=path.name, model=found.model, data=DataConfig(sequence=found.sequence))
        spoken = open_tokenizer(tokenizer or path / TOKENIZER)
        place = make_placement(run, compute, mesh)
        params = {name: value.astype(dtype) for name, value in read_weights(path, run, mesh, vocab=found.vocab)}
        weights = decode.unstack(run.model, list(params), params.pop)
        begin, stops = _ends(path, spoken)
        source = f"Hugging Face folder {path}"
    else:
        saved = open_checkpoint(path, window)
        saved.check(run)
        spoken = _tokenizer(run, tokenizer)
        place, at = make_placement(run, compute, mesh), shardings(run, mesh)
        like = {p.name: jax.ShapeDtypeStruct(p.shape, dtype, sharding=at[p.name]) for p in table(run)}
        weights = decode.unstack(run.model, list(like), lambda name: saved.place({name: like[name]})[name])
        begin, stops = spoken.separator, frozenset([spoken.separator])
        source = f"checkpoint {saved.folder}, window {saved.meta.window}, outer step {saved.meta.outer_step}"
    if spoken.vocab > run.model.vocab:
        raise ConfigError(
            f"the tokenizer has {spoken.vocab} ids, the model {run.model.vocab} rows: give the tokenizer.json that it "
            "was trained with"
        )
    return LoadedModel(run, place, weights, spoken, begin, stops, source)


def _tokenizer(run: RunConfig, file: Path | None) -> Tokenizer:
    if file is None and run.data.tokenizer != "bytes":
        raise ConfigError(
            "the run's tokenizer is a file: give it with --tokenizer tokenizer.json (it lies by the pages)"
        )
    spoken = open_tokenizer(file or "bytes")
    if run.data.tokenizer not in ("", spoken.name):
        raise ConfigError(f"{file or 'bytes'} is not the run's tokenizer ({run.data.tokenizer[:16]}): give that one")
    return spoken


def _ends(folder: Path, tokenizer: Tokenizer) -> tuple[int, frozenset[int]]:
    """(id that begins a text, ids that end it) by config.json, else the tokenizer's separator."""
    values = json.loads((folder / CONFIG).read_bytes())
    begin, end = values.get("bos_token_id"), values.get("eos_token_id")
    ends = end if isinstance(end, list) else [end]
    stops = frozenset(token for token in ends if isinstance(token, int)) | {tokenizer.separator}
    return begin if isinstance(begin, int) else tokenizer.separator, stops


def sample(logits_BV: jax.Array, key: jax.Array, how: Sampling) -> jax.Array:
    """The next tokens, int32 [B]: temperature first, then the top_k likeliest, then of these the fewest whose
    probabilities reach top_p (https://arxiv.org/abs/1904.09751)."""
    if how.temperature == 0:
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)
    logits_BV = logits_BV / how.temperature
    if not how.top_k and how.top_p == 1:
        return jax.random.categorical(key, logits_BV).astype(jnp.int32)
    vocab = logits_BV.shape[-1]
    ranked_BK, tokens_BK = jax.lax.top_k(logits_BV, min(how.top_k or vocab, vocab))  # descending
    shares_BK = jax.nn.softmax(ranked_BK, -1)
    before_BK = jnp.cumsum(shares_BK, -1) - shares_BK
    ranked_BK = jnp.where(before_BK < how.top_p, ranked_BK, -jnp.inf)  # the first is always there
    rank_B1 = jax.random.categorical(key, ranked_BK)[:, None]
    return jnp.take_along_axis(tokens_BK, rank_B1, 1)[:, 0].astype(jnp.int32)


@dataclass
class Speed:
    """Filled while tokens are drawn; seconds by the wall clock."""

    compile_s: float = 0.0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    steps: int = 0  # decode steps, of B tokens each

    def tokens_per_s(self, sequences: int) -> float | None:
        """Of the decode steps, all sequences together; None before there are any."""
        return self.steps * sequences / self.decode_s if self.steps and self.decode_s else None


@dataclass
class Generator:
    """`stream(prompts, tokens)` yields the next token of every sequence, int32 [B] on the host.

    Executables are compiled for a number of sequences and lengths rounded up to 64, and kept.
    """

    model: LoadedModel
    how: Sampling
    speed: Speed = field(default_factory=Speed)
    _made: dict[tuple[int, int, int], tuple[Callable, Callable]] = field(default_factory=dict)

    def stream(self, prompts: Sequence[Sequence[int]], tokens: int, seed: int = 0) -> Iterator[np.ndarray]:
        """`tokens` times: the token that follows, for each prompt. The caller decides when a sequence is over.

        The device is one step ahead of what is yielded.

        Args:
          prompts: ids, at least one each.
          tokens: how many to draw.
          seed: the same seed, prompts and machine give the same tokens.
        """
        lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
        padded = _round_up(int(lengths_B.max()))
        tokens_BP = np.zeros((len(prompts), padded), np.int32)
        for row, prompt in zip(tokens_BP, prompts, strict=True):
            row[: len(prompt)] = prompt
        length = max(padded, _round_up(int(lengths_B.max()) + tokens))
        began = time.perf_counter()
        shape = len(prompts), padded, length
        first, following = self._made[shape] = self._made.get(shape) or self._compiled(*shape)
        self.speed = Speed(compile_s=time.perf_counter() - began)
        key, weights = jax.random.key(seed), self.model.weights
        began = time.perf_counter()
        token_B, cache = first(weights, tokens_BP, lengths_B, key)
        jax.block_until_ready(token_B)
        self.speed.prompt_s = time.perf_counter() - began
        for count in range(1, tokens + 1):
            began = time.perf_counter()
            ready_B = token_B
            if count < tokens:
                token_B, cache = following(weights, cache, token_B, lengths_B + np.int32(count - 1), key)
            shown_B = np.asarray(ready_B)
            self.speed.decode_s += time.perf_counter() - began
            self.speed.steps = count - 1  # the first came with the prompt
            yield shown_B

    def _compiled(self, batch: int, padded: int, length: int) -> tuple[Callable, Callable]:
        model, place, how = self.model.run.model, self.model.place, self.how
        vocab, weights = self.model.tokenizer.vocab, self.model.weights

        def draw(logits_BV: jax.Array, key: jax.Array, positions_B: jax.Array) -> jax.Array:
            known_BV = logits_BV[:, :vocab]  # padding of the vocabulary is no token
            return sample(known_BV, jax.random.fold_in(key, positions_B.max()), how)

        def first(weights: Weights, tokens_BP: jax.Array, lengths_B: jax.Array, key: jax.Array):
            logits_BV, cache = decode.prefill(weights, tokens_BP, lengths_B, length, model, place)
            return draw(logits_BV, key, lengths_B), cache

        def following(weights: Weights, cache: Cache, tokens_B: jax.Array, positions_B: jax.Array, key: jax.Array):
            logits_BV, cache = decode.step(weights, cache, tokens_B, positions_B, model, place)
            return draw(logits_BV, key, positions_B + 1), cache

        tokens_BP = jax.ShapeDtypeStruct((batch, padded), jnp.int32)
        lengths_B, key = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.random.key(0)
        prompt = jax.jit(first).lower(weights, tokens_BP, lengths_B, key).compile()
        token_B, cache = jax.eval_shape(first, weights, tokens_BP, lengths_B, key)
        shapes = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            (token_B, cache),
            prompt.output_shardings,
        )
        step = jax.jit(following, donate_argnums=1, out_shardings=prompt.output_shardings)
        return prompt, step.lower(weights, shapes[1], shapes[0], lengths_B, key).compile()


def _round_up(count: int) -> int:
    return -(-count // GRAIN) * GRAIN


class TextStream:
    """Ids in, text out, as soon as it is certain: a character that several tokens share waits for the last of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.decode = tokenizer.decode
        self.ids: list[int] = []  # that the next text may depend on
        self.said = 0  # of these, how many are said

    def push(self, token: int) -> str:
        """Text that this token completes, perhaps none."""
        self.ids.append(token)
        before, now = self.decode(self.ids[: self.said]), self.decode(self.ids)
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self.ids, self.said = self.ids[self.said :], len(self.ids) - self.said
        return now[len(before) :]

    def rest(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        return self.decode(self.ids)[len(self.decode(self.ids[: self.said])) :]
