"""The container files say nothing that the product does not have."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from engine.settings import PREFIX, Settings
from engine.stores import safety

ROOT = Path(__file__).parents[2]
FACES = ("api", "worker")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services by name, with the variables of the shell at their defaults."""
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    filled_in = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "${" not in filled_in
    found: dict[str, Any] = yaml.safe_load(filled_in)["services"]
    return found


def settings_of(service: dict[str, Any]) -> Settings:
    return Settings.from_environment({name: text or "" for name, text in service["environment"].items()})


def test_the_services_are_the_faces_and_their_stores(services: dict[str, Any]) -> None:
    assert set(services) == {*FACES, "valkey", "queue", "postgres"}


@pytest.mark.parametrize("face", FACES)
def test_every_command_is_a_verb(services: dict[str, Any], face: str) -> None:
    assert verb_is_known(services[face]["command"][0])


def test_the_image_begins_with_a_verb() -> None:
    instructions = dict(
        line.split(" ", 1)
        for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith(("ENTRYPOINT", "CMD"))
    )
    assert json.loads(instructions["ENTRYPOINT"]) == ["lastseat"]
    assert verb_is_known(json.loads(instructions["CMD"])[0])


def test_a_word_that_is_no_verb_is_seen() -> None:
    assert not verb_is_known("serve-everything")


@pytest.mark.parametrize("face", FACES)
def test_every_variable_is_a_setting_and_the_stores_are_services(services: dict[str, Any], face: str) -> None:
    assert all(name.startswith(PREFIX) for name in services[face]["environment"])
    settings = settings_of(services[face])
    for url in (settings.redis_url, settings.queue_redis_url, settings.postgres_url):
        assert urlsplit(url or "").hostname in services


@pytest.mark.parametrize("face", FACES)
def test_arq_has_a_store_of_its_own(services: dict[str, Any], face: str) -> None:
    settings = settings_of(services[face])
    assert urlsplit(settings.redis_url or "").hostname != urlsplit(settings.queue_redis_url or "").hostname


def test_the_health_check_asks_a_route_that_exists_where_the_api_listens(services: dict[str, Any]) -> None:
    [address] = re.findall(r'http://[^"]+', " ".join(services["api"]["healthcheck"]["test"]))
    settings = settings_of(services["api"])
    assert urlsplit(address).port == settings.port
    assert settings.host == "0.0.0.0"  # the port is published on the loopback address only
    assert services["api"]["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "api").glob("*.py"))
    assert f'"{urlsplit(address).path}"' in sources


def test_the_gate_is_one_that_may_be_trusted(services: dict[str, Any]) -> None:
    command = services["valkey"]["command"]
    lines = dict(zip(command[1::2], command[2::2], strict=True))
    assert safety._judge_eviction(lines["--maxmemory-policy"]) is None
    assert safety._judge_persistence({"appendonly": lines["--appendonly"], "save": lines["--save"]}) is None
    version = services["valkey"]["image"].rsplit(":", 1)[1]
    assert safety._judge_version({"server_name": "valkey", "valkey_version": version}) is None


def test_every_volume_is_declared() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    mounted = {
        volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])
    }
    assert mounted == set(compose["volumes"])


def test_the_image_gets_every_package_and_the_lock() -> None:
    kept = {
        line.removeprefix("!").rstrip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"}
    assert packages | {"lua", "sql", "pyproject.toml", "README.md", "locks/run.txt"} == kept


def test_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose does not answer here")
    subprocess.run([docker, "compose", "config", "-q"], cwd=ROOT, check=True)


def verb_is_known(verb: str) -> bool:
    """Whether the command line knows this verb."""
    program = Path(sys.executable).parent / "lastseat"
    return subprocess.run([program, verb, "--help"], capture_output=True, check=False).returncode == 0
