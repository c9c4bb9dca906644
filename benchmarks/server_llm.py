"""Answers a second of the `openai` backend against a server that takes 200 ms for each.

    python benchmarks/server_llm.py [--concurrency 32] [--requests 1600] [--one_core] [--out FILE]

The server is a process of its own on loopback. Without any work of the client, `concurrency`
requests at a time and 0.2 s each make 160 answers a second; the share of that is what counts.
`--one_core` pins client and server to the same core.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time

REPLY = {
    "object": "chat.completion",
    "model": "fixed",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "green tea, loose leaf, organic, Japan"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 210, "completion_tokens": 11, "total_tokens": 221},
}


async def serve(delay_s):
    """Answer every POST with REPLY after `delay_s`; prints the port and runs until killed."""
    body = json.dumps(REPLY).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    answer = head.encode() + b"\r\n" + body

    async def connected(reader, writer):
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in request.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                await reader.readexactly(length)
                await asyncio.sleep(delay_s)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def requests(n):
    """Tagging requests of the usual size: a page of instructions, two examples, one title."""
    from dataset_tools.llm.requests import Completion, Prompt

    system = "You write tags for the products of a shop. " * 12
    examples = (("Title: Oolong, 100 g", "tea, oolong"), ("Title: Iron pan", "pan, cast iron"))
    return [Completion(Prompt(system, examples, f"Title: product {i}"), 48) for i in range(n)]


def measure(port, args):
    """(seconds, CPU seconds of this process) for `args.requests` answers, warm-up not counted."""
    from dataset_tools.llm.openai_api import OpenAIBackend

    url = f"http://127.0.0.1:{port}/v1"
    backend = OpenAIBackend("fixed", url, concurrency=args.concurrency)
    n, warm = args.requests, 4 * args.concurrency
    start = cpu = 0.0
    for count, (_, answers) in enumerate(backend.answer([r] for r in requests(n + warm))):
        if answers[0].value is None:
            sys.exit(f"error: a request has no answer: {answers[0].fault}")
        if count + 1 == warm:
            start, cpu = perf_counter(), process_time()
    if backend.troubles:
        print(f"failed tries: {dict(backend.troubles)}", file=sys.stderr)
    return perf_counter() - start, process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1600)
    parser.add_argument("--delay_s", type=float, default=0.2)
    parser.add_argument("--one_core", action="store_true", help="client and server on one core")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return asyncio.run(serve(args.delay_s))
    if args.one_core:  # the server inherits it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    command += ["--delay_s", str(args.delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            seconds, cpu = measure(int(server.stdout.readline()), args)
        finally:
            server.terminate()
    most = args.concurrency / args.delay_s
    report = {
        "concurrency": args.concurrency,
        "delay_s": args.delay_s,
        "requests": args.requests,
        "answers_per_second": round(args.requests / seconds, 1),
        "most_possible": round(most, 1),
        "share": round(args.requests / seconds / most, 3),
        "client_cpu_ms_per_answer": round(1000 * cpu / args.requests, 2),
        "cores": len(os.sched_getaffinity(0)),
        "openai": version("openai"),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
