"""``--preset=llm4cdsr-official`` against the authors' code: the same data, weights and negatives.

    git clone https://github.com/Applied-Machine-Learning-Lab/LLM4CDSR-pytorch
    python benchmarks/official_llm4cdsr.py LLM4CDSR-pytorch

Small data are made, with sequences beyond the 200 events that the model sees, and users of one
domain and of both. The authors' model is made of it, its weights are disturbed and copied into
ours. Compared are the rows of a batch, the parts of the loss and some gradients on the authors' own
batch, and the logits of every item of the target's domain, without dropout, in double precision.
Writes ``results/official_llm4cdsr.json``.
"""

import argparse
import json
import os
import pickle
import sys
import tempfile
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from recbole.data.interaction import Interaction
from sklearn.decomposition import PCA

from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.model.contrast import soft_contrastive_loss

RESULTS = Path(__file__).resolve().parent.parent / "results" / "official_llm4cdsr.json"
SIZES = (620, 560)  # items of each domain: more than the 1,024 components of the global thread
USERS, WIDTH, LONGEST = 60, 1536, 200
LETTERS = "AB"


def random_data() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Sequences of items from 0, domain A first; vectors of items; profiles of users."""
    rng = np.random.default_rng(0)
    sequences = []
    for user in range(USERS):
        length = rng.integers(5, 60) if user % 6 else rng.integers(195, 290)
        second = rng.random(length) < (0.5, 0.1, 0.9, 0.0, 1.0)[user % 5]
        item = (rng.random(length) * np.where(second, SIZES[1], SIZES[0])).astype(int)
        sequences.append(item + second * SIZES[0])
    basis = rng.normal(size=(sum(SIZES), WIDTH)) * np.linspace(1, 0.02, sum(SIZES))[:, None]
    vectors = (rng.normal(size=(sum(SIZES), sum(SIZES))) @ basis / 30).astype(np.float32)
    return sequences, vectors, rng.normal(size=(USERS, WIDTH)).astype(np.float32) / 10


def write_dataset(folder: Path, sequences: list, vectors: np.ndarray, profiles: np.ndarray) -> None:
    """The data as atomic files: user ``u3``, item ``i17``, domains A and B."""

    def write(suffix: str, header: str, rows: list) -> None:
        lines = [header, *("\t".join(map(str, row)) for row in rows)]
        (folder / f"small.{suffix}").write_text("\n".join(lines).replace("|", "\t") + "\n")

    def cell(vector: np.ndarray) -> str:
        return " ".join(f"{value:.9g}" for value in vector)

    folder.mkdir()
    events = [(f"u{u}", f"i{i}", t) for u, seq in enumerate(sequences) for t, i in enumerate(seq)]
    write("inter", "user_id:token|item_id:token|timestamp:float", events)
    domains = [(f"i{i}", LETTERS[i >= SIZES[0]]) for i in range(sum(SIZES))]
    write("item", "item_id:token|domain:token", domains)
    rows = [(f"i{i}", cell(vector)) for i, vector in enumerate(vectors)]
    write("itemllm", "llm_iid:token|llm_emb:float_seq", rows)
    rows = [(f"u{u}", cell(vector)) for u, vector in enumerate(profiles)]
    write("userllm", "profile_uid:token|profile_emb:float_seq", rows)


def pca_difference(vectors: np.ndarray, ours: np.ndarray) -> float:
    """The largest one between scikit-learn's exact components and ours, but for their signs."""
    theirs = PCA(ours.shape[1], svd_solver="full").fit_transform(vectors.astype(np.float64))
    return float(np.abs(theirs * np.sign((theirs * ours).sum(0)) - ours).max())


def their_model(ours: torch.nn.Module, item_of: np.ndarray, profiles: np.ndarray) -> tuple:
    """The authors' model over our tables, and the arguments that it takes.

    The sign of a component is arbitrary, so the tables are the same; their files are pickles.
    """
    local, shared = ours.local_items.weight.detach().numpy(), ours.llm.numpy()
    first, second = item_of[1 : SIZES[0] + 1], item_of[SIZES[0] + 1 :]
    tables = {"e_A_pca128": local[first], "e_B_pca128": local[second]}
    tables |= {"e_all": shared[item_of[1:]], "profiles": profiles}
    folder = Path("data/small/handled")
    folder.mkdir(parents=True)
    for name, table in tables.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(table.astype(np.float64)))
    from models.LLMCDSR import LLM4CDSR

    torch.manual_seed(0)
    args = SimpleNamespace(
        dataset="small", llm_emb_file="e", user_emb_file="profiles", global_emb=True,
        local_emb=True, freeze_emb=True, hidden_size=128, max_len=LONGEST, dropout_rate=0.5,
        trm_num=2, num_heads=1, alpha=0.1, beta=0.1, tau=1.0, tau_reg=1.0, aug_seq=False,
        aug_seq_len=0,
    )  # fmt: skip
    items = dict(zip("01", SIZES, strict=True))
    return LLM4CDSR(USERS, items, torch.device("cpu"), args), args


