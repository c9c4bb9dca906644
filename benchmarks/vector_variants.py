"""A copy of an enriched dataset without the language model's item vectors, to compare LLM4CDSR.

    python benchmarks/vector_variants.py NAME [--data_path FOLDER]

NAME is a dataset with item vectors and profiles by `python -m dataset_tools embed` and `profile`.
Beside it comes NAME-minilm-vectors, whose item vectors are MiniLM's of the same texts, tags
included. Everything else, profiles too, is the same, byte for byte.
"""

import argparse
from pathlib import Path

from tag_variants import copy_of

from dataset_tools.dataset.dataset import read_dataset, update_dataset
from dataset_tools.dataset.provenance import BY_MODEL
from dataset_tools.encoders.loading import load_encoder
from dataset_tools.enrich.embeddings import item_words
from recbole_tema.paths import default_data_path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--data_path", type=Path, default=Path(default_data_path()))
    args = parser.parse_args()
    dataset = read_dataset(args.data_path / args.name, args.name)
    for field, command in (("llm_emb", "embed"), ("profile_emb", "profile")):
        if not dataset.generated(field).startswith(BY_MODEL):
            parser.error(
                f"{dataset.folder} lacks what 'python -m dataset_tools {command} {args.name}' "
                "makes; run it first"
            )
    copied = copy_of(dataset, f"{args.name}-minilm-vectors")
    items, words = dataset.column("item_id"), item_words(dataset)
    pairs = [(item, text) for item, text in zip(items, words, strict=True) if text]
    encoder = load_encoder("minilm")
    vectors = encoder.texts([text for _, text in pairs])
    update_dataset(
        copied,
        features={"itemllm": ([item for item, _ in pairs], vectors)},
        generated={"llm_emb": f"{encoder.name} of domain, title, texts and tags"},
    )
    print(f"{copied.folder}: {len(pairs)} item vectors by {encoder.name}")


if __name__ == "__main__":
    main()
