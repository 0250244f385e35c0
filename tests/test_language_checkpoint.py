import copy
import hashlib
import io
import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sentencepiece
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereForCausalLM,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    StableLmForCausalLM,
)

from src.data.prompt import IMAGE
from src.model import weight_files
from src.model.language_checkpoint import language_identity, load_language
from src.model.vlm import build_vlm
from src.runtime.errors import UserError
from tests.rounding import float32_norms, rounding

VOCAB = 320
SENTENCES = ["the chest x-ray shows a nodule in the left lung", "is there an effusion ? yes no", "what modality is shown here ?"]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCAB}


@pytest.fixture(scope="module")
def pmc_llama(tmp_path_factory):
    """A small PMC-LLaMA in the format of its repository (.bin shards, early special ids, a tokenizer without names), and the model."""
    folder = tmp_path_factory.mktemp("pmc_llama")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    tokenizer_config = {"bos_token": "", "eos_token": "", "unk_token": "", "model_max_length": 10**30, "tokenizer_class": "LLaMATokenizer"}
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(folder / "special_tokens_map.json", {})
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-6, "max_sequence_length": 2048}
    write_json(folder / "config.json", SHAPE | ids | settings | {"torch_dtype": "float32", "tie_word_embeddings": False})
    write_json(folder / "generation_config.json", ids)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=1e-6, tie_word_embeddings=False)).eval()
    state = model.state_dict() | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(2)}
    write_shards(folder, state)
    return folder, model


def sentencepiece_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def write_shards(folder, state: dict[str, torch.Tensor]) -> None:
    weight_map = {}
    for n in range(2):
        file = f"pytorch_model-0000{n + 1}-of-00002.bin"
        part = {name: value.clone() for name, value in list(state.items())[n::2]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def write_json(file, content: dict) -> None:
    file.write_text(json.dumps(content))


def load(folder, **changes):
    return load_language(str(folder), **({"revision": "unverified", "dtype": torch.float32} | changes))


def special_ids(owner) -> tuple:
    return owner.bos_token_id, owner.eos_token_id, owner.pad_token_id


def test_special_ids_follow_the_vocabulary(pmc_llama):
    model, tokenizer = load(pmc_llama[0])
    assert special_ids(model.config) == special_ids(model.generation_config) == special_ids(tokenizer) == (1, 2, 0)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]


