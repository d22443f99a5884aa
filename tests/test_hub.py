"""Publish, find, load, reuse: against a Hub on this machine, over HTTP, with the real client."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
import yaml
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback

from conftest import HOSTS, WORDS, Host
from loopback_hub import OWNER, READER, LoopbackHub
from powerbert_hf import PoWERTrainer, PoWERTrainingArguments, cli
from powerbert_hf.card import data_of, results_of
from powerbert_hf.retention_file import read_retention
from test_bad_input import refused

# `huggingface_hub` 2.4 uploads a large file by an argument that its HTTP client would rather have by another name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ROOT = Path(__file__).parent.parent
CONFIG = {"retention_config": [0.9, 0.5, 0.3], "retention_unit": "fraction", "retention_length": 40}
FILES = {"README.md", "config.json", "model.safetensors", "retention.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def server():
    hub = LoopbackHub()
    yield hub
    hub.close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The Hub that this process asks, with the token of somebody who may write to `user/...`."""
    server.clear()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(tmp_path / ".cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    # What breaks off is tried again, without the waiting.
    monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", OWNER)
    yield server
    assert not server.unknown


@pytest.fixture
def model(hub, tokenizer, tmp_path, monkeypatch):
    """A small BERT that eliminates, in `model` of the current folder."""
    monkeypatch.chdir(tmp_path)
    Host("bert").make(**CONFIG).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return AutoModelForSequenceClassification.from_pretrained("model")


def run(*arguments):
    assert cli.main([*map(str, arguments)]) == 0


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def card(hub, repo):
    return ModelCard(hub.files(repo)["README.md"].decode())


# Both loaders in a process of their own: with the plugin, and where it cannot be imported.
WITH = """
import sys, torch, powerbert_hf
from transformers import AutoModelForSequenceClassification, pipeline
for host in ("bert", "albert"):
    model = AutoModelForSequenceClassification.from_pretrained(f"user/{host}")
    assert type(model).__module__.startswith("powerbert_hf.")
    batch = torch.load(f"{sys.argv[1]}/{host}.pt")
    wanted = batch.pop("logits")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, wanted, atol=0, rtol=0)
    assert pipeline("text-classification", model=f"user/{host}")("a good film")
"""
WITHOUT = """
import importlib.util, os, sys
sys.path[:] = [path for path in sys.path if not os.path.isdir(os.path.join(path, "powerbert_hf"))]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
assert importlib.util.find_spec("powerbert_hf") is None
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import HF_MODULES_CACHE
for host in ("bert", "albert"):
    repo = f"user/{host}"
    for trust in (None, False):
        for loader in (AutoModel, AutoModelForSequenceClassification):
            try:
                loader.from_pretrained(repo, trust_remote_code=trust)
            except ValueError as error:
                assert "trust_remote_code=True" in str(error), error
            else:
                raise AssertionError("loaded without trust")
    code = [name for name in sys.modules if name.startswith("transformers_modules.user." + host)]
    assert not code, code
    assert not os.path.exists(os.path.join(HF_MODULES_CACHE, "transformers_modules", "user", host))
for name in ("bert", "albert", "user/bert", "user/albert"):
    # A copy in a folder too, read before it is trusted.
    host, repo = name.removeprefix("user/"), name if "/" in name else f"./{name}-copy"
    model = AutoModelForSequenceClassification.from_pretrained(repo, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    batch = torch.load(f"{sys.argv[1]}/{host}.pt")
    wanted = batch.pop("logits")
    base = AutoModel.from_pretrained(repo, trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, wanted, atol=0, rtol=0)
        pooled = base(**batch, cls_only=True).pooler_output
        torch.testing.assert_close(model.classifier(pooled), wanted, atol=1e-6, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(repo)
    answer = pipeline("text-classification", model=repo, trust_remote_code=True)("a good film")[0]
    with torch.no_grad():
        scores = model(**tokenizer("a good film", return_tensors="pt")).logits.softmax(-1)
    assert abs(scores.max().item() - answer["score"]) < 1e-5
"""


@pytest.fixture
def elsewhere(hub, tmp_path):
    """Runs a script in a new process that asks the Hub as a user's would, with a cache of its own."""

    def elsewhere(script, *flags, path=None):
        env = {
            **{name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")},
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(tmp_path / f"home{len(flags)}"),
            "HF_TOKEN": OWNER,
            **({} if path is None else {"PYTHONPATH": str(path)}),
        }
        command = [sys.executable, *flags, "-c", script, str(tmp_path)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr

    return elsewhere


def test_both_backbones_give_the_same_logits_in_a_new_process_with_the_plugin_and_without(
    hub, batch, tokenizer, tmp_path, elsewhere
):
    for name in HOSTS:
        made = Host(name).make(**CONFIG)
        made.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        torch.save({**batch, "logits": logits(made, batch)}, tmp_path / f"{name}.pt")
        run("publish", tmp_path / name, "--repo", f"user/{name}", "--with-code")
        huggingface_hub.snapshot_download(f"user/{name}", local_dir=tmp_path / f"{name}-copy")
        assert hub.files(f"user/{name}").keys() > FILES
        # Through LFS, as a large file goes.
        assert list(hub.large.values())[-1] == hub.files(f"user/{name}")["model.safetensors"]
    elsewhere(WITH, path=ROOT / "src")
    elsewhere(WITHOUT, "-I")


def test_what_is_published_is_private_whole_and_tells_nothing_of_this_machine(hub, model, batch, tmp_path):
    run("publish", tmp_path / "model", "--repo", "user/one")
    assert hub.repositories["user/one"].private
    assert hub.files("user/one").keys() == FILES
    assert hub.repositories["user/one"].messages == ["initial commit", "Publish with powerbert_hf"]
    assert not [name for name, content in hub.files("user/one").items() if str(tmp_path).encode() in content]
    assert "auto_map" not in json.loads(hub.files("user/one")["config.json"])
    loaded = AutoModelForSequenceClassification.from_pretrained("user/one")
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=0, rtol=0)
    assert len(AutoTokenizer.from_pretrained("user/one")) == len(WORDS) + 5


def test_a_checkpoint_in_half_precision_goes_up_in_half_precision(hub, model, batch):
    model.to(torch.bfloat16).save_pretrained("model")
    run("publish", "model", "--repo", "user/half", "--public")
    assert not hub.repositories["user/half"].private
    loaded = AutoModelForSequenceClassification.from_pretrained("user/half")
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=0, rtol=0)


def test_a_dry_run_shows_files_and_card_and_sends_nothing(hub, model, capsys):
    run("publish", "model", "--repo", "user/one", "--dry-run", "--with-code")
    said = capsys.readouterr().out
    assert "  model.safetensors\n" in said
    assert "  modeling_powerbert.py\n" in said
    assert "trust_remote_code=True" in said
    assert not hub.requests


def test_a_repository_is_overwritten_when_told_and_holds_nothing_else_then(hub, model):
    there = hub.put("user/one", {"README.md": b"mine", "old.bin": b"old"}, private=True)
    run("publish", "model", "--repo", "user/one", "--overwrite")
    assert hub.files("user/one").keys() == FILES
    assert len(there.commits) == 3
    # The same command has nothing to do.
    run("publish", "model", "--repo", "user/one")
    assert len(there.commits) == 3
    # But it does not make it public.
    assert cli.main(["publish", "model", "--repo=user/one", "--public"]) == 2


def test_a_card_of_somebodys_own_goes_up_as_it_is(hub, model):
    own = "---\ntags: [mine]\n---\n# My model\n"
    Path("model/README.md").write_text(own)
    run("publish", "model", "--repo", "user/one")
    assert hub.files("user/one")["README.md"].decode() == own


def test_beside_a_card_of_ones_own_goes_the_configuration_of_today(hub, model):
    """`retention="user/one"` reads it before the model's."""
    own = "---\ntags:\n- mine\n---\n# My model\n"
    Path("model/README.md").write_text(own)
    run("publish", "model", "--repo", "user/one")
    loaded = AutoModelForSequenceClassification.from_pretrained("user/one")
    loaded.set_retention([0.9, 0.5, 0.2], "fraction")
    loaded.push_to_hub("user/one")
    assert hub.files("user/one")["README.md"].decode() == own
    assert read_retention("user/one").retention_config == [0.9, 0.5, 0.2]


def test_a_card_whose_metadata_cannot_be_read_is_somebodys_own(hub, model, capsys, tmp_path):
    for matter in ("a: [b\n", "- a\n"):
        Path("model/README.md").write_text(f"---\n{matter}---\n# My model\n")
        run("publish", "model", "--repo", "user/one", "--dry-run")
        assert "# My model" in capsys.readouterr().out


@pytest.mark.parametrize("broken", [r"PUT /lfs/", r"POST .*/preupload/", r"POST .*/commit/", r"POST .*/batch"])
def test_what_broke_off_is_completed_by_the_same_command(hub, model, capsys, tmp_path, broken):
    hub.break_at(broken)
    sentence = refused(capsys, tmp_path, ["model", "--repo=user/one"], "publish", said_before=len(FILES))
    assert (
        "user/one cannot be published: the connection to the Hub broke off, or there is none; try again." in sentence
    )
    assert not hub.files("user/one")
    hub.break_at(None)
    run("publish", "model", "--repo", "user/one")
    assert hub.files("user/one").keys() == FILES
    assert hub.repositories["user/one"].private


def test_what_arrived_unnoticed_is_not_sent_again(hub, model, capsys, tmp_path):
    """The commit is done, its answer lost."""
    hub.lose(r"POST .*/commit/")
    assert "broke off" in refused(capsys, tmp_path, ["model", "--repo=user/one"], "publish", said_before=len(FILES))
    hub.lose(None)
    run("publish", "model", "--repo", "user/one")
    assert "user/one holds all of this already" in capsys.readouterr().out
    assert len(hub.repositories["user/one"].commits) == 2


def test_a_card_of_your_own_that_the_hub_refuses_is_told_why(hub, model, capsys, tmp_path):
    Path("model/README.md").write_text("---\nlicense: mit\n---\n# My model\n")
    sentence = refused(capsys, tmp_path, ["model", "--repo=user/one"], "publish", said_before=None)
    assert "user/one cannot be published: Invalid metadata in README.md. - no tags" in sentence


@pytest.mark.parametrize(
    ("token", "repo", "options", "message"),
    [
        (None, "user/one", [], "there is no token; log in with `hf auth login`, or set HF_TOKEN."),
        ("hf_wrong", "user/one", [], "the Hub does not accept the token; log in with `hf auth login --force`"),
        (READER, "user/one", [], "the token does not give the right to this; use one that does"),
        (OWNER, "others/one", [], "the token does not give the right to this; use one that does"),
        (
            OWNER,
            "user/there",
            [],
            "not overwritten unasked, got user/there, which holds 1 files; `powerbert publish --overwrite` has",
        ),
        (READER, "user/there", ["--overwrite", "--public"], "the token does not give the right to this"),
        (READER, "user/hidden", [], "the token does not give the right to this"),
        (
            OWNER,
            "user/there",
            ["--overwrite"],
            "got `--private`, the default, for user/there, which is public",
        ),
        (OWNER, "user/hidden", ["--overwrite", "--public"], "got `--public` for user/hidden, which is private"),
        (OWNER, "one", [], "`--repo` must be a repository, `user/name`, got 'one'"),
        (OWNER, "user/a b", [], "`--repo` must be a repository, `user/name`, got 'user/a b'"),
        (OWNER, "user/one", ["--public", "--private"], "got `--public` and `--private`; leave one out"),
        (OWNER, "user/one", ["--with-code", "--retention-only"], "got both; leave one out"),
    ],
)
def test_refused_to_publish(hub, model, capsys, tmp_path, monkeypatch, token, repo, options, message):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.put("user/there", {"README.md": b"mine"})
    hub.put("user/hidden", {"README.md": b"mine"}, private=True)
    before = {name: len(one.commits) for name, one in hub.repositories.items()}
    assert message in refused(capsys, tmp_path, ["model", f"--repo={repo}", *options], "publish", said_before=None)
    assert {name: len(one.commits) for name, one in hub.repositories.items()} == before


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("stock", "Only a model that eliminates word-vectors has a retention configuration to publish"),
        ("off", "Only a model that eliminates word-vectors has a retention configuration to publish"),
        ("unfinished", "Only a finished run can be published, got none in model"),
        ("sweep", "One run is published at a time, got a sweep in model; choose one, such as model/speedup-2"),
        ("other", "The report of a run must be of its model"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--retention-only"]])
def test_models_that_are_not_published(hub, model, capsys, tmp_path, kind, message, more):
    source = "model"
    if kind == "stock":
        Host("bert").make_stock().save_pretrained("model")
    elif kind == "off":
        Host("bert").make().save_pretrained("model")
    elif kind == "unfinished":
        Path("model/command.json").write_text("{}")
    elif kind == "sweep":
        Path("model/command.json").write_text("{}")
        Path("model/speedup-2").mkdir()
        Path("model/sweep.json").write_text("{}")
    else:
        Path("ran").mkdir()
        Path("model").rename("ran/final")
        Path("ran/report.json").write_text(json.dumps({"retention_config": [1, 1, 1]}))
        source = "ran/final"
    assert message in refused(capsys, tmp_path, [source, "--repo=user/one", *more], "publish")
    assert not hub.repositories


@pytest.mark.parametrize(
    ("token", "model_name", "retention", "message"),
    [
        (
            OWNER,
            "stock",
            "user/cfg@v9",
            "configuration user/cfg@v9 cannot be used: the repository has no such revision",
        ),
        (OWNER, "stock", "user/none", "or it is private and the token does not open it"),
        (READER, "stock", "user/cfg", "or it is private and the token does not open it"),
        (READER, "stock", "user/gated", "access to the repository is gated; ask for it on its page"),
        ("hf_wrong", "stock", "user/cfg", "the Hub does not accept the token"),
        (READER, "user/gated", "model", "user/gated cannot be used: access to the repository is gated; ask for it"),
        (OWNER, "user/none", "model", "user/none cannot be used: there is no such file, folder or repository"),
        (OWNER, "stock", "user/broken", "broke off"),
        (OWNER, "stock", "user/empty", "the repository holds neither retention.json nor config.json"),
        (OWNER, "stock", "user/albert", "is for albert with 3 encoders, got a model of type bert with 3"),
        (OWNER, "stock", "user/deep", "is for bert with 4 encoders, got a model of type bert with 3"),
    ],
)
def test_refused_to_apply(hub, model, capsys, tmp_path, monkeypatch, token, model_name, retention, message):
    monkeypatch.setenv("HF_TOKEN", token)
    Host("bert").make_stock().save_pretrained("stock")
    fits = {"version": 1, "backbone": "bert", "encoders": 3, **CONFIG}
    hub.put("user/cfg", {"retention.json": json.dumps(fits).encode()}, private=True)
    hub.put("user/broken", {"retention.json": json.dumps(fits).encode()})
    hub.put("user/gated", {"retention.json": json.dumps(fits).encode(), "config.json": b"{}"}, gated=True)
    hub.put("user/empty", {})
    hub.put("user/albert", {"retention.json": json.dumps({**fits, "backbone": "albert"}).encode()})
    deep = {**fits, "encoders": 4, "retention_config": [0.9, 0.5, 0.3, 0.1]}
    hub.put("user/deep", {"retention.json": json.dumps(deep).encode()})
    hub.break_at("user/broken")
    options = [model_name, f"--retention={retention}", "--output-dir=out"]
    assert message in refused(capsys, tmp_path, options, "apply")


def test_a_configuration_by_itself_is_published_found_and_applied_by_name(hub, model, batch, tokenizer, capsys):
    """The logits are those of the model built by hand, with the command and in Python, also at an older revision."""
    stock = Host("bert").make_stock()
    stock.save_pretrained("stock")
    tokenizer.save_pretrained("stock")
    run("publish", "model", "--repo", "user/cfg", "--retention-only", "--public")
    assert hub.files("user/cfg").keys() == {"README.md", "retention.json"}
    assert read_retention("user/cfg") == read_retention("model")
    assert card(hub, "user/cfg").data.tags == ["power-bert", "bert-3-encoders", "retention-configuration"]

    hand = Host("bert").classifier.from_pretrained("stock", **CONFIG)
    wanted = logits(hand, batch)
    assert (wanted - logits(stock, batch)).abs().max() > 1e-3
    run("apply", "stock", "--retention", "user/cfg", "--output-dir", "applied")
    classifier = Host("bert").classifier
    first = hub.repositories["user/cfg"].commits[-1][0]
    changed = {**json.loads(hub.files("user/cfg")["retention.json"]), "retention_config": [0.3, 0.3, 0.3]}
    hub.repositories["user/cfg"].commit({"retention.json": json.dumps(changed).encode()}, "another")
    for made in (
        AutoModelForSequenceClassification.from_pretrained("applied"),
        classifier.from_pretrained("stock", retention=f"user/cfg@{first}"),
        AutoModelForSequenceClassification.from_pretrained(
            "stock", config=Host("bert").config.from_pretrained("stock", retention=f"user/cfg@{first}")
        ),
        AutoModelForSequenceClassification.from_pretrained("applied", retention=f"user/cfg@{first}"),
    ):
        torch.testing.assert_close(logits(made, batch), wanted, atol=0, rtol=0)
    assert classifier.from_pretrained("stock", retention="user/cfg").config.retention_config == [0.3, 0.3, 0.3]


def test_a_token_opens_a_private_configuration(hub, model, monkeypatch):
    run("publish", "model", "--repo", "user/cfg", "--retention-only")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=r"An Auto class hands on no `token`.*such as PoWERBertModel, or log in"):
        AutoModelForSequenceClassification.from_pretrained("model", retention="user/cfg", token=OWNER)
    made = Host("bert").classifier.from_pretrained("model", retention="user/cfg", token=OWNER)
    assert made.config.retention_config == CONFIG["retention_config"]


def test_nothing_points_at_code_that_is_not_there(hub, model, batch):
    """A model that was published with its code is published without, exported, applied and pushed."""
    run("publish", "model", "--repo", "user/code", "--with-code")
    assert "auto_map" in json.loads(hub.files("user/code")["config.json"])
    run("export", "user/code", "--stock", "--output-dir", "plain")
    run("apply", "user/code", "--retention", "user/code", "--output-dir", "applied")
    AutoModelForSequenceClassification.from_pretrained("user/code").push_to_hub("user/derived")
    run("publish", "user/code", "--repo", "user/again")
    configs = [Path(folder, "config.json").read_text() for folder in ("plain", "applied")]
    configs += [hub.files(f"user/{name}")["config.json"].decode() for name in ("derived", "again")]
    assert not [config for config in configs if "auto_map" in config]


def test_a_configuration_of_longer_inputs_is_applied_as_in_python(hub, model, batch, tokenizer):
    Host("bert").make_stock().save_pretrained("stock")
    tokenizer.save_pretrained("stock")
    longer = {"version": 1, "backbone": "bert", "encoders": 3, **CONFIG, "retention_length": 512}
    hub.put("user/cfg", {"retention.json": json.dumps(longer).encode()})
    run("apply", "stock", "--retention", "user/cfg", "--output-dir", "applied")
    applied = AutoModelForSequenceClassification.from_pretrained("applied")
    by_hand = Host("bert").classifier.from_pretrained("stock", retention="user/cfg")
    assert applied.config.retention_length is by_hand.config.retention_length is None
    torch.testing.assert_close(logits(applied, batch), logits(by_hand, batch), atol=0, rtol=0)


def test_what_is_kept_in_half_precision_stays_so(hub, model, tokenizer):
    model.to(torch.bfloat16).save_pretrained("model")
    run("export", "model", "--stock", "--output-dir", "plain")
    run("apply", "model", "--retention", "model", "--output-dir", "applied")
    for folder in ("plain", "applied"):
        assert AutoModelForSequenceClassification.from_pretrained(folder).dtype == torch.bfloat16


def test_a_card_keeps_what_it_knew_when_its_model_is_published_again(hub, model, tokenizer):
    """From another repository with all its results; from memory, where weights may have changed, without them."""
    hub.put("user/base", {"README.md": b"---\nlicense: mit\n---\n# Base\n", "config.json": b"{}"})
    model.name_or_path = "user/base"
    model.push_to_hub("user/one")
    tokenizer.push_to_hub("user/one")
    text = hub.files("user/one")["README.md"].decode()
    known = ModelCard(text)
    known.data.datasets = ["user/reviews"]
    known.data.model_name = "one"
    known.data.eval_results = [
        huggingface_hub.EvalResult("text-classification", "user/reviews", "reviews", "accuracy", 0.9)
    ]
    repository = hub.repositories["user/one"]
    repository.commit({**repository.commits[-1][1], "README.md": str(known).encode()}, "")
    run("publish", "user/one", "--repo", "user/two")
    again = card(hub, "user/two").data
    assert (again.license, again.base_model, again.datasets) == ("mit", "user/base", ["user/reviews"])
    assert again.eval_results[0].metric_value == 0.9
    AutoModelForSequenceClassification.from_pretrained("user/one").push_to_hub("user/one")
    pushed = card(hub, "user/one").data
    assert (pushed.license, pushed.base_model, pushed.datasets) == ("mit", "user/base", ["user/reviews"])
    assert pushed.eval_results is None
    # One of somebody's own goes along as it is.
    own = b"---\ntags: [mine]\n---\n# My own\n"
    repository.commit({**repository.commits[-1][1], "README.md": own}, "")
    run("publish", "user/one", "--repo", "user/three")
    assert hub.files("user/three")["README.md"] == own


def test_a_retention_file_of_another_model_says_nothing_of_this_one(hub, model):
    other = {**json.loads(read_retention("model").dumps()), "encoders": 4, "retention_config": [0.9, 0.5, 0.3, 0.1]}
    Path("model/retention.json").write_text(json.dumps({**other, "metric": {"name": "f1", "base": 0.9, "final": 0.8}}))
    run("publish", "model", "--repo", "user/one")
    assert read_retention("user/one").retention_config == CONFIG["retention_config"]
    assert "Nothing has been measured of this model" in card(hub, "user/one").text


def test_the_results_of_a_retention_file_are_on_the_card(hub, model):
    told = {**json.loads(read_retention("model").dumps()), "task": "reviews"}
    told |= {"metric": {"name": "f1", "base": 0.9, "final": 0.89}, "speedup": {"predicted": 2.0, "measured": 1.8}}
    Path("model/retention.json").write_text(json.dumps({**told, "metric": {"name": "agreement"}}))
    run("publish", "model", "--repo", "user/one", "--dry-run")
    Path("model/retention.json").write_text(json.dumps(told))
    run("publish", "model", "--repo", "user/one")
    text = " ".join(card(hub, "user/one").text.split())
    assert "f1 is 0.8900, where the model with all word-vectors has 0.9000, on reviews." in text
    assert "1.80 times as fast, measured" in text
    assert "Nothing has been measured" not in text


def test_a_license_that_cannot_be_asked_for_is_not_left_out(hub, model, capsys, tmp_path):
    hub.put("user/base", {"README.md": b"---\nlicense: mit\n---\n# Base\n", "config.json": b"{}"})
    told = {**json.loads(read_retention("model").dumps()), "base_model": "user/base"}
    Path("model/retention.json").write_text(json.dumps(told))
    hub.break_at("user/base")
    sentence = refused(capsys, tmp_path, ["model", "--repo=user/one"], "publish")
    assert "The card of user/base cannot be read: the connection to the Hub broke off" in sentence
    hub.break_at(None)
    run("publish", "model", "--repo", "user/one")
    assert card(hub, "user/one").data.license == "mit"


def test_saving_with_push_is_private_and_a_base_model_has_no_classifiers_card(hub, model):
    model.save_pretrained("saved", push_to_hub=True, repo_id="user/saved")
    assert hub.repositories["user/saved"].private
    assert "encoder 1  ████" in card(hub, "user/saved").text
    model.base_model.push_to_hub("user/base")
    assert card(hub, "user/base").data.pipeline_tag is None


def test_training_for_a_repository_that_holds_something_is_refused_before_it(hub, model, capsys, tmp_path):
    hub.put("user/there", {"README.md": b"mine"})
    options = ["--model=model", "--train-file=rows.csv", "--output-dir=run", "--push-to-hub"]
    sentence = refused(capsys, tmp_path, [*options, "--hub-model-id=user/there"], "train")
    assert "A repository is not overwritten unasked, got user/there, which holds 1 files" in sentence


def test_offline_a_model_in_the_cache_serves_as_a_configuration(hub, model, monkeypatch):
    hub.put("user/old", {"config.json": Path("model/config.json").read_bytes()})
    huggingface_hub.hf_hub_download("user/old", "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_retention("user/old").retention_config == CONFIG["retention_config"]


def test_one_bad_file_does_not_end_a_search(hub, model, capsys):
    run("publish", "model", "--repo", "user/good", "--public")
    bad = {"version": 1, "backbone": "bert", "encoders": 3, **CONFIG, "metric": {"name": "f1", "base": "0.9"}}
    hub.put("user/bad", {"retention.json": json.dumps(bad).encode(), "README.md": b"---\ntags: [power-bert]\n---\n"})
    capsys.readouterr()
    run("find")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["repository", "user/good"]


def test_find_lists_what_fits_a_model(hub, model, capsys):
    for name, more in (("bert", []), ("only", ["--retention-only"])):
        run("publish", "model", "--repo", f"user/{name}", "--public", *more)
    Host("albert").make(**CONFIG).save_pretrained("model")
    run("publish", "model", "--repo", "user/albert", "--public", "--retention-only")
    Host("bert").make_stock().save_pretrained("stock")
    capsys.readouterr()
    run("find")
    everything = capsys.readouterr().out
    assert [line.split()[0] for line in everything.splitlines()] == [
        "repository",
        "user/bert",
        "user/only",
        "user/albert",
    ]
    run("find", "stock")
    fitting = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in fitting[1:]] == [
        [f"user/{n}", "bert,", "3", "encoders"] for n in ("bert", "only")
    ]


def test_push_to_hub_of_a_model_writes_the_card_and_keeps_one_of_your_own(hub, model, batch, tokenizer):
    base = hub.put("user/base", {"README.md": b"---\nlicense: mit\n---\n# Base\n", "config.json": b"{}"})
    model.name_or_path = "user/base"
    model.push_to_hub("user/pushed", tags=["reviews"])
    tokenizer.push_to_hub("user/pushed")
    assert base.commits
    assert hub.repositories["user/pushed"].private
    assert hub.files("user/pushed").keys() == FILES
    data = card(hub, "user/pushed").data
    assert (data.base_model, data.license) == ("user/base", "mit")
    assert data.tags == ["reviews", "power-bert", "bert-3-encoders"]
    loaded = AutoModelForSequenceClassification.from_pretrained("user/pushed")
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=0, rtol=0)
    own = {"README.md": b"---\ntags: [mine]\n---\n# My own\n"}
    hub.put("user/own", own)
    model.push_to_hub("user/own", private=False)
    assert b"# My own" in hub.files("user/own")["README.md"]
    model.set_retention(None)
    model.push_to_hub("user/off", private=False)
    assert not hub.repositories["user/off"].private
    assert "retention.json" not in hub.files("user/off")


