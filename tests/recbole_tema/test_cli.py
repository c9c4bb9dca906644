"""The command line, mostly as a process of its own: exit codes, one-line errors, help."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recbole_tema.cli import main, parse_arguments
from recbole_tema.config.files import config_files
from recbole_tema.config.registry import model_names
from recbole_tema.errors import ConfigError

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).resolve().parents[2] / "run_recbole_tema.py"


def start(*arguments, cwd, **kwargs):
    environment = {**os.environ, "RECBOLE_TEMA_DATA": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def run(*arguments, cwd):
    """Run the script in the folder ``cwd``, which also is the folder of datasets."""
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


# Arguments


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=TEMA"], {"model": "TEMA"}),
        (["--model", "TEMA", "-d", "x"], {"model": "TEMA", "dataset": "x"}),
        (["-m=TEMA", "-d", "x"], {"model": "TEMA", "dataset": "x"}),
        (["--a=b=c"], {"a": "b=c"}),
        (["--gpu_id="], {"gpu_id": ""}),
        (["--seed", "-1"], {"seed": "-1"}),
        (["--resume"], {"resume": True}),
        (["--resume", "--seed=1"], {"resume": True, "seed": "1"}),
        (["--resume", "False"], {"resume": "False"}),
        (["--seed=1", "--seed=1"], {"seed": "1"}),
        (["-h"], {"help": True}),
        ([], {}),
    ],
)
def test_arguments_are_split(words, expected):
    assert parse_arguments(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TEMA"], "unexpected argument 'TEMA'"),
        (["-x=1"], "unexpected argument '-x=1'"),
        (["--"], "unexpected argument '--'"),
        (["--=3"], "unexpected argument '--=3'"),
        (["--resume", "yes"], "unexpected argument 'yes'"),
        (["--seed"], "--seed has no value"),
        (["--seed", "--epochs=1"], "--seed has no value"),
        (["--seed=1", "--seed=2"], "--seed is given twice: '1' and '2'"),
        (["-m", "TEMA", "--model=SASRec"], "--model is given twice"),
    ],
)
def test_wrong_arguments_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments(words)


def test_config_files_are_split_at_blanks_unless_one_file_has_them(tmp_path):
    both = tmp_path / "a b.yaml"
    assert config_files("a.yaml  b.yaml") == ["a.yaml", "b.yaml"]
    both.write_text("")
    assert config_files(str(both)) == [str(both)]


# Exit codes and messages


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=TEMMA"], ["unknown model 'TEMMA'", "did you mean TEMA?"]),
        (["--model="], ["unknown model ''", "--help lists all"]),
        (["--model=sasrec"], ["unknown model 'sasrec'", "did you mean SASRec?"]),
        (["--dataset=ml-100k"], ["unknown dataset 'ml-100k'", "mean ml-100k-genre?"]),
        (["--config_file=a.yaml"], ["unknown key 'config_file'", "config_files"]),
        (["--model=TEMA", "--fusion=x"], ["fusion is 'x' (command line)", "sum, gate, concat"]),
        (["--dataset=ml-100k-gnre"], ["unknown dataset 'ml-100k-gnre'", "ml-100k-genre?"]),
        (["--epoch=3"], ["unknown key 'epoch' (command line)", "epochs"]),
        (["--overlap_ratio=2"], ["overlap_ratio is 2 (command line)", "from 0 to 1"]),
        (["--hidden_size=wide"], ["hidden_size is 'wide' (command line)", "an integer"]),
        (["--eval_args={'modes': 'full'}"], ["eval_args has no part 'modes'", "mode"]),
        (["--topk=5,x"], ["topk is [5, 'x'] (command line)", "integers"]),
        (["--metrics=Hit,NDGC"], ["metrics is ['Hit', 'NDGC'] (command line)", "ndcg"]),
        (["--model=SASRec", "--selected_features=3"], ["selected_features is [3]", "fields"]),
        (["--models=TEMA,SASRec", "--topk=5;10"], ["topk is ['5;10'] (command line)", "integers"]),
        (["--user_inter_num_interval=5,10"], ["user_inter_num_interval is '5,10'", "[5,inf)"]),
        (["--POS_ITEMS=1"], ["unknown key 'POS_ITEMS' (command line) for model TEMA"]),
        (["--config_files=none.yaml"], ["config file 'none.yaml' cannot be read"]),
        (["TEMA"], ["unexpected argument 'TEMA'"]),
        (["--seed=1", "--seed=2"], ["--seed is given twice"]),
        (["--help", "--model=TEMMA"], ["unknown model 'TEMMA'"]),
    ],
)
def test_wrong_input_is_one_line_and_code_2(tmp_path, arguments, words):
    code, out, err = run(*arguments, cwd=tmp_path)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_found_before_torch_is_imported(tmp_path):
    program = (
        "import sys; from recbole_tema.cli import main; code = main(['--model=Pop', '--epoch=1']); "
        "sys.exit(9 if {'torch', 'recbole', 'pandas'} & set(sys.modules) else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SCRIPT.parent, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr


def test_a_key_in_a_file_is_named_with_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("model: SASRec\ndataset: ml-100k-genre\n")
    (tmp_path / "b.yaml").write_text("hiden_size: 3\n")
    code, _, err = run("--config_files=a.yaml b.yaml", cwd=tmp_path)
    assert code == 2
    assert "unknown key 'hiden_size' (config file 'b.yaml') for model SASRec" in err
    assert "hidden_size" in err


def test_the_command_line_wins_over_the_file_for_model_and_dataset(tmp_path):
    (tmp_path / "a.yaml").write_text("model: NoSuch\ndataset: none-such\n")
    _, _, err = run("--config_files=a.yaml", "--dataset=x", cwd=tmp_path)
    assert "unknown model 'NoSuch'" in err
    _, _, err = run("--config_files=a.yaml", "--model=Pop", cwd=tmp_path)
    assert "unknown dataset 'none-such'" in err


@pytest.mark.parametrize("place", ["file", "command line"])
def test_code_as_a_value_is_not_run(tmp_path, place):
    trace = tmp_path / "trace"
    code = f"__import__('os').system('touch {trace}')"
    if place == "file":
        (tmp_path / "a.yaml").write_text(f'seed: "{code}"\n')
        arguments = ["--config_files=a.yaml"]
    else:
        arguments = [f"--seed={code}"]
    exit_code, _, err = run(*arguments, cwd=tmp_path)
    assert exit_code == 2
    assert "seed is \"__import__('os')" in err
    assert not trace.exists()


def test_an_interrupt_says_how_to_go_on(tmp_path, tiny_root):
    long = ["--epochs=1000000", "--stopping_step=1000000"]
    process = start(
        *("--model", "BPR", "--dataset=tiny", f"--data_path={tiny_root}", *long),
        cwd=tmp_path,
        start_new_session=True,
        # A shell starts what it runs in the background deaf to Ctrl-C, the tests too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    waiting = time.monotonic() + 90
    try:
        while not list(tmp_path.glob("saved/*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < waiting, "no checkpoint after 90 s"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("interrupted; ")
    assert last.endswith(
        f"run_recbole_tema.py --model=BPR --dataset=tiny --data_path={tiny_root} {' '.join(long)} "
        "--resume=True"
    )


# Help


def test_help_lists_models_datasets_and_keys(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "shop.inter").write_text("")
    code, out, err = run("--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    words = out.replace(",", " ").split()
    assert set(model_names()) <= set(words)
    assert {"ml-100k-genre", "shop"} <= set(words)
    for key in ("--epochs=300", "--candidates=in_domain", "--seed=2020", "--resume=False"):
        assert key in words
    assert out.index("TEMA") < out.index("SASRec") < out.index("LightGCN") < out.index("DeepFM")
    assert max(map(len, out.splitlines())) <= 120


def test_help_for_a_model_lists_its_keys(tmp_path, capsys):
    assert main(["--help", "--model=TEMA"]) == 0
    assert "--hidden_size=" in capsys.readouterr().out
    assert main(["--help", "--model=NARM"]) == 0  # RecBole's
    assert re.search(r"keys of NARM.*\n(.*\n)*  --dropout_probs=", capsys.readouterr().out)
    assert main(["--help"]) == 0
    assert "--hidden_size=" not in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--seeds=5", "--jobs=2", "--results_dir=r", "--tune=3"])
def test_arguments_of_benchmarks_are_known_as_such(capsys, word):
    assert main(["--model=LLM4CDSR", word]) == 2
    name = word.partition("=")[0]
    told = f"{name} is of benchmarks: give --models=LLM4CDSR in place of --model"
    assert capsys.readouterr().err == f"error: {told}\n"


def test_help_says_which_features_are_read_here(capsys):
    assert main(["--help", "--model=FDSA"]) == 0
    assert "--selected_features=(the tags, or the domain" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert "RecBole 1.2.1" in capsys.readouterr().out
