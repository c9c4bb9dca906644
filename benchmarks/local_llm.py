"""Items per second of the local LLM backend on tagging prompts, against transformers' `generate`.

    python benchmarks/local_llm.py [--model FOLDER_OR_GGUF] [--items 128] [--repeats 3] [--out FILE]

Films of ml-100k (RecBole's copy) with one prompt of instructions and four examples; greedy, at most
32 new tokens, the answer ends with its line. The peer is `model.generate` of transformers used as
its documentation tells: the same prompts in the same batches, filled up at their left, with a copy
of the keys and values of the shared prefix for each row, the same weights, end of answer and
penalty on repeated words. Both take turns, each computes the prefix anew every time, and the share
of equal texts is told. Loading is not timed. With --one_at_a_time N, `generate` of N prompts one by
one is timed too: what batches are worth, whoever makes them.
"""

import argparse
import copy
import json
import os
import platform
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

STOP = "\n"
SYSTEM = "You give films descriptive tags: topics, plot, mood and setting, separated by commas."
EXAMPLES = (
    (
        "GoldenEye (1995), Action, Adventure, Thriller",
        "spy, james bond, secret agent, gadgets, villain, chase, cold war",
    ),
    (
        "Sleepless in Seattle (1993), Comedy, Romance",
        "romantic comedy, widower, love letters, radio, fate, new york, feel-good",
    ),
    (
        "Alien (1979), Horror, Sci-Fi, Thriller",
        "space, monster, spaceship, survival, suspense, isolation, strong heroine",
    ),
    (
        "Toy Story (1995), Animation, Children's, Comedy",
        "toys, friendship, family, adventure, talking toys, computer animation, jealousy",
    ),
)


