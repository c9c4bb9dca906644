"""What a dry run says that a run will ask and cost."""

import pytest

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.asking import Tally
from dataset_tools.llm.estimate import Estimate, estimate
from dataset_tools.llm.requests import Embedding
from tests.dataset_tools.llm.test_asking import ask_all
from tests.support.hash_backend import HashBackend, completion, requests, scoring

pytestmark = pytest.mark.long


def test_an_estimate_is_what_the_run_then_takes(tmp_path):
    wanted = [completion(f"item {i}") for i in range(30)] * 2
    ask_all(tmp_path, wanted[:10], HashBackend(size=1))
    backend, tally = HashBackend(size=1), Tally()
    with AnswerStore(tmp_path, readonly=True) as store:
        forecast = estimate(backend, wanted, store, price_in=1_000_000, price_out=2_000_000)
    assert backend.asked == []
    ask_all(tmp_path, wanted, backend, tally=tally)
    assert forecast.calls == tally.calls == 20
    # "You tag." "tea" "hot, green" "item i": 2 + 1 + 2 + 2 words; 8 tokens to write at most
    cost = 20.0 * 7 + 2 * 20 * 8
    assert forecast == Estimate(30, 10, 20, 20, 20 * 7, 20 * 8, cost, 20 * 8, cost)
    assert str(forecast) == (
        "calls: 20 (20 of 30 requests are to be asked)\ntokens in: about 140\n"
        "tokens out: at most about 160\ncost: at most about 460.00"
    )


def test_estimates_of_scores_and_vectors(tmp_path):
    backend = HashBackend()
    with AnswerStore(tmp_path / "absent", readonly=True) as store:
        rated = [scoring("a b c", ("x", "y z"))]
        assert estimate(backend, rated, store) == Estimate(1, 0, 1, 1, 4 + 3, 0, None, 0, None)
        backend.likelihoods = False
        assert estimate(backend, rated, store, 3.0) == Estimate(1, 0, 1, 1, 4, 16, None, 16, None)
        vectors = estimate(backend, [Embedding("a b")], store, price_in=500_000)
        assert vectors == Estimate(1, 0, 1, 1, 2, 0, 1.0, 0, 1.0)
        total = vectors + estimate(backend, rated, store, 3.0, 3.0)
        assert total.calls == 2 and total.cost == pytest.approx(1.0 + 60e-6)
    assert not (tmp_path / "absent").exists()


def test_an_estimate_is_of_this_part(tmp_path):
    with AnswerStore(tmp_path, (2, 3), readonly=True) as store:
        forecast = estimate(HashBackend(size=1), requests(10), store)
    assert forecast.calls == 3 and "7 of them by other parts" in str(forecast)
