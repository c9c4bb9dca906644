"""Thoughts of a local model are no answer of its."""

import pytest

from dataset_tools.llm.local import LocalBackend
from tests.dataset_tools.llm.test_local import prompt_ids
from tests.support.tiny_llm import (
    CHAT,
    ask,
    completion,
    make_model,
    make_tokenizer,
    save,
)

pytestmark = pytest.mark.long

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="the features extra is not installed")


OPENS = CHAT.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def short(max_tokens):
    return completion("tea", max_tokens, examples=())


def thinking_model(folder, said, template=CHAT):
    """A model that has learnt by heart to write `said` after any prompt."""
    tokenizer = make_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    torch.manual_seed(0)
    model = make_model("llama", tokenizer)
    prompt = prompt_ids(tokenizer, short(1).prompt)
    answer = tokenizer(said + "<|im_end|>", add_special_tokens=False)["input_ids"]
    ids = torch.cat([prompt, torch.tensor([answer])], 1)
    labels = ids.clone()
    labels[:, : prompt.shape[1]] = -100
    steps = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        steps.zero_grad()
        loss.backward()
        steps.step()
        if loss < 0.02:
            break
    return LocalBackend(save(folder, tokenizer, model.eval()))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHAT, "<think>\nspy, film\n</think>\n\ntea, kettle\nrice"),
        (CHAT, "[THINK]spy\nfilm[/THINK]tea, kettle\nrice"),  # special tokens of the model
        (OPENS, "spy\nfilm\n</think>\ntea, kettle\nrice"),
    ],
    ids=["think", "special", "opened by the template"],
)
def test_thoughts_of_a_local_model_are_no_answer(tmp_path, template, said):
    backend = thinking_model(tmp_path / "thinks", said, template)
    whole, cut = ask(backend, [short(60)]) + ask(backend, [short(5)])
    assert whole.value == "tea, kettle"
    assert cut.value is None and cut.lasting and "thoughts took the whole answer" in cut.fault
