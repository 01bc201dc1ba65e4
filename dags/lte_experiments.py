"""# Which LTE helps, how, what leaks and what lasts: the experiments, started by hand.

`integration` (the paper's Table 1), `leakage` (section 5.5), `sequence-length` (section 5.3), `autoencoder` (section
9.2), `stability` (Table 2) and `attention` (section 6) on the data of the deployment that `LTE_CONFIG` names, one task
each. The experiments have no schedule and change nothing that is live.

**What comes out**: rows of the table `experiments`, and a CSV, tables and a plot under `reports/experiments`. Before
a task starts, its log says what the task will train and how long that takes.

**Parameters** of a run: `ds`, the last test day (empty: the last day with interactions), and `flags`, further
flags of `lte experiment`, such as `--seeds 0,1,2,3 --fresh`. Section `[experiment]` of the configuration holds the
defaults.

Finished trainings are kept: a task that is cleared, or that used up its budget of minutes, continues where it stopped.
Tasks share the pool `lte_heavy` with the daily run, so that experiments and daily run never compete for the
memory of the machine.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, chain
from tasks import ONE_RUN_AT_A_TIME, job_task

EXPERIMENTS = ("integration", "live", "leakage", "sequence-length", "autoencoder", "stability", "attention")
DAY = r"^(\d{4}-\d{2}-\d{2})?$"
FLAGS = r"^(--[a-z-]+( [0-9.,]+)?( |$))*$"  # goes into a shell: nothing but flags and numbers
RUN_FLAGS = "{% if params.ds %}--ds {{ params.ds }}{% endif %} {{ params.flags }}"

with DAG(
    "lte_experiments",
    schedule=None,
    dagrun_timeout=timedelta(days=2),
    params={
        "ds": Param("", type="string", pattern=DAY, description="last test day; empty: the last with interactions"),
        "flags": Param("", type="string", pattern=FLAGS, description="further flags of `lte experiment`"),
    },
    doc_md=__doc__,
    **ONE_RUN_AT_A_TIME,
    tags=["lte", "experiments"],
):
    chain(*(job_task(name, f"experiment {name}", RUN_FLAGS) for name in EXPERIMENTS))