def copy_weights(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    """Disturb their weights, so that no bias is 0 and no LayerNorm plain, and copy them."""
    generator = torch.Generator().manual_seed(1)
    for weight in theirs.parameters():
        if weight.requires_grad:
            size = 0.02 if weight.dim() > 1 else 0.2
            weight.data += size * torch.randn(weight.shape, generator=generator)
    pairs = [(theirs.backbone, theirs.pos_emb, ours.global_encoder)]
    pairs.append((theirs.backboneA, theirs.pos_embA, ours.local_encoders[0]))
    pairs.append((theirs.backboneB, theirs.pos_embB, ours.local_encoders[1]))
    for source, position, encoder in pairs:
        encoder.position.weight.data = position.weight.data[1:].clone()  # row 0 is of padding
        encoder.last_norm.load_state_dict(source.last_layernorm.state_dict())
        for layer, block in enumerate(encoder.blocks):
            attention, forward = source.attention_layers[layer], source.forward_layers[layer]
            block.attn_norm.load_state_dict(source.attention_layernorms[layer].state_dict())
            block.norm.load_state_dict(source.forward_layernorms[layer].state_dict())
            block.qkv.weight.data = attention.in_proj_weight.data.clone()
            block.qkv.bias.data = attention.in_proj_bias.data.clone()
            block.out.load_state_dict(attention.out_proj.state_dict())
            for linear, convolution in (
                (block.inner, forward.conv1),
                (block.outer, forward.conv2),
            ):
                linear.weight.data = convolution.weight.data[:, :, 0].clone()
                linear.bias.data = convolution.bias.data.clone()
    ours.adapter.load_state_dict(theirs.adapter.state_dict())
    ours.profile_adapter.load_state_dict(theirs.user_adapter.state_dict())


def as_ours(batch: dict[str, np.ndarray], item_of: np.ndarray, users: np.ndarray) -> Interaction:
    """Their batch, padded on the left, as an interaction of ours, with their negatives."""
    length = (batch["seq"] > 0).sum(1)
    found = {name: np.zeros_like(batch["seq"]) for name in ("seq", "pos", "neg", "local")}
    for user, n in enumerate(length):
        for name in ("seq", "pos", "neg"):
            found[name][user, :n] = item_of[batch[name][user, LONGEST - n :]]
        for domain, letter in enumerate(LETTERS):
            drawn = batch[f"neg{letter}"][user][batch[f"pos{letter}"][user] > 0]
            steps = np.flatnonzero(batch["domain_mask"][user, LONGEST - n :] == domain)
            found["local"][user, steps] = item_of[drawn + domain * SIZES[0]]
    names = ("item_id_list", "target_id_list", "neg_item_id_list", "local_neg_item_id_list")
    fields = dict(zip(names, map(torch.from_numpy, found.values()), strict=True))
    fields |= {"user_id": torch.from_numpy(users), "item_length": torch.from_numpy(length)}
    return Interaction(fields)


def their_batch(args: SimpleNamespace, sequences: list, evaluation: bool) -> dict[str, np.ndarray]:
    """All users as the authors' code makes them, in training or in the test."""
    from generators.data import CDSREvalSeq2SeqDataset, CDSRRegSeq2SeqDatasetUser

    np.random.seed(3)
    domains = [(sequence >= SIZES[0]).astype(int) for sequence in sequences]
    items = [s - d * SIZES[0] + 1 for s, d in zip(sequences, domains, strict=True)]
    if not evaluation:
        domains, items = ([part[:-2] for part in parts] for parts in (domains, items))
    kind = CDSREvalSeq2SeqDataset if evaluation else CDSRRegSeq2SeqDatasetUser
    data = kind(args, items, domains, dict(zip("01", SIZES, strict=True)), LONGEST)
    rows = [data[user] for user in range(USERS)]
    columns = zip(data.var_name, zip(*rows, strict=True), strict=True)
    return {name: np.array(column).astype(np.int64) for name, column in columns}


def compare_losses(theirs, ours, batch, inter, item_of) -> dict:
    """Parts of the loss, ``[theirs, ours, difference]``, and differences of gradients."""
    parts = {}
    for name in ("reg_loss_func", "user_loss_func"):
        module = getattr(theirs, name)
        plain = module.forward
        module.forward = lambda x, y, n=name, f=plain: parts.setdefault(n, f(x, y))
    total = theirs(**{name: torch.from_numpy(values) for name, values in batch.items()})
    regular, profile = 0.1 * parts["reg_loss_func"], 0.1 * parts["user_loss_func"]
    # Their random picks in place of ours.
    picks = [torch.from_numpy(item_of[batch[name][batch[name] > 0]]) for name in ("reg_A", "reg_B")]
    ours._regularisation = lambda tables, _: soft_contrastive_loss(
        *(ours.adapted_items()[pick] for pick in picks), ours.tau_reg
    )
    terms = ours.calculate_loss(inter)
    names = ("recommendation", "regularisation", "alignment", "total")
    found = (total - regular - profile, regular, profile, total)
    losses = {
        name: [float(a), float(b), abs(float(a - b))]
        for name, a, b in zip(names, found, (*terms, sum(terms)), strict=True)
    }
    total.backward()
    sum(terms).backward()
    weights = {
        "adapter": (theirs.adapter[0].weight, ours.adapter[0].weight),
        "profile adapter": (theirs.user_adapter[0].weight, ours.profile_adapter[0].weight),
    }
    for name, source, encoder in (
        ("global attention", theirs.backbone, ours.global_encoder),
        ("local attention of A", theirs.backboneA, ours.local_encoders[0]),
        ("local attention of B", theirs.backboneB, ours.local_encoders[1]),
    ):
        weights[name] = source.attention_layers[0].in_proj_weight, encoder.blocks[0].qkv.weight
    gradients = {n: float((a.grad - b.grad).abs().max()) for n, (a, b) in weights.items()}
    return {"losses": losses, "differences of gradients": gradients}


def compare_logits(theirs, ours, batch, sequences, item_of) -> dict:
    """Every item of the target's domain, after all events but the last."""
    histories = [item_of[sequence[:-1] + 1][-LONGEST:] for sequence in sequences]
    length = torch.tensor([len(history) for history in histories])
    padded = torch.zeros(USERS, LONGEST, dtype=torch.long)
    for user, history in enumerate(histories):
        padded[user, : len(history)] = torch.from_numpy(history)
    scores = ours.full_sort_predict(Interaction({"item_id_list": padded, "item_length": length}))
    largest, worst, count = 0.0, 0.0, 0
    for domain, size in enumerate(SIZES):
        mine = batch["target_domain"] == domain
        asked = {name: torch.from_numpy(values[mine]) for name, values in batch.items()}
        local = torch.arange(1, size + 1).expand(int(mine.sum()), -1)
        asked["item_indices"] = local + domain * SIZES[0]
        for letter in LETTERS:
            other = torch.ones_like(local)
            asked[f"item_indices{letter}"] = local if letter == LETTERS[domain] else other
        found = theirs.predict(**asked)
        columns = item_of[1 + domain * SIZES[0] :][:size]
        difference = (found - scores[torch.from_numpy(mine)][:, columns]).abs()
        largest = max(largest, float(found.abs().max()))
        worst, count = max(worst, float(difference.max())), count + found.numel()
    return {"logits": count, "largest": largest, "difference": worst}


def main() -> None:
    """Compare and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="folder of the authors' code")
    checkout = parser.parse_args().checkout.resolve()
    sys.path.insert(0, str(checkout))
    sequences, vectors, profiles = random_data()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_dataset(Path("small"), sequences, vectors, profiles)
        keys = {"preset": "llm4cdsr-official", "data_path": folder, "exclude_history": False}
        config = TemaConfig(dataset="small", config_dict=keys)
        dataset = create_dataset(config, config.model_class)
        prepared = data_preparation(config, dataset, config.model_class)
        ours = config.model_class(config, prepared.train_dataset)
        tokens = dataset.field2token_id
        item_of = np.array([0, *(tokens["item_id"][f"i{i}"] for i in range(sum(SIZES)))])
        users = np.array([tokens["user_id"][f"u{user}"] for user in range(USERS)])
        theirs, args = their_model(ours, item_of, profiles)
        local, by_item = ours.local_items.weight.detach().numpy(), item_of[1:]
        first = SIZES[0]
        components = {
            "A": pca_difference(vectors[:first], local[by_item[:first]]),
            "B": pca_difference(vectors[first:], local[by_item[first:]]),
            "both": pca_difference(vectors, ours.llm.numpy()[by_item]),
        }
        copy_weights(theirs, ours)
        theirs, ours = theirs.double().eval(), ours.double().eval()
        batch = their_batch(args, sequences, evaluation=False)
        inter = as_ours(batch, item_of, users)
        (own,) = prepared.train_data
        place = torch.argsort(own["user_id"])[torch.argsort(torch.argsort(inter["user_id"]))]
        fields = ("user_id", "item_id_list", "target_id_list")
        record = {
            "rows of our loader are theirs": all(
                torch.equal(own[field][place], inter[field]) for field in fields
            ),
            "differences of components": components,
            **compare_losses(theirs, ours, batch, inter, item_of),
        }
        batch = their_batch(args, sequences, evaluation=True)
        with torch.no_grad():
            record["test"] = compare_logits(theirs, ours, batch, sequences, item_of)
    record |= {"date": date.today().isoformat(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
