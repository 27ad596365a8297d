"""transformers loads what is exported and computes the same logits; what transformers saved is read the same."""

import dataclasses

import numpy as np
import pytest
from models import SMALL, WIDE, mesh_of, rough_params, small_run, tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from templar_jax.config import ModelConfig  # noqa: E402
from templar_jax.export import export_folder, import_folder, logits, max_abs_logit_error  # noqa: E402
from templar_jax.huggingface.config_json import read_config  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of libraries that are not ours
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TOLERANCE = 1e-4  # of logits of order 1 to 10 in float32: sums in another order


@pytest.mark.parametrize("model", [SMALL, WIDE], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_an_export_are_equal(tmp_path, model, dtype):
    run = small_run(dataclasses.replace(model, vocab=512, rope_theta=500_000.0, norm_eps=1e-3))
    params = rough_params(run, mesh_of(2))
    export_folder(tmp_path / "model", run, params.__getitem__, dtype=dtype, shard_bytes=2**20, vocab=300)
    error, how = max_abs_logit_error(tmp_path / "model", run, params, mesh_of(2))
    assert error is not None and error < TOLERANCE, how
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    assert theirs.eos_token_id == 256 and theirs.vocab_size == 300


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_transformers_saved_are_read(tmp_path, tied):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=tied,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(0.3 if weight.ndim == 1 else 0.0, 0.1)
    theirs.save_pretrained(tmp_path / "model", max_shard_size="200KB")
    found = read_config(tmp_path / "model")
    assert found.model == ModelConfig(320, 128, 2, 4, 2, 32, 192, 10_000.0, 1e-5, tied) and found.vocab == 300
    run = small_run(found.model)
    params = import_folder(tmp_path / "model", run, mesh_of(4))
    tokens_BS = tokens(run, 2) % 300
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens_BS.astype(np.int64))).logits.numpy()
    ours = logits(run, mesh_of(4))(params, tokens_BS)
    np.testing.assert_allclose(ours[..., :300], expected, atol=TOLERANCE)
    mean = expected.mean(-1)[..., None]  # the rows that were added have the mean logit
    np.testing.assert_allclose(ours[..., 300:], np.broadcast_to(mean, (*mean.shape[:2], 20)), atol=TOLERANCE)


def test_transformers_opens_the_bytes_tokenizer(tmp_path):
    run = small_run(dataclasses.replace(SMALL, vocab=320))
    export_folder(tmp_path / "model", run, rough_params(run).__getitem__)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "héllo \n  wörld \x00 日本 ."
    assert tokenizer(text).input_ids == list(text.encode())
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("a<|endoftext|>").input_ids == [97, 256] and tokenizer.eos_token_id == 256


def test_a_generated_text_is_transformers_own_greedy_one(tmp_path):
    run = small_run(dataclasses.replace(SMALL, vocab=320))
    params = rough_params(run)
    export_folder(tmp_path / "model", run, params.__getitem__)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").float()
    prompt = torch.tensor([[72, 101, 108, 108, 111]])
    text = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=256)[0].numpy()
    forward = logits(run, mesh_of(1))
    ours = np.asarray(prompt)[0].astype(np.int32)
    for _ in range(12):  # without a cache, at one padded length
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ours)] = ours
        ours = np.append(ours, forward(params, padded)[0, len(ours) - 1].argmax())
    np.testing.assert_array_equal(ours, text)


MIXTRAL = dataclasses.replace(SMALL, ffn_dim=0, experts=6, experts_per_token=2, expert_ffn_dim=128)


@pytest.mark.parametrize("tied", [True, False])
def test_a_mixture_of_experts_is_a_mixtral(tmp_path, tied):
    run = small_run(dataclasses.replace(MIXTRAL, tied=tied, vocab=512, rope_theta=500_000.0))
    params = rough_params(run, mesh_of(2))
    export_folder(tmp_path / "model", run, params.__getitem__, shard_bytes=2**20)
    error, how = max_abs_logit_error(tmp_path / "model", run, params, mesh_of(2))
    assert error is not None and error < TOLERANCE, how
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(theirs).__name__ == "MixtralForCausalLM"
    theirs.save_pretrained(tmp_path / "again")
    found = read_config(tmp_path / "again")
    assert dataclasses.replace(found.model, load_balance=0.01, z_loss=1e-3) == run.model
    back = import_folder(tmp_path / "again", run, mesh_of(4))
    for name, value in params.items():
        np.testing.assert_array_equal(np.asarray(back[name]), np.asarray(value), err_msg=name)
