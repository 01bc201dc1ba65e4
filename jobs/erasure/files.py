"""Files outside the tables that can hold a user: copies of rows, half-written files, reports, Data Docs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.erasure.spellings import text_pattern
from jobs.landing.files import filesystem
from lte_models.files import UNFINISHED, write_atomically

STAGING = "_staging"
PAGE_SUFFIXES = (".html", ".json", ".csv", ".md", ".txt", ".prom")

# Only these files stay under models: weights hold no ids, vocabularies hold item ids. Any other file can hold rows.
BUNDLE_FILE = re.compile(
    r"weights-\w+\.safetensors|training\.safetensors|vocabulary-\w+\.json|manifest\.json|live\.json"
)
TRACKING = re.compile(r"mlflow.*")

# These files of experiments hold numbers of users, but no ids.
EXPERIMENTS = "experiments"
ARRAY_SUFFIXES = (".npz", ".npy", ".json")


def copies_of_rows(deployment: Deployment) -> list[Path]:
    """Files in the lake outside tables and bundles: a training, an ingest or a kill left them.

    Staged rows of a training have names without a suffix (``rows/raw/7``). Unfinished files of an engine have names
    like ``part-0.parquet#1``. So every file counts, except files that are known to hold no row.
    """
    if is_url(deployment.paths.lake):
        return []
    lake = Path(deployment.paths.lake)
    staged = [path for path in (lake / STAGING).rglob("*") if not path.is_dir()]
    return sorted([*staged, *_copies_beside_models(lake / "models"), *_unfinished(deployment)])


def _copies_beside_models(models: Path) -> Iterator[Path]:
    for path in models.rglob("*"):
        first = path.relative_to(models).parts[0]
        is_array = first == EXPERIMENTS and path.suffix in ARRAY_SUFFIXES and not path.name.startswith(".")
        is_kept = is_array or TRACKING.fullmatch(first) or BUNDLE_FILE.fullmatch(path.name)
        if not path.is_dir() and not is_kept:
            yield path


def _unfinished(deployment: Deployment) -> Iterator[Path]:
    """Temporary files that a killed writer of a page left."""
    for folder in (deployment.paths.reports, deployment.paths.data_docs):
        for path in Path(folder).rglob(f"*{UNFINISHED}"):
            yield from [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]


def delete_copies(deployment: Deployment) -> int:
    """Delete all copies of rows; the next training or ingest makes its own copy. Returns the number of files.

    No job may run at the same time.
    """
    copies = copies_of_rows(deployment)
    for path in copies:
        path.unlink(missing_ok=True)
    system, root = filesystem(deployment.paths.lake)
    if system.get_file_info(f"{root}/{STAGING}").type.name == "Directory":
        system.delete_dir(f"{root}/{STAGING}")
    for folder in {path.parent for path in copies if path.parent.exists()}:
        if not any(each.is_file() for each in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
    return len(copies)


def pages(deployment: Deployment) -> list[Path]:
    """Reports, experiment tables and Data Docs."""
    folders = (Path(deployment.paths.reports), Path(deployment.paths.data_docs))
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in PAGE_SUFFIXES)


def redact_pages(deployment: Deployment, user_ids: Sequence[str]) -> int:
    """Overwrite the users in reports and Data Docs; returns how many files named one of them."""
    pattern = text_pattern(user_ids)
    return sum(_redact_page(path, pattern) for path in pages(deployment))


def pages_that_name(deployment: Deployment, user_ids: Sequence[str]) -> int:
    """How many pages :func:`redact_pages` would change."""
    pattern = text_pattern(user_ids)
    return sum(pattern.search(_text(path)) is not None for path in pages(deployment))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _redact_page(path: Path, pattern: re.Pattern[str]) -> bool:
    redacted, n_found = pattern.subn("erased", _text(path))
    if n_found:
        write_atomically(path, redacted.encode("utf-8", "surrogateescape"))
    return n_found > 0