@pytest.mark.parametrize("kind", [PoWERTrainer, Trainer])
def test_a_trainer_pushes_during_training_and_at_the_end(hub, model, batch, tokenizer, rows, tmp_path, kind):
    data = [{**tokenizer(row["text"]), "labels": int(row["label"] == "positive")} for row in rows[:16]]
    args = PoWERTrainingArguments(
        "trained",
        push_to_hub=True,
        hub_model_id="user/trained",
        hub_private_repo=None if kind is PoWERTrainer else True,
        hub_always_push=True,
        max_steps=4,
        save_steps=2,
        eval_strategy="epoch",
        per_device_train_batch_size=8,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    train = Dataset.from_list(data)
    trainer = kind(model, args, train_dataset=train, eval_dataset=train, processing_class=tokenizer)

    class Wait(TrainerCallback):
        """Upstream sends files from where the next checkpoint replaces them, here a twentieth of a second later."""

        def on_step_begin(self, args, state, control, **kwargs):
            trainer._finish_current_push()

    trainer.add_callback(Wait())
    trainer.train()
    trainer._finish_current_push()
    repository = hub.repositories["user/trained"]
    assert repository.private
    assert repository.messages[1:] == ["Training in progress, step 2", "Training in progress, step 4"]
    during = repository.commits[1][1]["model.safetensors"]
    trainer.push_to_hub(dataset_tags="user/reviews", dataset="reviews")
    assert repository.messages[-1] == "End of training"
    assert during != hub.files("user/trained")["model.safetensors"]
    loaded = AutoModelForSequenceClassification.from_pretrained("user/trained")
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=0, rtol=0)
    if kind is PoWERTrainer:
        written = card(hub, "user/trained")
        assert "encoder 1  ████" in written.text
        assert "* learning_rate: 5e-05" in written.text
        assert {"power-bert", "generated_from_trainer"} <= set(written.data.tags)
        assert written.data.datasets == ["user/reviews"]
        written.validate()
        assert read_retention("user/trained").retention_config == CONFIG["retention_config"]
        here = str(Path.cwd()).encode()
        assert not [name for name, content in hub.files("user/trained").items() if here in content]


