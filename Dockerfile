# One image for Airflow's parts, the jobs, and Spark's master and workers. The workers need the same Python and packages
# as the jobs, because the workers pool vectors and encode items. pyspark contains Spark 4.2.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless procps tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 lte \
    && install --directory --owner=lte --group=lte /data /airflow /opt/lte

WORKDIR /opt/lte
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The slow layer changes only with the versions, not with the code.
COPY constraints-image.txt pyproject.toml README.md LICENSE ./
RUN mkdir jobs lte_models schemas && touch jobs/__init__.py lte_models/__init__.py schemas/__init__.py \
    && awk '/^[^ #]/ { inside = /^setuptools==/ } inside' constraints-image.txt >/tmp/builder.txt \
    && pip install --require-hashes --requirement /tmp/builder.txt \
    && pip install --require-hashes --no-build-isolation --requirement constraints-image.txt \
    && pip install --no-deps --no-build-isolation --editable .

COPY --chown=lte:lte schemas schemas
COPY --chown=lte:lte lte_models lte_models
COPY --chown=lte:lte jobs jobs
COPY --chown=lte:lte dags dags
COPY --chown=lte:lte configs configs

USER lte
ENV SPARK_HOME=/usr/local/lib/python3.11/site-packages/pyspark \
    AIRFLOW_HOME=/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/lte/dags

# Spark resolves Delta's jars here once, so no run has to.
RUN python -c "from jobs.config.sections import EngineSection; from jobs.lake.engine.sessions import spark_session; spark_session(EngineSection(master='local[1]'), 'resolve jars').__enter__().stop()"

ENTRYPOINT ["/usr/bin/tini", "-g", "--"]
CMD ["lte", "--help"]
