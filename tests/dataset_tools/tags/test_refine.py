"""Self-refinement: edits of a model that writes, judgements of one that has likelihoods."""

import json
from collections import Counter

import numpy as np
import pytest

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.prompts import load_prompt
from dataset_tools.llm.requests import Answer
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.generate import RawTags
from dataset_tools.tags.listing import Edits, TagList, first_list
from dataset_tools.tags.matching import own_tags
from dataset_tools.tags.refine import (
    PIECE,
    Refinement,
    edit_requests,
    judge_requests,
    judged_merges,
    list_pieces,
    maybe_synonyms,
    near_pairs,
    read_edits,
    specificity,
)
from tests.support.word_backend import WordBackend, shop_items, word_vectors, write_shop

TAGS = ["tea", "coffee", "cake", "pasta", "oven", "knife", "steel", "war", "party", "dinner"]


def ten_tags():
    counts = {tag: Counter(food=i + 1, kitchen=i % 2) for i, tag in enumerate(TAGS)}
    return TagList(counts, {tag: tag for tag in TAGS} | {"teas": "tea", "vague": ""})


def read(tags, *answers):
    """Edits of answers to questions that showed the whole list."""
    texts = [a if isinstance(a, Answer) else Answer(a if isinstance(a, str) else json.dumps(a))
             for a in answers]  # fmt: skip
    return read_edits(tags, texts, [TAGS] * len(texts))


# ---- a model that writes


def test_every_tag_of_a_domain_is_asked_about_once():
    names = [f"t{i:04}" for i in range(2 * PIECE + 1)]
    tags = TagList({t: Counter(a=3, b=i % 2) for i, t in enumerate(names)}, {})
    pieces = list_pieces(tags, ["a", "b"])
    assert [tag for domain, piece in pieces for tag in piece if domain == "a"] == names
    assert [tag for domain, piece in pieces for tag in piece if domain == "b"] == names[1::2]
    assert max(len(piece) for _, piece in pieces) == PIECE
    requests = edit_requests(tags, load_prompt("refine"), pieces)
    assert len(requests) == len(pieces)
    last = requests[len([d for d, _ in pieces if d == "a"]) - 1]
    assert last.prompt.user.endswith(f"\n{names[-1]} (3)") and json.loads(last.schema)


def test_sound_edits():
    tags = ten_tags()
    edits = read(
        tags,
        {
            "merge": [{"tag": "Steel", "into": "knife"}],
            "drop": ["party.", "war"],
            "add": ["Green tea", "hot drinks"],
        },
    )
    assert edits.merges == [("steel", "knife", "synonym, by the model")]
    assert [tag for tag, _ in edits.drops] == ["party", "war"]
    assert [tag for tag, _, _ in edits.adds] == ["green tea", "hot drinks"]
    assert len(edits) == 5 and not edits.refused
    assert tags.apply(edits, "round 1") == 5
    assert set(tags.counts) == set(TAGS) - {"steel", "party", "war"} | {"green tea", "hot drinks"}
    assert tags.counts["knife"] == {"food": 6 + 7, "kitchen": 1}
    assert [entry[1:4] for entry in tags.log] == [
        ("merge", "steel", "knife"), ("drop", "party", ""), ("drop", "war", ""),
        ("add", "green tea", ""), ("add", "hot drinks", ""),
    ]  # fmt: skip


