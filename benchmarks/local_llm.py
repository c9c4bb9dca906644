"""Items per second of the local LLM backend on tagging prompts, against one `generate` a prompt.

    python benchmarks/local_llm.py [--model FOLDER_OR_GGUF] [--items 192] [--out FILE]

Films of ml-100k (RecBole's copy) with one prompt of instructions and four examples; greedy, at most
32 new tokens, the answer ends with its line. The baseline is `model.generate` of transformers, as
it comes, on every n-th of the same prompts, one at a time, with the same weights, end of answer
and penalty on repeated words; its texts are compared with ours. Loading is timed apart.
"""

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from time import perf_counter

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
    from dataset_tools.llm.requests import Completion, Prompt
    from dataset_tools.movielens import _read_raw, film_table

    films = film_table(_read_raw("item", {"item_id": "token", "class": "token_seq"}))
    films = films.iloc[:: max(1, len(films) // n_items)].head(n_items)
    texts = (
        ", ".join([f"{title} ({year})" if year else title, *genres])
        for title, year, genres in zip(
            films["title"], films["year"], films["category"], strict=True
        )
    )
    return [Completion(Prompt(SYSTEM, EXAMPLES, text), max_tokens, ("\n",)) for text in texts]


def ours(args, requests, dtype):
    """Seconds to load, seconds to answer, texts, and the backend."""
    from dataset_tools.llm.local import LocalBackend

    start = perf_counter()
    backend = LocalBackend(
        args.model, batch_size=args.batch_size, dtype=dtype, device="cpu", threads=args.threads
    )
    units = backend.units(requests)
    warm = [requests[i] for i in units[-1][-1:]]
    list(backend.answer([warm]))
    loading = perf_counter() - start
    backend._prefixes.cache_clear()  # the prefix is part of what is timed
    start = perf_counter()
    texts = [""] * len(requests)
    for place, answers in backend.answer([requests[i] for i in unit] for unit in units):
        for i, answer in zip(units[place], answers, strict=True):
            texts[i] = answer.value or ""
    return loading, perf_counter() - start, texts, backend


def one_at_a_time(backend, requests, threads):
    """Seconds and texts of `model.generate` of transformers, sdpa attention, its own cache."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

    class NotAgain(LogitsProcessor):
        def __init__(self, start):
            self.start = start

        def __call__(self, ids, scores):
            for token in set(ids[0, self.start :].tolist()):
                if any(c.isalnum() for c in tokenizer.decode([token])):
                    scores[0, token] -= backend.repeat_penalty
            return scores

    files = {"gguf_file": backend.files.gguf, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(backend.files.folder, **files)
    model = AutoModelForCausalLM.from_pretrained(
        backend.files.folder, **files, dtype=getattr(torch, backend.dtype)
    ).eval()
    if threads:
        torch.set_num_threads(threads)
    texts, start = [], 0.0
    for place, request in enumerate([requests[0], *requests]):
        if place == 1:  # the first is a warm-up
            start = perf_counter()
        turns = [{"role": "system", "content": SYSTEM}]
        for user, answer in EXAMPLES:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        turns.append({"role": "user", "content": request.prompt.user})
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        n_read = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                max_new_tokens=request.max_tokens,
                do_sample=False,
                stop_strings=list(request.stop),
                tokenizer=tokenizer,
                logits_processor=[NotAgain(n_read)],
            )
        text = tokenizer.decode(out[0, n_read:], skip_special_tokens=True)
        texts.append(text.split(request.stop[0])[0].strip())
    return perf_counter() - start, texts[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder or GGUF file; default: the packaged SmolLM2")
    parser.add_argument("--items", type=int, default=192)
    parser.add_argument("--baseline_items", type=int, default=12)
    parser.add_argument("--max_tokens", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, help="threads of torch; default: its choice")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    args = parser.parse_args()

    import torch
    import transformers

    requests = requests_of(args.items, args.max_tokens)
    places = range(0, len(requests), max(1, len(requests) // args.baseline_items))
    rows = []
    for dtype in args.dtypes:
        loading, seconds, texts, backend = ours(args, requests, dtype)
        sample = [requests[i] for i in places]
        base_seconds, base_texts = one_at_a_time(backend, sample, args.threads)
        equal = sum(texts[i] == text for i, text in zip(places, base_texts, strict=True))
        rate, base_rate = len(requests) / seconds, len(sample) / base_seconds
        rows.append(
            {
                "dtype": dtype,
                "items_per_second": round(rate, 2),
                "one_at_a_time_items_per_second": round(base_rate, 3),
                "times_faster": round(rate / base_rate, 1),
                "equal_texts": f"{equal} of {len(sample)}",
                "seconds_to_load": round(loading, 1),
            }
        )
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
    report = {
        "model": backend.files.name,
        "items": len(requests),
        "max_tokens": args.max_tokens,
        "batch_size": args.batch_size,
        "rows": rows,
        "threads": args.threads or torch.get_num_threads(),
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
