"""Tiny language models with a tokenizer of their own, made here."""

import random

import pytest

from dataset_tools.llm.local import LocalBackend
from dataset_tools.llm.requests import Completion, Prompt, Scoring
from recbole_tema.errors import BackendError

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}"
    "{% endif %}" + CHAT[len("{% for m in messages %}") :]
)


EXAMPLES = (("Alien (1979), Horror", "space, monster"), ("Toy Story", "toys, friends"))


SYSTEM = "You give films tags."
WORDS = [
    "alien",
    "space",
    "golden",
    "eye",
    "spy",
    "film",
    "comedy",
    "drama",
    "toy",
    "story",
    "music",
    "blue",
    "tea",
    "kettle",
    "rice",
]


def make_tokenizer(chat_template=CHAT, pad=True):
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [f"{a} {b}, {SYSTEM} user assistant system" for a in WORDS for b in WORDS]
    tokenizer.train_from_iterator(text, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.add_tokens(["<think>"])  # an added token that is not called special
    if pad:
        fast.pad_token = "<|im_end|>"
    fast.chat_template = chat_template
    return fast


def make_model(kind, tokenizer, seed=0):
    """A random model whose most likely tokens change from place to place."""
    import torch
    import transformers

    torch.manual_seed(seed)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            initializer_range=0.6, **special,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=1024,
        initializer_range=0.4, **special,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def save(folder, tokenizer, model):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def completion(user, max_tokens=12, stop=("\n",), system=SYSTEM, examples=EXAMPLES):
    return Completion(Prompt(system, examples, user), max_tokens, stop)


def scoring(user, options):
    return Scoring(Prompt(SYSTEM, EXAMPLES, user), Prompt("", (), ""), tuple(options))


def titles(n, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(n)]


def ask(backend, requests):
    """Answers in the order of the requests."""
    units = backend.units(requests)
    answers = [None] * len(requests)
    for place, found in backend.answer([requests[i] for i in unit] for unit in units):
        for i, answer in zip(units[place], found, strict=True):
            answers[i] = answer
    return answers


def fails(model, match, **options):
    with pytest.raises(BackendError, match=match) as caught:
        ask(LocalBackend(model, **options), [completion("tea")])
    assert str(model) in str(caught.value)
