"""What is shipped: a wheel that works where the checkout is not, and an sdist with all that makes one."""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import powerbert_hf
from conftest import HOSTS, Host

ROOT = Path(__file__).parent.parent
# In a process of its own: `-I` forgets PYTHONPATH and the working directory, the first line what else leads back here.
PROBE = """
import sys
sys.path[:] = [sys.argv[1], *(path for path in sys.path if path != sys.argv[3])]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
import importlib.metadata, powerbert_hf
from powerbert_hf import card
from transformers import AutoModelForSequenceClassification
assert powerbert_hf.__file__.startswith(sys.argv[1]), powerbert_hf.__file__
assert importlib.metadata.version("powerbert_hf") == powerbert_hf.__version__
for host in ("bert", "albert"):
    model = AutoModelForSequenceClassification.from_pretrained(f"{sys.argv[2]}/{host}")
    assert f"user/{host}" in str(card.make_card(card.Facts(f"user/{host}", card.RetentionFile.of(model.config))))
    print(powerbert_hf.__version__, type(model).__name__, model.config.retention_config)
"""


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Both distributions, built with what is installed."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


@pytest.mark.slow
def test_wheel_works_outside_of_the_checkout(dist, tmp_path):
    """Seconds, but for three processes that import all there is; CI runs it."""
    (wheel,) = dist.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    run(*pip, f"--target={site}", wheel, cwd=elsewhere)
    assert (site / "powerbert_hf" / "py.typed").is_file()
    for host in map(Host, HOSTS):
        host.make(retention_config=[6, 4, 2]).save_pretrained(tmp_path / "models" / host.name)
    said = run(sys.executable, "-I", "-c", PROBE, site, tmp_path / "models", ROOT / "src", cwd=elsewhere)
    classes = ("PoWERBertForSequenceClassification", "PoWERAlbertForSequenceClassification")
    assert said.splitlines() == [f"{version('powerbert_hf')} {name} [6, 4, 2]" for name in classes]
    command = [sys.executable, site / "bin" / "powerbert"]
    clean = {**os.environ, "PYTHONPATH": str(site)}
    assert run(*command, "--version", cwd=elsewhere, env=clean) == f"powerbert {powerbert_hf.__version__}\n"
    assert "train" in run(*command, "--help", cwd=elsewhere, env=clean)


def test_wheel_holds_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    assert wheel.name.startswith(f"powerbert_hf-{powerbert_hf.__version__}-")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = ROOT / "src" / "powerbert_hf"
    package = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert "templates/model_card.md" in package
    assert names == {f"powerbert_hf/{name}" for name in package}


def test_sdist_holds_what_is_kept_under_version_control(dist):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says what belongs to it")
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    kept = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    assert names == {*kept, "PKG-INFO"}