def test_a_trainer_keeps_a_card_that_is_on_the_hub(hub, model, batch, tokenizer, rows):
    own = {"README.md": b"---\ntags: [mine]\n---\n# My own\n"}
    hub.put("user/trained", own)
    data = [{**tokenizer(row["text"]), "labels": int(row["label"] == "positive")} for row in rows[:16]]
    args = PoWERTrainingArguments(
        "trained", push_to_hub=True, hub_model_id="user/trained", max_steps=1, use_cpu=True, disable_tqdm=True
    )
    trainer = PoWERTrainer(model, args, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    assert hub.files("user/trained")["README.md"] == own["README.md"]
    assert "model.safetensors" in hub.files("user/trained")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which the command of a committed card has been typed, with small settings and inputs."""
    folder = tmp_path_factory.mktemp("trained")
    shown = (ROOT / "model_cards" / "mrpc-minilm-l6.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```sh\n(.*?)\n```", shown, flags=re.DOTALL)
    words = command.replace("\\\n", " ").split()
    assert words[:2] == ["powerbert", "train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names = {0: "not_equivalent", 1: "equivalent"}
        Host("bert").make_stock(id2label=names).save_pretrained("minilm-l6")
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
        transformers.BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained("minilm-l6")
        Path("minilm-l6/README.md").write_text(
            "---\nlicense: other\nlicense_name: ours\nlicense_link: L\n---\n# Base\n"
        )
        rows = [
            {"sentence1": " ".join(WORDS[n % 7 : n % 7 + 5]), "sentence2": f"the {WORDS[n % 3]} film", "label": n % 2}
            for n in range(48)
        ]
        split = Dataset.from_list(rows)
        DatasetDict({"train": split, "validation": split.select(range(16))}).save_to_disk("mrpc")
        run(*words[1:], "--max-steps=2", "--max-train-samples=24", "--speedup=1.4", "--max-length=20")
    return folder


@pytest.fixture
def ran(trained, hub, monkeypatch):
    monkeypatch.chdir(trained)
    return json.loads((trained / "runs" / "mrpc-minilm-l6" / "report.json").read_text())


@pytest.mark.parametrize("source", ["runs/mrpc-minilm-l6", "runs/mrpc-minilm-l6/final"])
def test_the_card_of_a_run_has_its_results_and_reads_back(hub, ran, batch, trained, source):
    run("publish", source, "--repo", "user/mrpc", "--public")
    written = card(hub, "user/mrpc")
    written.validate()
    data = written.data
    assert data.base_model is None
    assert (data.license, data.license_name, data.license_link) == ("other", "ours", "L")
    assert data.datasets == ["nyu-mll/glue"]
    assert data.metrics == ["f1", "accuracy", "matthews_correlation"]
    assert data.pipeline_tag == "text-classification"
    result = data.eval_results[0]
    assert (result.metric_type, result.metric_value) == ("f1", ran["final"])
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "mrpc", "validation")
    assert result.metric_args == {"seed": 42}
    values = {one.metric_type: one.metric_value for one in data.eval_results}
    assert values == {name: ran["metrics"]["final"][name] for name in data.metrics}
    text = written.text
    assert f"f1 is {ran['final']:.4f} where the model with all of them has {ran['base']:.4f}" in text
    assert f"{ran['measured_speedup']:.2f} times as fast, measured" in text
    assert ran["hardware"]["processor"] in text
    assert 'model="user/mrpc", truncation=True)' in text
    assert "trust_remote_code" not in text
    assert "powerbert export user/mrpc --stock" in text
    assert str(trained) not in text
    assert text.count("\nencoder ") == 3
    told = read_retention("user/mrpc")
    assert (told.backbone, told.encoders, told.task) == ("bert", 3, "mrpc")
    assert told.metric == {"name": "f1", "base": ran["base"], "final": ran["final"], "split": "validation", "seed": 42}
    assert told.speedup == {"predicted": ran["predicted_speedup"], "measured": ran["measured_speedup"]}
    assert told.retention_config == ran["retention_config"]


def test_a_model_of_a_run_is_pushed_with_the_report_only_while_its_weights_are_those(hub, ran):
    final = "runs/mrpc-minilm-l6/final"
    model = AutoModelForSequenceClassification.from_pretrained(final)
    model.push_to_hub("user/same")
    assert card(hub, "user/same").data.eval_results[0].metric_value == ran["final"]
    model.set_retention([0.9, *model.config.retention_config[1:]])
    model.push_to_hub("user/configured")
    assert card(hub, "user/configured").data.eval_results is None
    assert read_retention("user/configured").retention_config == model.config.retention_config
    model = AutoModelForSequenceClassification.from_pretrained(final)
    with torch.no_grad():
        model.classifier.bias += 1
    model.push_to_hub("user/other")
    assert card(hub, "user/other").data.eval_results is None


def test_train_publishes_at_the_end_and_not_twice(hub, ran, capsys, trained):
    """The run is done already, so that the command has but to publish it."""
    typed = json.loads(Path("runs/mrpc-minilm-l6/command.json").read_text())["typed"][2:]
    push = ["--push-to-hub", "--hub-model-id=user/new"]
    run("train", *typed, *push)
    assert hub.repositories["user/new"].private
    assert hub.files("user/new").keys() == FILES
    sentence = refused(capsys, trained, [*typed, "--push-to-hub"], "train")
    assert "`--hub-model-id` must be a repository, `user/name`, got None" in sentence


def test_cards_of_the_committed_runs_are_what_their_reports_say():
    spec = importlib.util.spec_from_file_location("render", ROOT / "model_cards" / "render.py")
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    trained = {path.stem.partition("-")[0::2] for path in render.cards()}
    assert {
        ("sst2", "albert-l12-h384"),
        ("mrpc", "albert-l12-h384"),
        ("sst2", "minilm-l6"),
        ("mrpc", "minilm-l6"),
    } <= trained
    assert render.main(check=True) == 0


@pytest.mark.parametrize("path", sorted((ROOT / "model_cards").glob("*[!E].md")), ids=lambda path: path.stem)
def test_a_committed_card_agrees_with_the_results(path):
    """Its metadata is valid without a network, and its figures stand in `results/`."""
    written = ModelCard.load(path)
    report = json.loads((ROOT / "results" / path.stem / "report.json").read_text(encoding="utf-8"))
    results = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert written.data.eval_results[0].metric_value == report["final"]
    assert written.data.eval_results[0].dataset_split == data_of(report)["split"] is not None
    assert written.data.datasets == [data_of(report)["id"]] != [None]
    assert f"**{100 * report['final']:.2f}** after" in results
    assert f"{report['measured_speedup']:.2f}x" in written.text
    assert f"**{report['measured_speedup']:.2f}x**" in results
    assert "shared/" not in str(written)
    assert {"bert": "BERT", "albert": "ALBERT"}["albert" if "albert" in path.stem else "bert"] in written.text


def test_the_card_cites_what_the_citation_file_says():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    template = (ROOT / "src" / "powerbert_hf" / "templates" / "model_card.md").read_text(encoding="utf-8")
    cited = " ".join(template.partition("```bibtex")[2].split())
    assert f"title = {{{paper['title']}}}" in cited
    assert f"booktitle = {{{paper['collection-title']}}}" in cited
    assert " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]) in cited
    assert (f"year = {{{paper['year']}}}" in cited, f"url = {{{paper['url']}}}" in cited) == (True, True)


def test_files_of_ones_own_are_no_split_of_each_other():
    data = dict.fromkeys(("dataset", "subset", "task", "dataset_id", "eval_split"))
    for train in ("rows/a.csv", "rows/b.csv"):
        report = {"data": {**data, "train_file": train, "eval_file": "rows/b.csv"}}
        report |= {"metric": "accuracy", "metrics": {"final": {"accuracy": 0.5}}, "training": {"seed": 0}}
        (result,) = results_of(report)
        assert (result.dataset_name, result.dataset_split) == ("b.csv", None)
