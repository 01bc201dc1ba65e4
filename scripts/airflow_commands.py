"""Run several commands of Airflow in one process:  airflow_commands.py "db migrate" "dags reserialize".

The import of Airflow takes longer than most of its commands.
"""

from __future__ import annotations

import shlex
import sys

from airflow.__main__ import main

if __name__ == "__main__":
    for command in sys.argv[1:]:
        print(f"airflow {command}", flush=True)
        sys.argv = ["airflow", *shlex.split(command)]
        main()  # type: ignore[no-untyped-call]  # ends this process with the code of a command that fails
