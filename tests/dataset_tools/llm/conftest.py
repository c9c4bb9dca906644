"""Tiny language models, once for a module, and a key for servers."""

import pytest

from dataset_tools.llm.local import LocalBackend
from tests.support.llm_servers import KEY
from tests.support.tiny_llm import make_model, make_tokenizer, save


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    tokenizer = make_tokenizer()
    where = tmp_path_factory.mktemp("models") / request.param
    return save(where, tokenizer, make_model(request.param, tokenizer))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    tokenizer = make_tokenizer()
    where = tmp_path_factory.mktemp("models") / "tiny-llama"
    return save(where, tokenizer, make_model("llama", tokenizer))


@pytest.fixture(scope="module")
def backend(folder):
    return LocalBackend(folder, batch_size=4)


@pytest.fixture(scope="module")
def plain(folder):
    """The reference: transformers' own tokenizer and model, its eager attention."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return tokenizer, model.eval()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
