"""RecBole's own SequentialDataset, without the plugin, as the judge of written files."""

import json
import subprocess
import sys

# What RecBole 1.2.1 takes from older numpy, without the plugin.
NAMES = (
    "import numpy as np; np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_"
)
STOCK = (
    f"""
{NAMES}
"""
    + """
import json, sys
import numpy as np
import recbole.config, recbole.data.dataset as d
config = recbole.config.Config(model="SASRec", dataset=sys.argv[2], config_dict={
    "data_path": sys.argv[1], "load_col": None, "train_neg_sample_args": None,
    "user_inter_num_interval": None, "additional_feat_suffix": json.loads(sys.argv[3]),
    "alias_of_item_id": ["text_iid"] if "itemtext" in sys.argv[3] else None,
    "preload_weight": {"text_iid": "clip_text"} if "itemtext" in sys.argv[3] else None})
data = d.SequentialDataset(config)
assert not any(name.startswith("recbole_tema") for name in sys.modules)
feat = data.inter_feat
items = data.id2token("item_id", np.asarray(feat["item_id"]))
users = data.id2token("user_id", np.asarray(feat["user_id"]))
out = {
    "users": data.user_num - 1, "items": data.item_num - 1, "events": data.inter_num,
    "pairs": sorted(zip(map(str, users), map(str, items))),
    "fields": {f: str(data.field2type[f].value) for f in data.field2type},
    "domains": data.num("domain") - 1,
}
if "itemtext" in sys.argv[3]:
    ids = data.field2id_token["text_iid"].tolist()
    matrix = data.get_preload_weight("text_iid")
    out["vectors"] = {t: matrix[i].tolist() for i, t in enumerate(ids)}
print("RESULT" + json.dumps(out))
"""
)


def stock_recbole(data_path, name, suffixes=()):
    """What RecBole's own SequentialDataset makes of a dataset, in a process without the plugin."""
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(data_path), name, json.dumps(list(suffixes) or None)],
        capture_output=True,
        text=True,
        cwd=data_path,
    )
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])
