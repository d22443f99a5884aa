"""Small models and data that every test can have, offline."""

import atexit
import os
import shutil
import tempfile

# Models this small only wait for each other's threads.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
if "TESTS_HOME" not in os.environ:
    # Whatever somebody has in a cache of their own; the processes that a run of the tests starts share one.
    os.environ["TESTS_HOME"] = os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="powerbert-tests-")
    atexit.register(shutil.rmtree, os.environ["TESTS_HOME"], ignore_errors=True)
    for name in (
        "HF_DATASETS_CACHE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
    ):
        os.environ.pop(name, None)

import logging
import multiprocessing
import socket

import datasets
import hypothesis
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
    AlbertTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)
from transformers.utils import logging as transformers_logging

import powerbert_hf as power

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
datasets.disable_progress_bars()

# The same examples everywhere, however slow the machine is.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")

WORDS = "the a film was not good bad great awful plot cast long short and but very it that is of"
WORDS = WORDS.split()

HOSTS = {
    "bert": {
        "stock_base": BertModel,
        "stock": BertForSequenceClassification,
        "stock_config": BertConfig,
        "base": power.PoWERBertModel,
        "classifier": power.PoWERBertForSequenceClassification,
        "config": power.PoWERBertConfig,
        "extra": {},
    },
    "albert": {
        "stock_base": AlbertModel,
        "stock": AlbertForSequenceClassification,
        "stock_config": AlbertConfig,
        "base": power.PoWERAlbertModel,
        "classifier": power.PoWERAlbertForSequenceClassification,
        "config": power.PoWERAlbertConfig,
        "extra": {"embedding_size": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    },
}

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


class Host:
    """One backbone: its classes, and small models of them."""

    def __init__(self, name):
        self.name = name
        for key, value in HOSTS[name].items():
            setattr(self, key, value)
        self.fields = {**SMALL, **self.extra}

    def make_stock(self, kind="stock", **fields):
        torch.manual_seed(0)
        return asymmetric_init(getattr(self, kind)(self.stock_config(**self.fields, **fields))).eval()

    def make(self, kind="classifier", **fields):
        torch.manual_seed(0)
        model = getattr(self, kind)(self.config(**self.fields, **fields))
        return asymmetric_init(model).eval()


def asymmetric_init(model):
    """Weights of very different sizes: with BERT's own, significance scores are all but ties."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "retention" not in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def without_dropout(model):
    """In training mode only the arithmetic counts then."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture(params=list(HOSTS))
def host(request):
    return Host(request.param)


@pytest.fixture
def batch():
    """Five inputs of 12, 9, 5, 2 and 1 real word-vectors."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([12, 9, 5, 2, 1])
    input_ids = torch.randint(1, SMALL["vocab_size"], (5, 12), generator=generator)
    mask = (torch.arange(12) < lengths[:, None]).long()
    return {"input_ids": input_ids * mask, "attention_mask": mask}


@pytest.fixture
def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={word: n for n, word in enumerate([*special, *WORDS])}, model_max_length=64)


@pytest.fixture
def own_tokenizer(host, tokenizer):
    """The same words in the class of tokenizer that belongs to the host."""
    if host.name == "bert":
        return tokenizer
    pieces = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in WORDS)]
    return AlbertTokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)], model_max_length=64)


@pytest.fixture
def rows():
    """Texts of 1 to 20 words with a label that one word decides."""
    generator = torch.Generator().manual_seed(3)

    def draw(limit):
        return int(torch.randint(limit, (), generator=generator))

    made = []
    for _ in range(64):
        label = draw(2)
        words = [WORDS[draw(len(WORDS))] for _ in range(draw(20))]
        words = [word for word in words if word not in ("good", "bad")]
        words.insert(draw(len(words) + 1), ("bad", "good")[label])
        made.append({"text": " ".join(words), "label": ("negative", "positive")[label]})
    return made


@pytest.fixture(scope="session")
def start():
    """Runs a function of a test's module in a process of its own, which need not import the libraries again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["powerbert_hf.recipe", "powerbert_hf.report", "powerbert_hf.cli"])

    def start(function, *args):
        process = context.Process(target=function, args=args, daemon=True)
        process.start()
        return process

    return start


@pytest.fixture
def as_rank():
    """What a launcher such as torchrun tells each of two processes on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [{**both, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


@pytest.fixture
def upstream_warnings():
    """What transformers warns of during a test; its loggers keep to themselves, so `caplog` would hear nothing."""
    heard = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield heard
    logger.removeHandler(handler)
    logger.setLevel(level)