def requests_of(n_items, max_tokens):
    """A completion for each of `n_items` films, spread over the catalogue."""
    from dataset_tools.builtin.movielens import _read_raw, film_table
    from dataset_tools.llm.requests import Completion, Prompt

    films = film_table(_read_raw("item", {"item_id": "token", "class": "token_seq"}))
    films = films.iloc[:: max(1, len(films) // n_items)].head(n_items)
    texts = (
        ", ".join([f"{title} ({year})" if year else title, *genres])
        for title, year, genres in zip(
            films["title"], films["year"], films["category"], strict=True
        )
    )
    return [Completion(Prompt(SYSTEM, EXAMPLES, text), max_tokens, (STOP,)) for text in texts]


def ours(backend, requests):
    """Seconds to answer `requests`, and the texts."""
    backend._prefixes.cache_clear()  # the prefix is part of what is timed
    units = backend.units(requests)
    texts = [""] * len(requests)
    start = perf_counter()
    for place, answers in backend.answer([requests[i] for i in unit] for unit in units):
        for i, answer in zip(units[place], answers, strict=True):
            texts[i] = answer.value or ""
    return perf_counter() - start, texts


class Peer:
    """`model.generate` of transformers with sdpa attention, on the tokens that `backend` reads."""

    def __init__(self, backend):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        files = {"gguf_file": backend.files.gguf, "local_files_only": True}
        self.backend = backend
        self.tokenizer = AutoTokenizer.from_pretrained(backend.files.folder, **files)
        self.model = AutoModelForCausalLM.from_pretrained(
            backend.files.folder, **files, dtype=getattr(torch, backend.dtype)
        ).eval()
        tokens = [[i] for i in range(self.model.config.vocab_size)]
        words = self.tokenizer.batch_decode(tokens)
        self.is_word = torch.tensor([any(c.isalnum() for c in word) for word in words])
        self.ends_line = torch.tensor([STOP in word for word in words])
        self.pad = self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0

    def texts(self, requests):
        """Seconds to answer `requests` in the backend's batches, and the texts."""
        start, texts = perf_counter(), [""] * len(requests)
        prompt = requests[0].prompt
        prefix = self.backend._prompter.frame(prompt.system, prompt.examples).prefix
        cache = self.prefix_cache(prefix)
        for unit in self.backend.units(requests):
            found = self.batch([requests[i] for i in unit], prefix, cache)
            for i, text in zip(unit, found, strict=True):
                texts[i] = text
        return perf_counter() - start, texts

    def prefix_cache(self, prefix):
        """Keys and values of the prefix, of one row."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        with torch.inference_mode():
            self.model(torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
        return cache

    def batch(self, requests, prefix, cache):
        """The texts of one batch."""
        import torch

        owns = [self.backend._prompter.own_tokens(request.prompt, 1 << 20) for request in requests]
        longest = max(map(len, owns))
        fill = [longest - len(own) for own in owns]
        rows = [[*prefix, *[self.pad] * n, *own] for n, own in zip(fill, owns, strict=True)]
        mask = [[1] * len(prefix) + [0] * n + [1] * (longest - n) for n in fill]
        copied = copy.deepcopy(cache)
        copied.batch_repeat_interleave(len(rows))
        return self.generate(requests[0], torch.tensor(rows), torch.tensor(mask), copied)

    def generate(self, request, ids, mask, cache=None):
        """The texts that `generate` writes after rows of tokens (B, L)."""
        import torch

        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=request.max_tokens,
                do_sample=False,
                pad_token_id=self.pad,
                # Not `stop_strings`: for these it decodes the vocabulary anew at each call.
                stopping_criteria=[lambda ids, scores, **_: self.ends_line[ids[:, -1]]],
                logits_processor=[self.penalty(ids.shape[1])],
            )
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.split(STOP)[0].strip() for text in texts]

    def penalty(self, start):
        """What words that an answer has already lose, as a processor of logits."""
        import torch

        def processor(ids, scores):
            written = ids[:, start:]
            loss = self.is_word[written] * self.backend.repeat_penalty
            return scores - torch.zeros_like(scores).scatter_(1, written, loss.to(scores.dtype))

        return processor

    def one_at_a_time(self, requests):
        """Seconds to answer `requests` in batches of one without a prefix kept, and the texts."""
        import torch

        start, texts = perf_counter(), []
        for request in requests:
            prompt = request.prompt
            frame = self.backend._prompter.frame(prompt.system, prompt.examples)
            own = self.backend._prompter.own_tokens(prompt, 1 << 20)
            ids = torch.tensor([[*frame.prefix, *own]])
            texts += self.generate(request, ids, torch.ones_like(ids))
        return perf_counter() - start, texts


def compared(args, requests, dtype):
    """The row of one number format, and the backend."""
    from dataset_tools.llm.local import LocalBackend

    backend = LocalBackend(
        args.model, batch_size=args.batch_size, dtype=dtype, device="cpu", threads=args.threads
    )
    peer = Peer(backend)
    few = requests[: min(2, len(requests))]
    sides = {"ours": lambda part: ours(backend, part), "peer": peer.texts}
    for answer in sides.values():
        answer(few)  # warm
    seconds = {side: [] for side in sides}
    texts = {}
    for repeat in range(args.repeats):
        for side in sorted(sides, reverse=bool(repeat % 2)):
            spent, texts[side] = sides[side](requests)
            seconds[side].append(spent)
    equal = sum(a == b for a, b in zip(texts["ours"], texts["peer"], strict=True))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    row = {
        "dtype": dtype,
        "items_per_second": round(len(requests) / median(seconds["ours"]), 2),
        "batched_generate_items_per_second": round(len(requests) / median(seconds["peer"]), 2),
        "times_faster": round(median(ratios), 2),
        "times_faster_least_and_most": [round(min(ratios), 2), round(max(ratios), 2)],
        "equal_texts": f"{equal} of {len(requests)}",
    }
    if args.one_at_a_time:
        sample = requests[:: max(1, len(requests) // args.one_at_a_time)][: args.one_at_a_time]
        spent, _ = peer.one_at_a_time(sample)
        row["one_at_a_time_items_per_second"] = round(len(sample) / spent, 3)
    return row, backend


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder or GGUF file; default: the packaged SmolLM2")
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3, help="of each side, in turns")
    parser.add_argument(
        "--one_at_a_time", type=int, default=0, metavar="N", help="time N prompts one by one too"
    )
    parser.add_argument("--max_tokens", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, help="threads of torch; default: its choice")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    args = parser.parse_args()

    import torch
    import transformers

    if args.threads:
        torch.set_num_threads(args.threads)
    requests = requests_of(args.items, args.max_tokens)
    rows = []
    for dtype in args.dtypes:
        row, backend = compared(args, requests, dtype)
        rows.append(row)
    for row in rows:
        print("\n".join(f"{key}: {value}" for key, value in row.items()))
    report = {
        "model": backend.files.name,
        "items": len(requests),
        "repeats": args.repeats,
        "max_tokens": args.max_tokens,
        "batch_size": args.batch_size,
        "rows": rows,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def _cpu():
    """The processor's name as Linux gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