def test_tokens_match_sentencepiece(pmc_llama):
    _, tokenizer = load(pmc_llama[0])
    reference = sentencepiece.SentencePieceProcessor(model_file=str(pmc_llama[0] / "tokenizer.model"))
    for text in (*SENTENCES, "unseen: 37 \u00b5m, T2-weighted"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == text


def test_logits_match_transformers(pmc_llama):
    model, _ = load(pmc_llama[0])
    ids = torch.randint(3, VOCAB, (2, 9))
    with torch.no_grad():
        logits, expected = model.double()(ids).logits[..., :VOCAB], copy.deepcopy(pmc_llama[1]).double()(ids).logits
    # Our head has more rows, so that its product may add in another order.
    assert (logits - expected).abs().max() <= rounding(float32_norms(model.config), expected.abs().max())


def test_vocabulary_is_padded_with_zeros_to_a_multiple_of_64(pmc_llama):
    model, tokenizer = load(pmc_llama[0])
    assert tokenizer.convert_tokens_to_ids(IMAGE) == VOCAB
    assert tokenizer(f"a {IMAGE} b", add_special_tokens=False).input_ids.count(VOCAB) == 1
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert part.weight.shape[0] == 384
        assert not part.weight[VOCAB:].any()


def test_generation_stops_at_eos_of_the_vocabulary(pmc_llama, tmp_path):
    """The head always prefers </s>. With the ids of the files, generation would not stop."""
    folder = copy_folder(pmc_llama[0], tmp_path / "ends")
    state = dict(pmc_llama[1].state_dict())
    state["model.norm.weight"] = torch.zeros(32)
    state["model.norm.weight"][0] = 1.0
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.embed_tokens.weight"][:, 0] = 50.0
    state["lm_head.weight"] = torch.zeros(VOCAB, 32)
    state["lm_head.weight"][2, 0] = 1.0
    write_shards(folder, state)
    model, tokenizer = load(folder)
    generated = model.generate(torch.tensor([[1, 270, 271]]), max_new_tokens=5, do_sample=False)
    assert generated.tolist() == [[1, 270, 271, 2]]
    assert tokenizer.decode(generated[0, 3:], skip_special_tokens=True) == ""


def copy_folder(folder, target):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_eos_tokens_of_tokenizer_and_generation_config_are_kept(pmc_llama, tmp_path):
    """A modern folder: safetensors, tokenizer.json, several eos ids in the generation config, padded vocabulary."""
    original = PreTrainedTokenizerFast(tokenizer_object=load(pmc_llama[0])[1].backend_tokenizer, bos_token="<s>", eos_token="<|end|>")
    original.save_pretrained(tmp_path)
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 448})))
    model.generation_config.eos_token_id = [2, original.eos_token_id]
    model.save_pretrained(tmp_path)
    loaded, tokenizer = load(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.eos_token_id == tokenizer.eos_token_id == original.eos_token_id != 2
    assert loaded.generation_config.eos_token_id == [2, original.eos_token_id]
    assert loaded.get_input_embeddings().weight.shape[0] == 448
    with torch.no_grad():
        ids = torch.arange(10)[None]
        assert torch.equal(loaded(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)(ids).logits)


def test_identity_depends_on_every_shard(pmc_llama, tmp_path):
    before = language_identity(str(pmc_llama[0]), revision="unverified")
    names = sorted(pmc_llama[0].glob("pytorch_model-*.bin"))
    lines = "".join(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in names)
    assert before == {"id": str(pmc_llama[0]), "revision": "unverified", "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    changed = copy_folder(pmc_llama[0], tmp_path / "changed")
    state = dict(pmc_llama[1].state_dict())
    write_shards(changed, state | {"model.norm.weight": state["model.norm.weight"] + 1e-6})
    assert language_identity(str(changed), revision="unverified")["sha256"] != before["sha256"]


class Payload:
    def __reduce__(self):
        return (print, ("code in a pickle ran",))


def damage(folder, kind: str) -> None:
    shard = folder / "pytorch_model-00001-of-00002.bin"
    if kind == "truncated":
        shard.write_bytes(shard.read_bytes()[:2000])
    elif kind == "code":
        torch.save(torch.load(shard, weights_only=True) | {"payload": Payload()}, shard)
    elif kind == "wrong shape":
        write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | {"intermediate_size": 96})
    elif kind == "missing tensor":
        part = torch.load(shard, weights_only=True)
        del part["model.embed_tokens.weight"]
        torch.save(part, shard)
    elif kind == "missing shard":
        shard.unlink()
    elif kind == "unknown model":
        write_json(folder / "config.json", {"model_type": "mystery", "auto_map": {"AutoConfig": "configuration_mystery.MysteryConfig"}})
    elif kind == "tokenizer":
        (folder / "tokenizer.model").unlink()
    elif kind == "no weights":
        for file in folder.glob("pytorch_model*"):
            file.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "cannot be loaded as a causal language model"),
        ("code", "cannot be loaded as a causal language model: its weights hold Python objects besides tensors"),
        ("wrong shape", "the file has wrong shapes: model.layers.0.mlp.down_proj.weight"),
        ("missing tensor", "the file lacks model.embed_tokens.weight"),
        ("missing shard", "pytorch_model-00001-of-00002.bin"),
        ("unknown model", "cannot be loaded as a causal language model"),
        ("tokenizer", "is a folder without tokenizer.json or tokenizer.model"),
        ("no weights", "is a folder without"),
    ],
)
def test_broken_folders_are_refused_in_one_line(pmc_llama, tmp_path, capfd, kind, message):
    folder = copy_folder(pmc_llama[0], tmp_path / "broken")
    damage(folder, kind)
    with pytest.raises(UserError) as error:
        load(folder)
    print(error.value)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert "code in a pickle ran" not in capfd.readouterr().out


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}


