"""A small dataset of known content, and a language model that answers by the words it is shown.

The model knows what tags go with a word of a title, writes junk among them, and writes down every
request; so what comes out of the pipeline can be told beforehand.
"""

import hashlib
import json
import re

import numpy as np
import pandas as pd

from dataset_tools.dataset.dataset import read_dataset
from dataset_tools.dataset.writer import write_dataset
from dataset_tools.llm.requests import Answer, Completion, Embedding, Scoring

NAME = "shop"
# Word of a title -> what the model says of it, junk included. Nobody else says "steaming".
SAYS = {
    "tea": "black teas, hot drink, breakfast, food food food, B0013JJZWC",
    "coffee": "Coffee, hot drink, breakfast, <b>morning</b>, the best thing that you can ever have",
    "pasta": "noodle, italian cuisine, dinner, dinner, 1234567",
    "cake": "dessert, baking, party, tag, &nbsp;, steaming",
    "knife": "cutting, steel, cooks, Item: knife",
    "oven": "baking, black tea, dinner, category",
    "history": "war, past times, serious, breakfast",
}
MORE = "breakfast, dinner, weekend"  # said of items with few tags
SYNONYMS = {"noodle", "italian cuisine"}
WORDS = {
    "food": ("tea", "coffee", "pasta", "cake"),
    "kitchen": ("tea", "knife", "oven", "coffee"),
    "book": ("history", "cake", "tea", "pasta"),
}
N_ITEMS = 52  # per domain


def shop_items(domains=("food", "kitchen")):
    """52 items a domain; the titles are the domain's words in turn with a number."""
    rows = [
        (f"{domain[0]}{i}", domain, f"Fine {WORDS[domain][i % 4]} of maker {chr(97 + i % 26)}")
        for domain in domains
        for i in range(N_ITEMS)
    ]
    return pd.DataFrame(rows, columns=["item_id", "domain", "title"])


def shop_events(items, n_users=30, seed=0):
    """Users 0 to 3 have 1 to 4 events, every fourth user stays in the first domain."""
    rng = np.random.default_rng(seed)
    first = items.loc[items["domain"] == items["domain"].iloc[0], "item_id"].tolist()
    events = [
        (f"u{user}", item, 1000 + 50 * place + user)
        for user in range(n_users)
        for place, item in enumerate(
            rng.choice(
                first if user % 4 == 0 else items["item_id"].to_numpy(),
                user + 1 if user < 4 else int(rng.integers(5, 12)),
            )
        )
    ]
    return pd.DataFrame(events, columns=["user_id", "item_id", "timestamp"])


def write_shop(folder, domains=("food", "kitchen"), items=None, **features):
    """Write the dataset into `folder / NAME` and read it."""
    items = shop_items(domains) if items is None else items
    card = {"source": "made by hand"}
    write_dataset(folder / NAME, NAME, shop_events(items), items, card=card, **features)
    return read_dataset(folder / NAME, NAME)


class WordBackend:
    """Answers by words; `asked` holds every request in order.

    Args:
        likelihoods: Scores as likelihoods, answers as text; else ratings, answers as JSON.
        faults: Requests whose text holds one of these words get no answer.
        edits: Answer to every editing question, as JSON text.
        says: Word of a title -> tags.
    """

    def __init__(self, likelihoods, faults=(), edits="{}", says=None, identity="words"):
        self.identity, self.likelihoods, self.faults = identity, likelihoods, faults
        self.edits, self.says, self.asked = edits, SAYS if says is None else says, []

    def units(self, requests):
        return [list(range(i, min(i + 8, len(requests)))) for i in range(0, len(requests), 8)]

    def answer(self, units):
        for place, unit in enumerate(units):
            self.asked += unit
            yield place, [self.one(request) for request in unit]

    def count_tokens(self, text):
        return len(text.split())

    def users(self, kind=Completion):
        """What the user says in all requests of a kind."""
        return [request.prompt.user for request in self.asked if isinstance(request, kind)]

    def more(self):
        """The questions for more tags of an item."""
        return [r for r in self.asked if "You choose tags" in r.prompt.system]

    def one(self, request):
        if isinstance(request, Embedding):
            return Answer(_vector(request.text), 5, 0)
        if any(word in request.prompt.user for word in self.faults):
            return Answer(None, 5, 0, fault="an empty answer")
        if isinstance(request, Scoring):
            return Answer(self._scores(request), 50, 0)
        return Answer(self._text(request), 50, 9)

    def _scores(self, request):
        """High where a word of the option stands in what the model says of the item."""
        if found := re.fullmatch(r"Another word for (.*):", request.prompt.user):
            return [-0.5 if {found[1], o} == SYNONYMS else -6.0 for o in request.options]
        said = self._said(request.prompt.user).casefold()
        fits = [sum(word[:4] in said for word in option.split()) for option in request.options]
        return [-4.0 + 3 * n if self.likelihoods else min(1.0, n / 2) for n in fits]

    def _said(self, user):
        return next((tags for word, tags in self.says.items() if word in user), "")

    def _text(self, request):
        system, user = request.prompt.system, request.prompt.user
        if '"merge"' in system:
            return self.edits
        if "key terms" in system:
            return self._description(user, request.schema)
        if "notes about the user" in system:
            return f"A person: {user.removeprefix('Notes: ')}"
        if "what a user likes" in system:
            words = sorted({word for word in SAYS if word in user})
            return f'"Likes {" and ".join(words)}."'
        tags = MORE if "You choose tags" in system else self._said(user)
        if request.schema is None:
            return tags
        assert not self.likelihoods
        return json.dumps({"tags": tags.split(", ")})

    def _description(self, user, schema):
        """Of an item whose word is known: what is said of it, a sentence, who likes it."""
        word = next((word for word in self.says if word in user), "")
        parts = {"key_terms": self._said(user).split(", "), "summary": f"A fine {word}.",
                 "audience": f"people who like {word}"}  # fmt: skip
        if schema is not None:
            return json.dumps(parts)
        terms = ", ".join(parts["key_terms"])
        return f"Key terms: {terms}\nSummary: {parts['summary']}\nFor: {parts['audience']}"


def _vector(text):
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest, np.uint8).astype(np.float32) / 255 - 0.5


def word_vectors(texts):
    """Unit vectors of texts (n, 64): sums of the hashed vectors of their words' beginnings."""
    rows = []
    for text in texts:
        words = re.findall(r"\w+", text.casefold()) or ["?"]
        rows.append(sum(np.tile(_vector(word[:4]), 2) for word in words))
    matrix = np.stack(rows).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
