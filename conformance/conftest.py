"""Fetches Transformers' own tests, of the installed version, and holds our skips against those of stock models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models this small only wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import transformers
from _pytest.reports import TestReport
from transformers.models.auto import modeling_auto

VERSION = transformers.__version__
CACHE = Path(__file__).parent / ".cache" / VERSION
MAX_EXTRA_SKIPS = 0.05

# What the common tests import of files that the source distribution leaves out.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16',"
        " 'chunk_size_feed_forward': 5, 'architectures': ['BertModel'], 'id2label': {0: 'label'},"
        " 'label2id': {'label': 0}, 'problem_type': 'regression'}\n"
    ),
    # The last one: it says that all the others are there.
    "__init__.py": "",
}


def fetch_tests():
    """Unpack `tests/` of the source distribution of transformers; pip checks its hash against the index's."""
    if (CACHE / "tests" / "__init__.py").exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--dest", str(CACHE)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, f"transformers=={VERSION}"], check=True)
    root = f"transformers-{VERSION}/"
    with tarfile.open(CACHE / f"transformers-{VERSION}.tar.gz") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(f"{root}tests/"):
                member.name = member.name.removeprefix(root)
                archive.extract(member, CACHE, filter="data")
    for path, text in STUBS.items():
        (CACHE / "tests" / path).parent.mkdir(exist_ok=True)
        (CACHE / "tests" / path).write_text(text)


def pytest_configure(config):
    config.skips = Skips()
    config.pluginmanager.register(config.skips)
    fetch_tests()
    sys.path.insert(0, str(CACHE))
    # The tests look classes up by name in upstream's static tables, where no plugin can register.
    for host in ("Bert", "Albert"):
        modeling_auto.MODEL_MAPPING_NAMES[f"power{host.lower()}"] = f"PoWER{host}Model"
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[f"power{host.lower()}"] = (
            f"PoWER{host}ForSequenceClassification"
        )


class Skips:
    """Fails the run in which a class skips too much that the stock model of its backbone does not skip."""

    def __init__(self):
        self.ran, self.skipped, self.lines = defaultdict(set), defaultdict(dict), []

    def pytest_runtest_logreport(self, report):
        cls, test = report.nodeid.split("::")[-2:]
        # A skip inside a subtest is a report of its own kind; it counts as a skip of its test.
        if report.when == "call" and type(report) is TestReport:
            self.ran[cls].add(test)
        if report.skipped:
            self.ran[cls].add(test)
            self.skipped[cls][test] = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_sessionfinish(self, session):
        for cls, tests in self.ran.items():
            stock = "StockAlbert" if "Albert" in cls else "StockBert"
            extra = {} if cls == stock else {t: why for t, why in self.skipped[cls].items() if t in tests}
            extra = {t: why for t, why in extra.items() if t not in self.skipped[stock]}
            too_many = len(extra) > MAX_EXTRA_SKIPS * len(tests)
            verdict = f"{len(extra)} beyond {stock}" + ", TOO MANY" * too_many
            self.lines.append(f"{cls}: {len(tests)} tests, {len(self.skipped[cls])} skipped, {verdict}")
            self.lines.extend(f"    {test}: {why}" for test, why in extra.items())
            # Tests chosen by name may leave out the stock ones.
            if too_many and stock in self.ran:
                session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        for line in self.lines:
            terminalreporter.write_line(line)