def write_random_weights(folder, model_class, **settings):
    """Random weights of another architecture, next to the tokenizer of `folder`."""
    model_class(
        model_class.config_class(**SMALL, vocab_size=330, bos_token_id=1, eos_token_id=2, pad_token_id=0, **settings)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (
            Gemma2ForCausalLM,
            "Gemma2ForCausalLM with final_logit_softcapping=30.0, attn_logit_softcapping=50.0, which training would ignore",
        ),
        (
            CohereForCausalLM,
            "is a CohereForCausalLM with logit_scale=0.0625, which training would ignore; give a model that",
        ),
        (StableLmForCausalLM, "is a StableLmForCausalLM with its own attention, which training would ignore"),
    ],
)
def test_models_that_compute_what_llama_does_not_are_refused(language, tmp_path, model_class, message):
    folder = write_random_weights(shutil.copytree(language, tmp_path / "other"), model_class)
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.slow
def test_attention_window_shorter_than_max_seq_len_is_refused(configure, language, tmp_path):
    folder = write_random_weights(shutil.copytree(language, tmp_path / "other"), MistralForCausalLM, sliding_window=100)
    build_vlm(configure(f"language.path={folder}", "data.max_seq_len=100"))
    with pytest.raises(UserError, match=r"sliding attention window of 100 tokens, which .*; set data.max_seq_len=100 or less$"):
        build_vlm(configure(f"language.path={folder}", "data.max_seq_len=101"))


def test_tokenizer_may_lack_bos_and_have_tokens_beyond_the_embedding(language, tmp_path):
    """Qwen has no bos token; a [PAD] token that was added later has no row in the embedding."""
    folder = shutil.copytree(language, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    model, tokenizer = load(folder)
    assert special_ids(tokenizer) == special_ids(model.config) == (2, 2, 330)
    assert model.get_input_embeddings().weight.shape[0] > tokenizer.convert_tokens_to_ids(IMAGE) == 331


def test_hub_that_accepts_no_connection_is_not_asked(monkeypatch, tmp_path):
    """The client of the hub would repeat its attempts for most of a minute."""
    monkeypatch.setattr(weight_files, "getproxies", dict)
    weight_files.is_reachable.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert weight_files.is_reachable(address)
    weight_files.is_reachable.cache_clear()
    assert not weight_files.is_reachable(address)
    monkeypatch.setattr(weight_files.constants, "ENDPOINT", address)
    calls = []
    monkeypatch.setattr(
        weight_files, "hf_hub_download", lambda *names, local_files_only, **rest: calls.append(local_files_only) or tmp_path
    )
    weight_files.find_file("owner/name", ["config.json"], revision="unverified", key="language.path")
    assert calls == [True]


@pytest.mark.parametrize(
    ("scheme", "status", "reached"), [("https", 403, False), ("https", 200, True), ("http", 407, False), ("http", 401, True)]
)
def test_hub_behind_a_proxy_is_asked_if_the_proxy_lets_us_through(monkeypatch, scheme, status, reached):
    """With `https`, the proxy opens a tunnel, and fails at once at the handshake that follows."""

    class Proxy(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def do_CONNECT(self):
            self.do_HEAD()
            if status == 200:
                self.wfile.write(b"no handshake")

        def log_message(self, *_):
            pass

    weight_files.is_reachable.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(weight_files, "getproxies", lambda: {scheme: f"http://127.0.0.1:{server.server_address[1]}"})
        assert weight_files.is_reachable(f"{scheme}://hub.invalid") is reached
        server.shutdown()
    weight_files.is_reachable.cache_clear()
    assert not weight_files.is_reachable(f"{scheme}://hub.invalid")  # the proxy is down
    weight_files.is_reachable.cache_clear()