NONSENSE = {
    "no JSON": "I would merge tea and coffee.",
    "HTML": "<html><body>502</body></html>",
    "empty": "",
    "a list": [1, 2],
    "other keys": {"tags": ["tea"]},
    "wrong types": {"merge": "tea", "drop": {"a": 1}, "add": 7},
    "wrong entries": {"merge": ["tea", {"tag": 1, "into": []}, {}], "drop": [None, {}], "add": [3]},
    "merge into itself": {"merge": [{"tag": "tea", "into": "Tea!"}]},
    "not on the list": {"merge": [{"tag": "tea", "into": "gone"}, {"tag": "x", "into": "tea"}]},
    "drops what is not there": {"drop": ["gone", "vague", "teas"]},
    "adds what is there": {"add": ["tea", "TEAS", "Kni-fe", "vague"]},
    "adds junk": {"add": ["food food food", "B0013JJZWC", "<br>", "x" * 500, "tags", "nan"]},
    "drops all": {"drop": TAGS},
    "drops all, spelled anew": {"drop": [tag.upper() + "." for tag in TAGS]},
    "merges all": {"merge": [{"tag": tag, "into": "tea"} for tag in TAGS]},
    "empty edits": {"merge": [], "drop": [], "add": []},
    "a fault": Answer(None, fault="endpoint down"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_edits_nothing(case):
    tags = ten_tags()
    edits = read(tags, NONSENSE[case])
    assert len(edits) == 0
    assert bool(edits.refused) == (case not in ("empty edits", "other keys", "wrong types")
                                   and not case.startswith("drops what"))  # fmt: skip
    assert tags.apply(edits, "round 1") == 0
    assert tags == ten_tags()


def test_a_fault_is_counted_and_the_other_answers_count():
    edits = read(ten_tags(), Answer(None, fault="endpoint down"), {"drop": ["war"]}, "{")
    assert [tag for tag, _ in edits.drops] == ["war"]
    assert edits.refused == {"endpoint down": 1, "an answer that is no JSON object": 1}


def test_an_answer_edits_only_what_it_was_shown():
    answers = [Answer(json.dumps({"drop": ["war"], "merge": [{"tag": "party", "into": "tea"}]}))]
    assert len(read_edits(ten_tags(), answers, [TAGS[:5]])) == 0


def test_at_most_three_tenths_of_a_piece_are_dropped():
    assert len(read(ten_tags(), {"drop": TAGS[:3]}).drops) == 3
    assert len(read(ten_tags(), {"drop": TAGS[:3] * 5}).drops) == 3
    edits = read(ten_tags(), {"drop": TAGS[:4], "add": ["green tea"]})
    assert not edits.drops and len(edits.adds) == 1
    assert edits.refused == {"an answer that drops more than it may": 1}


def test_merges_in_circles_and_chains():
    tags = ten_tags()
    circle = [{"tag": "tea", "into": "coffee"}, {"tag": "coffee", "into": "tea"}]
    edits = read(tags, {"merge": circle})
    assert [edit[:2] for edit in edits.merges] == [("tea", "coffee")]
    chain = [("cake", "pasta"), ("pasta", "oven"), ("oven", "knife")]
    edits = Edits(merges=[(tag, into, "") for tag, into in chain])
    assert tags.apply(edits, "1") == 3
    assert {tags.resolve(tag) for tag in ("cake", "pasta", "oven")} == {"knife"}
    assert tags.counts["knife"].total() == ten_tags().counts["knife"].total() + sum(
        ten_tags().counts[tag].total() for tag in ("cake", "pasta", "oven")
    )
    # Edits made by hand that go round: the second finds its tag gone.
    both = Edits(merges=[("war", "party", ""), ("party", "war", "")])
    assert tags.apply(both, "2") == 1 and tags.resolve("war") == "party"


def test_a_tag_that_others_merged_into_is_not_dropped():
    edits = read(ten_tags(), {"merge": [{"tag": "tea", "into": "coffee"}], "drop": ["coffee"]})
    assert len(edits.merges) == 1 and not edits.drops


# ---- a model with likelihoods


def test_near_pairs_go_from_the_rarer_to_the_more_used():
    order = sorted(TAGS)
    vectors = np.eye(len(order), dtype=np.float32)
    vectors[order.index("tea")] = vectors[order.index("coffee")]
    vectors[order.index("war")] = vectors[order.index("coffee")]
    found = near_pairs(ten_tags(), order, vectors, 0.6)
    assert sorted(found) == [("coffee", "war"), ("tea", "coffee"), ("tea", "war")]
    assert len(near_pairs(ten_tags(), order, np.ones_like(vectors), 0.6, per_tag=2)) == 2 * 8 + 1


def test_judged_merges_need_a_gain_over_the_prior_both_ways():
    pairs = [("film", "movie"), ("film", "thing"), ("tea", "mug"), ("cup", "glass")]
    asked, alone = judge_requests(pairs[:2], load_prompt("same"))
    assert [request.options for request in asked] == [("movie",), ("thing",)]
    assert [request.options for request in alone] == [("movie",), ("thing",)]
    assert "film" in asked[0].prompt.user and "film" not in alone[0].prompt.user
    said = {
        ("film", "movie"): -1.0, ("movie", "film"): -1.5,
        ("film", "thing"): -0.5, ("thing", "film"): -1.5,  # as likely as by itself: no gain
        ("tea", "mug"): -1.0, ("mug", "tea"): -6.0,  # one way only
        ("cup", "glass"): -1.0,  # the other way had a fault
    }  # fmt: skip
    answers = {pair: Answer([value]) for pair, value in said.items()}
    priors = {"movie": -4.0, "film": -4.0, "thing": -1.0, "mug": -5.0, "tea": -5.0, "glass": -5.0}
    assert judged_merges(pairs, answers, priors, 2.0) == [
        ("film", "movie", "synonym: +2.50 log-probability a token")
    ]


def test_kinds_of_one_thing_and_numbers_are_not_asked_about():
    assert not maybe_synonyms("tea", "green tea")
    assert not maybe_synonyms("1985", "1987")
    assert maybe_synonyms("sci-fi", "science fiction")


def test_specificity_compares_items_that_have_a_tag_with_others():
    own = [["tea"], ["tea"], ["cup"]]
    options = [["tea", "cup"], ["tea", "cup"], ["cup", "tea"]]
    scores = [[-1, -2], [-3, -2], [-2, -6]]
    assert specificity(own, options, scores) == {"tea": (4.0, 2), "cup": (0.0, 1)}
    assert specificity([["tea"]], [["tea"]], [[-1]]) == {}


# ---- a round


def one_round(tmp_path, backend, says, encode=word_vectors, **options):
    """The list after a round on the shop, whose items have the raw tags `says` of their word."""
    dataset = write_shop(tmp_path)
    raw = [says[title.split()[1]].split(", ") for title in dataset.column("title")]
    tags = first_list(raw, dataset.column("domain"))
    raw = RawTags(raw, Counter(), 0)
    with AnswerStore(tmp_path / "answers") as store:
        session = Session(backend, store, progress=False)
        made = Refinement(dataset, session, encode, raw, tags, TagOptions(**options)).round(1)
    return made, tags, raw


SAID = {
    "tea": "black tea, hot drink, special",
    "coffee": "coffee, hot drink, special",
    "pasta": "noodle, italian cuisine, special",
    "cake": "dessert, baking, special",
    "knife": "cutting, steel, special",
    "oven": "baking, black tea, special",
}


def test_likelihoods_merge_synonyms_and_leave_what_cannot_be_judged(tmp_path):
    def encode(texts):
        vectors = word_vectors(texts)
        places = [i for i, text in enumerate(texts) if text in ("noodle", "italian cuisine")]
        vectors[places] = vectors[places[:1]]
        return vectors

    backend = WordBackend(True)
    scores = backend._scores

    def likes_special(request):
        """As for every item: it is as likely for one as for another."""
        special = [option == "special" for option in request.options]
        values = scores(request)
        return [-2.0 if s else v for s, v in zip(special, values, strict=True)]

    backend._scores = likes_special
    made, tags, _ = one_round(tmp_path, backend, SAID, encode, min_items=1000)
    edits = {(action, tag, into) for _, action, tag, into, _ in tags.log}
    assert edits == {("merge", "italian cuisine", "noodle")}  # equally used: the alphabet
    # All items have it, so that no other could be less likely: it cannot be judged here.
    assert "special" in tags.counts
    assert made == len(tags.log)
    assert {"black tea", "hot drink", "baking", "cutting", "dessert"} <= set(tags.counts)


def test_a_tag_no_likelier_for_its_own_items_is_dropped(tmp_path):
    said = SAID | {"tea": "black tea, hot drink, whatever", "oven": "baking, black tea, whatever"}
    _, tags, _ = one_round(tmp_path, WordBackend(True), said, min_items=1000)
    why = {tag: reason for _, action, tag, _, reason in tags.log if action == "drop"}
    assert set(why) >= {"whatever"} and why["whatever"].startswith("vague: +0.00")
    assert not {"black tea", "hot drink", "baking"} & set(why)


def test_items_with_few_tags_are_asked_again_and_new_tags_join(tmp_path):
    said = dict.fromkeys(SAID, "first, second, third") | {"tea": "first", "cake": "third"}
    backend = WordBackend(False)
    made, tags, raw = one_round(tmp_path, backend, said, min_items=5)
    few = [i for i, title in enumerate(shop_items()["title"]) if "tea" in title or "cake" in title]
    assert len(backend.more()) == len(few)
    assert all("use: first, " in str(request.prompt) for request in backend.more())
    # Of "breakfast, dinner, weekend", said of all of them, each is new and of many items.
    assert made == 3 and {"breakfast", "dinner", "weekend"} <= set(tags.counts)
    assert tags.counts["weekend"] == {"food": 26, "kitchen": 13}
    assert own_tags(raw.tags, tags)[few[0]] == ["first", "breakfast", "dinner", "weekend"]
    assert raw.tags[few[-1] + 1] == ["first", "second", "third"]


def test_too_few_items_make_no_new_tag_and_what_was_merged_does_not_return(tmp_path):
    said = dict.fromkeys(SAID, "first, second, third") | {"cake": "breakfasts"}
    backend = WordBackend(False)
    made, tags, _ = one_round(tmp_path, backend, said, min_items=14)
    assert made == 0 and "dinner" not in tags.counts
    # "breakfast" is a spelling of the list's "breakfasts", which the item has.
    assert set(tags.counts) == {"first", "second", "third", "breakfasts"}
    assert tags.counts["breakfasts"] == {"food": 13}


def test_a_tag_of_several_words_that_was_offered_is_no_echo(tmp_path):
    """The tags in use stand in the question; what the task says stands there too."""
    backend = WordBackend(False)
    backend._text = lambda request: '{"tags": ["hot drink", "fit the item", "no sentences"]}'
    said = dict.fromkeys(SAID, "hot drink, second, third") | {"cake": "dessert"}
    _, tags, raw = one_round(tmp_path, backend, said, min_items=2)
    assert tags.counts["hot drink"] == {"food": 52, "kitchen": 52}
    assert raw.tags[3] == ["dessert", "hot drink"]
    assert raw.refused["echo of the prompt"] == 26


def test_edits_of_a_model_that_drops_everything_leave_the_list(tmp_path):
    backend = WordBackend(False, edits=json.dumps({"drop": ["first", "second", "third"]}))
    said = dict.fromkeys(SAID, "first, second, third")
    made, tags, _ = one_round(tmp_path, backend, said)
    assert made == 0 and set(tags.counts) == {"first", "second", "third"}


def test_an_empty_list_asks_nothing(tmp_path):
    backend = WordBackend(True)
    dataset = write_shop(tmp_path)
    raw = RawTags([[] for _ in dataset.items.index], Counter(), 0)
    tags = first_list(raw.tags, dataset.column("domain"))
    with AnswerStore(tmp_path / "answers") as store:
        session = Session(backend, store, progress=False)
        work = Refinement(dataset, session, word_vectors, raw, tags, TagOptions())
        assert work.round(1) == 0
    assert not backend.asked


def test_faults_of_a_judging_model_edit_nothing(tmp_path):
    backend = WordBackend(True, faults=("Another", "Kitchen", "Food"))
    made, tags, _ = one_round(
        tmp_path, backend, SAID, lambda texts: np.ones((len(texts), 1), np.float32), min_items=1000
    )
    assert made == 0 and not tags.log and len(backend.asked) > 100


def test_limit_holds_for_the_second_question_too(tmp_path):
    backend = WordBackend(False)
    said = dict.fromkeys(SAID, "first")
    one_round(tmp_path, backend, said, limit=7)
    assert len(backend.more()) == 7
