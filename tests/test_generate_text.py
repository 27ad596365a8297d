"""Text from checkpoints and Hugging Face folders: sampling, streaming, and what the script prints."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import SMALL, mesh_of, rough_params, small_run

from templar_jax.config import ComputeConfig
from templar_jax.data.tokenizer import open_tokenizer
from templar_jax.errors import CheckpointError, ConfigError
from templar_jax.export import export_folder, logits
from templar_jax.generate import Generator, Sampling, TextStream, load_model, sample
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints
from templar_jax.store.snapshot import Meta
from templar_jax.train.compiles import counting

RUN = dataclasses.replace(small_run(dataclasses.replace(SMALL, vocab=320)))
GREEDY = Sampling(temperature=0)
COMPUTE = ComputeConfig(attention="xla")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(params, a folder of checkpoints, a Hugging Face folder) of the same weights."""
    root = tmp_path_factory.mktemp("models")
    params = rough_params(RUN)
    checkpoints = OrbaxCheckpoints(root / "checkpoints")
    checkpoints.save(Meta(RUN.run_id, 3, 2, bytes(32), bytes(32)), params, None, {})
    checkpoints.close()
    export_folder(root / "model", RUN, params.__getitem__)
    return params, root / "checkpoints", root / "model"


def loaded(path: Path, run=RUN):
    return load_model(path, run, COMPUTE, mesh_of(1), None, None)


def test_greedy_text_is_the_full_forwards_and_the_same_from_both_sources(folders):
    params, checkpoints, folder = folders
    prompts = [[256, *b"def main("], [256, *b"x"]]
    drawn_of = [Generator(loaded(path), GREEDY).stream(prompts, 8) for path in (checkpoints, folder)]
    found = [np.stack(list(stream), 1) for stream in drawn_of]  # [B, tokens] each
    np.testing.assert_array_equal(found[0], found[1])
    forward = logits(RUN, mesh_of(1))
    for prompt, drawn in zip(prompts, found[0], strict=True):
        ids = list(prompt)
        for token in drawn:
            padded = np.zeros((1, 32), np.int32)
            padded[0, : len(ids)] = ids
            assert token == forward(params, padded)[0, len(ids) - 1, :257].argmax()
            ids.append(token)


def test_a_seed_repeats_and_another_does_not_and_nothing_is_compiled_again(folders):
    model = loaded(folders[1])
    generator = Generator(model, Sampling(temperature=1.0, top_p=1.0))
    first = np.stack(list(generator.stream([[256, 65]] * 2, 12, seed=1)))
    with counting() as compiles:
        again = np.stack(list(generator.stream([[256, 65]] * 2, 12, seed=1)))
        other = np.stack(list(generator.stream([[256, 66, 67]] * 2, 20, seed=2)))
    assert compiles.count == 0
    np.testing.assert_array_equal(first, again)
    assert (first != other[:12]).any()
    assert (first[:, 0] != first[:, 1]).any(), "samples of one prompt are drawn apart"
    assert first.max() < 257, "padding of the vocabulary is never drawn"
    assert generator.speed.steps == 19 and (generator.speed.tokens_per_s(2) or 0) > 0


@pytest.mark.parametrize(
    "how",
    [
        Sampling(1.0, 3, 1.0),
        Sampling(0.7, 0, 0.6),
        Sampling(2.0, 4, 0.9),
        Sampling(0.3, 1, 1.0),
    ],
    ids=str,
)
def test_only_tokens_within_top_k_and_top_p_are_drawn(how):
    """Against the definition in f64; a set that ends within 1e-4 of top_p may be one longer or shorter."""
    rows_RV = np.random.default_rng(0).normal(0, 2, (40, 9)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 100)
    drawn_KR = np.asarray(jax.jit(jax.vmap(lambda key: sample(jnp.asarray(rows_RV), key, how)))(keys))
    for row_V, drawn in zip(rows_RV, drawn_KR.T, strict=True):
        order = np.argsort(-row_V)[: how.top_k or len(row_V)]
        shares = np.exp((row_V[order] - row_V.max()) / how.temperature, dtype=np.float64)
        shares /= shares.sum()
        before = np.cumsum(shares) - shares
        allowed = order[before < how.top_p + 1e-4]
        assert set(drawn) <= set(allowed)
        likely = order[(before < how.top_p - 1e-4) & (shares > 0.1)]
        assert set(likely) <= set(drawn), "one of a hundred draws, at over 1 in 10"


def test_draws_have_the_models_probabilities():
    """20,000 draws of 4 tokens: each share within five standard deviations."""
    row = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    drawn = np.asarray(sample(jnp.tile(row, (20_000, 1)), jax.random.key(3), Sampling(1.0, 0, 1.0)))
    shares = np.bincount(drawn, minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=5 * (0.25 / 20_000) ** 0.5)
    cut = np.asarray(sample(jnp.tile(row, (20_000, 1)), jax.random.key(3), Sampling(1.0, 0, 0.69)))
    np.testing.assert_allclose(np.bincount(cut, minlength=4) / 20_000, [0, 0, 3 / 7, 4 / 7], atol=0.018)


@pytest.mark.parametrize(
    "how", [Sampling(-1), Sampling(float("nan")), Sampling(1, -2), Sampling(1, 0, 0.0), Sampling(1, 0, 2)]
)
def test_a_sampling_that_means_nothing_is_refused(how):
    with pytest.raises(ConfigError):
        how.check()


@given(st.text(max_size=40))
def test_a_stream_says_every_character_once_and_whole(text):
    stream = TextStream(open_tokenizer("bytes"))
    said = [stream.push(byte) for byte in text.encode()]
    assert "".join(said) + stream.rest() == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in said)


def test_what_is_missing_is_said(folders, tmp_path):
    _, checkpoints, folder = folders
    with pytest.raises(CheckpointError, match="no checkpoint under"):
        loaded(tmp_path)
    other = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, tokenizer="0" * 64))
    with pytest.raises(ConfigError, match="--tokenizer"):
        loaded(checkpoints, other)
    with pytest.raises(ConfigError, match="not the run's tokenizer"):
        load_model(checkpoints, other, COMPUTE, mesh_of(1), None, folder / "tokenizer.json")


@pytest.mark.processes
def test_the_script_streams_text_to_stdout_and_figures_to_json(folders, tmp_path):
    script = Path(__file__).parent.parent / "scripts" / "generate.py"
    flags = ["--model", str(folders[2]), "--prompt", "héllo", "--tokens", "5", "--json", str(tmp_path / "f.json")]
    done = subprocess.run(
        [sys.executable, str(script), *flags, "--node.home", str(tmp_path)], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    figures = json.loads((tmp_path / "f.json").read_text())
    assert done.stdout.decode().startswith("héllo") and b"per second" in done.stderr
    assert 1 <= figures["tokens"] <= 5 and figures["texts"][0] == done.stdout.decode().removesuffix("\n")
    bad = subprocess.run([sys.executable, str(script), "--top-p", "0"], capture_output=True, timeout=120, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "top-p" in bad.stderr
