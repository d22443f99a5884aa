"""Measure the speed of BERT-base, ALBERT-base and a 6-layer MiniLM as `results/README.md` shows it: 30 minutes.

    python results/measure_speed.py --output-dir results

Two threads. What is measured already is not measured again.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AlbertConfig, BertConfig

RTE = [count / 256 for count in (153, 125, 111, 105, 85, 80, 72, 48, 35, 27, 22, 5)]
MODELS = {
    "bert-base": (BertConfig(), RTE),
    "albert-base": (AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072), RTE),
    "minilm-l6": (BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536), RTE[1::2]),
}
# Texts in a batch, a smaller one first, and texts: enough for seconds a pass.
INPUTS = {"sst2": ((8, 32), 256), "rte": ((4, 16), 128), "imdb": ((2, 8), 48)}
ONE_BY_ONE = (8, 16, 32, 64, 128, 256, 512)


def run(script: list[str], output: Path, configs: str) -> None:
    """A command that writes a file, unless it is there; models have the names of their folders in `configs`."""
    if not output.is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*script, "--output", output.name], check=True, cwd=configs)
        shutil.move(Path(configs) / output.name, output)


def main(folder: Path) -> None:
    """Measure everything that `folder` does not hold yet."""
    powerbert = [sys.executable, "-m", "powerbert_hf.cli", "benchmark"]
    with tempfile.TemporaryDirectory() as configs:
        for name, (config, keep) in MODELS.items():
            config.save_pretrained(Path(configs) / name)
            keeping = ["--retention-config", *map(str, keep)]
            common = [*powerbert, name, *keeping, "--threads", "2", "--baselines", "c", "--repeats", "3"]
            for lengths, (batch_sizes, inputs) in INPUTS.items():
                sizes = ["--lengths", lengths, "--batch-sizes", *map(str, batch_sizes), "--inputs", str(inputs)]
                dtypes = ["--dtypes", "float32", "bfloat16"]
                run([*common, *sizes, *dtypes], folder / "speed" / f"{name}-{lengths}.json", configs)
            if name != "albert-base":
                alone = ["--lengths", *map(str, ONE_BY_ONE), "--batch-sizes", "1", "--inputs", "8"]
                # A pass takes a tenth of a second at first.
                run([*common, *alone, "--repeats", "7"], folder / "speed" / f"{name}-one-by-one.json", configs)
                script = [
                    sys.executable,
                    str(Path(__file__).resolve().with_name("where_time_goes.py")),
                    "--model",
                    name,
                ]
                sizes = ["--lengths", "imdb", "--batch-size", "8", "--inputs", "24"]
                run([*script, "--model", name, *keeping, *sizes], folder / "time" / f"{name}-imdb.json", configs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("results"))
    main(parser.parse_args().output_dir)
