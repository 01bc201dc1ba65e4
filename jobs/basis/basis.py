"""The semantic basis in the lake: names the basis that the configuration makes, and never mixes two bases."""

from __future__ import annotations

from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.config.sections import BasisSection, Deployment
from jobs.lake.lake import Lake
from lte_models.encoders.base import EncoderConfig
from lte_models.encoders.loading import basis_version
from schemas import ITEM_EMBEDDINGS


def known_items(item_embeddings: DataFrame, ds: date) -> DataFrame:
    """Items that had a vector by ``ds``: item_id, item_index, first_ds; no vectors.

    Args:
        item_embeddings: Rows of one basis.
        ds: Data day.
    """
    return item_embeddings.where(F.col("first_ds") <= F.lit(ds)).select("item_id", "item_index", "first_ds")


class BasisError(ValueError):
    """A basis that is missing, mixed or damaged; the message names table and basis_version."""


def encoder_config(basis: BasisSection) -> EncoderConfig:
    """The encoder that a deployment configures.

    MiniLM's weights are those of its package: ``model`` and ``weights`` name open_clip's.

    Each partition encodes with one torch thread: the engine runs as many partitions at once as there are cores.
    """
    if basis.encoder == "minilm":
        return EncoderConfig("minilm", batch_size=basis.batch_size)
    return EncoderConfig(basis.encoder, basis.model, basis.weights, batch_size=basis.batch_size)


def configured_basis(deployment: Deployment) -> str:
    """The basis_version that the configured encoder makes; reads the weights' bytes, loads no model.

    Raises:
        lte_models.encoders.base.EncoderError: The weights cannot be found or read.
    """
    return basis_version(encoder_config(deployment.basis))


def catalogue_versions(items: DataFrame, ds: date) -> DataFrame:
    """The keys of the catalogue of a day; no picture is read.

    Returns:
        One row per item that landed up to ``ds``: item_id, landing_ds of its newest version, first_ds of its first.
    """
    landed = items.where(F.col("landing_ds") <= F.lit(ds))
    newest, first = F.max("landing_ds").alias("landing_ds"), F.min("landing_ds").alias("first_ds")
    return landed.groupBy("item_id").agg(newest, first)


def read_basis(lake: Lake, basis_version: str | None = None) -> DataFrame:
    """Read the vectors of one basis.

    Args:
        lake: The lake with table item_embeddings.
        basis_version: The basis to read; None if the table holds only one basis.

    Raises:
        BasisError: The table has no such basis, or the caller names none and the table has two or more.
    """
    found = basis_versions(lake.read(ITEM_EMBEDDINGS))
    wanted = basis_version or _only(found, "table item_embeddings")
    if wanted not in found:
        raise BasisError(
            f"table item_embeddings: no basis_version {wanted!r}; there are {found}: run embed_items first, after "
            "items with a text or picture have landed under items/ds=YYYY-MM-DD"
        )
    return lake.read(ITEM_EMBEDDINGS, where={"basis_version": wanted})


def single_basis(rows: DataFrame, what: str) -> str:
    """The one basis_version of all ``rows``: vectors of two bases must not meet in one computation.

    Args:
        rows: Any rows with a column ``basis_version``.
        what: Table and ds of the rows, for the error.

    Raises:
        BasisError: The rows have two or more basis versions, or there are no rows.
    """
    return _only(basis_versions(rows), what)


def basis_versions(rows: DataFrame) -> list[str]:
    """The basis versions that occur in ``rows``, in order."""
    return sorted(row["basis_version"] for row in rows.select("basis_version").distinct().collect())


def _only(found: list[str], what: str) -> str:
    if len(found) != 1:
        problem = f"basis versions {' and '.join(found)} must not be mixed; name one" if found else "no basis at all"
        raise BasisError(f"{what}: {problem}")
    return found[0]
