"""The package's shape: who imports whom, what is public, what may go to the Hub with a model."""

import ast
import sys
from pathlib import Path

import powerbert_hf

PACKAGE = Path(powerbert_hf.__file__).parent
# A module may import those before it.
ORDER = [
    "retention",
    "retention_file",
    "configuration_powerbert",
    "varlen",
    "packing",
    "encoder",
    "elimination",
    "modeling_power",
    "modeling_powerbert",
    "modeling_poweralbert",
    "cost",
    "budget",
    "agreement",
    "benchmark",
    "profiling",
    "files",
    "run_folder",
    "stopping",
    "processes",
    "checkpoint",
    "export",
    "tasks",
    "lengths",
    "rows",
    "labels",
    "texts",
    "data",
    "streaming",
    "predict",
    "shards",
    "inspection",
    "survival",
    "changes",
    "sensitivity",
    "calibration",
    "card",
    "hub",
    "callbacks",
    "trainer",
    "steps",
    "recipe",
    "sweep",
    "report",
    "terminal",
    "drawing",
    "charts",
    "pages",
    "demo",
    "arguments",
    "parsing",
    "looking",
    "speed_report",
    "speed",
    "cli",
]
SHIPPED = ORDER[: ORDER.index("cost")]


def imports(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((0, name.name) for name in node.names)


def test_every_module_has_its_place():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted([*ORDER, "__init__"])


def test_imports_run_one_way():
    for place, module in enumerate(ORDER):
        for level, name in imports(module):
            assert level <= 1, module
            if level == 1 and name:
                assert name in ORDER[:place], f"{module} imports {name}"
            # Only the command may ask for the version.
            assert level == 0 or name or module == "cli", f"{module} imports the package"


def test_modules_that_are_shipped_with_a_model_need_torch_and_transformers_only():
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    for module in SHIPPED:
        for level, name in imports(module):
            assert level == 1 or name.split(".")[0] in allowed, f"{module} imports {name}"


def test_public_names():
    assert powerbert_hf.__all__ == sorted(
        [
            "PoWERAlbertConfig",
            "PoWERAlbertForSequenceClassification",
            "PoWERAlbertModel",
            "PoWERBertConfig",
            "PoWERBertForSequenceClassification",
            "PoWERBertModel",
            "PoWERTrainer",
            "PoWERTrainingArguments",
            "fine_tune",
            "retrain",
            "search_configuration",
        ]
    )
    for name in powerbert_hf.__all__:
        assert getattr(powerbert_hf, name).__name__ == name
