"""Delta's jars from a Maven mirror that is a folder: what a machine without the internet has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.lake.engine.sessions import delta_jar

pytestmark = [pytest.mark.spark, pytest.mark.slow]

WRITE = """
import sys
from jobs.config.sections import EngineSection
from jobs.lake.engine.sessions import spark_session

ivy, mirror, table = sys.argv[1:]
engine = EngineSection(master="local[1]", partitions=1, maven_mirror=mirror, conf={"spark.jars.ivy": ivy})
with spark_session(engine, "mirror") as spark:
    spark.range(3).write.format("delta").save(table)
    print("rows", spark.read.format("delta").load(table).count())
"""


def resolved_jars() -> Path:
    """Ivy's cache of the session that ran before: where Spark's own resolution put what it found."""
    caches = [path / "cache" for path in sorted(Path.home().glob(".ivy2*")) if (path / "cache" / "io.delta").is_dir()]
    if not caches:
        pytest.skip("Spark resolved Delta's jars into no ~/.ivy2* of this user")
    return caches[-1]


def build_mirror(cache: Path, mirror: Path) -> None:
    """Lay the cached poms and jars out as a Maven repository does."""
    for pom in cache.glob("*/*/ivy-*.xml.original"):
        group, name = pom.parts[-3:-1]
        version = pom.name.removeprefix("ivy-").removesuffix(".xml.original")
        folder = mirror / group.replace(".", "/") / name / version
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(pom, folder / f"{name}-{version}.pom")
        for jar in pom.parent.glob(f"*/{name}-{version}.jar"):
            shutil.copy(jar, folder / jar.name)


def test_delta_comes_from_a_folder_that_mirrors_maven(apache_spark: SparkSession, tmp_path: Path) -> None:
    mirror, ivy = tmp_path / "mirror", tmp_path / "ivy"
    build_mirror(resolved_jars(), mirror)
    arguments = [str(ivy), mirror.as_uri(), str(tmp_path / "table")]
    done = subprocess.run(
        [sys.executable, "-c", WRITE, *arguments], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.stdout.splitlines() == ["rows 3"], done.stderr[-3000:]
    _, name, version = delta_jar().split(":")
    origin = (ivy / "cache" / "io.delta" / name / f"ivydata-{version}.properties").read_text()
    assert f"{mirror}/io/delta/{name}/{version}/{name}-{version}.jar" in origin.replace("\\", "")
