"""The command line: its verbs, and what it says when something is wrong."""

import json
import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis

from cli import processes
from engine.stores.embedded import Server
from tests.cli.program import lastseat
from tests.conftest import fresh_database

VERBS = (
    "up", "demo", "api", "worker", "gateway", "audit", "doctor", "rebuild",
    "sales", "room", "block", "unblock", "message", "payments", "resolve", "credit", "keys", "key", "revoke",
    "statistics", "openapi",
)  # fmt: skip


def test_the_verbs_are_these() -> None:
    said = lastseat("--help")
    assert said.returncode == 0
    told = [line.split()[0] for line in said.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert tuple(told) == VERBS


def test_its_version_is_told() -> None:
    assert lastseat("--version").stdout.startswith("lastseat, version 0.")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"LASTSEAT_PROT": "1"}, "LASTSEAT_PROT is no setting. Did you mean LASTSEAT_PORT?"),
        ({"LASTSEAT_PORT": "many"}, "LASTSEAT_PORT: "),
        ({"LASTSEAT_POSTGRES_URL": "mysql://x"}, "LASTSEAT_POSTGRES_URL must begin with one of "),
    ],
)
def test_a_wrong_setting_is_a_line_and_not_a_stack(settings: dict[str, str], line: str) -> None:
    said = lastseat("doctor", settings=settings)
    assert said.returncode == 1
    assert said.stderr.startswith(f"Error: {line}")
    assert len(said.stderr.splitlines()) == 1


def test_a_store_that_is_not_there_is_a_line(redis_url: str) -> None:
    settings = {"LASTSEAT_REDIS_URL": redis_url, "LASTSEAT_POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/none"}
    # Of an audit, 1 would say that an invariant is broken.
    for verb, status in {"audit": 2, "doctor": 1, "worker": 1, "api": 1}.items():
        said = lastseat(verb, settings=settings)
        assert (said.returncode, said.stderr.count("\n")) == (status, 1), said.stderr
        assert said.stderr.startswith("Error: Postgres cannot be opened: ")


def test_a_port_that_somebody_else_has_is_a_line(outside: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = lastseat("api", settings=outside | {"LASTSEAT_PORT": port})
    assert (said.returncode, said.stderr) == (
        1, f"Error: Port {port} of 127.0.0.1 is taken. Name another one: LASTSEAT_PORT=…\n"
    )  # fmt: skip


def test_an_unknown_sale_is_not_rebuilt(outside: dict[str, str]) -> None:
    assert "is no sale: its id has 32 hex digits" in lastseat("rebuild", "first-night", settings=outside).stderr
    said = lastseat("rebuild", "5a1e" * 8, settings=outside)
    assert (said.returncode, said.stderr.splitlines()[-1]) == (1, f"Error: There is no sale {'5a1e' * 8}.")


async def test_a_database_without_a_schema_is_a_line(outside: dict[str, str], postgres_server: Server) -> None:
    async with fresh_database(postgres_server.url) as url:
        for verb, status in {("rebuild", "5a1e" * 8): 1, ("audit",): 2, ("sales",): 1}.items():
            said = lastseat(*verb, settings=outside | {"LASTSEAT_POSTGRES_URL": url})
            assert (said.returncode, said.stderr.splitlines()[-1]) == (
                status, "Error: This database has no schema yet: start `lastseat up` once."
            )  # fmt: skip


def test_the_audit_of_an_empty_shop_is_true(outside: dict[str, str]) -> None:
    said = lastseat("audit", settings=outside)
    assert said.returncode == 0, said.stderr
    report = json.loads(lastseat("audit", "--json", settings=outside).stdout)
    assert report["verdict"] == "true"
    assert [check["invariant"] for check in report["checks"]] == ["I1", "I3", "I4", "I5", "I6", "I7", "I9", "I13"]


def test_the_audit_reads_the_history_that_it_is_given(outside: dict[str, str], tmp_path: Path) -> None:
    heard = {
        "event": "confirmed", "sale_id": "5a" * 16, "user_id": "a0" * 16, "key": "k", "reservation_id": "10" * 16,
        "seats": ["A-1-1"], "amount": 1, "payment_id": "9a" * 16,
    }  # fmt: skip
    history = tmp_path / "history.jsonl"
    history.write_text(json.dumps(heard) + "\n")
    said = lastseat("audit", "--history", str(history), settings=outside)
    assert said.returncode == 1
    assert "it is not in Postgres" in " ".join(said.stdout.split())


def test_a_history_that_is_none_is_a_line(outside: dict[str, str], tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text('{"event": "confirmed"}\n')
    said = lastseat("audit", "--history", str(history), settings=outside)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1), said.stderr
    assert said.stderr.startswith(f"Error: {history}, line 1: ")


async def test_an_audit_that_proves_nothing_says_so(outside: dict[str, str], postgres_url: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(postgres_url)
    await connection.execute("INSERT INTO sales (sale_id, kind, name) VALUES (gen_random_uuid(), 'seats', 'new')")
    await connection.close()
    said = lastseat("audit", "--settle", "0", settings=outside)
    assert said.returncode == 2
    assert "unknown" in said.stdout


@pytest.mark.parametrize("face", ["api", "worker"])
async def test_a_store_that_may_not_be_trusted_is_a_line(outside: dict[str, str], redis: Redis, face: str) -> None:
    settings = outside | {"LASTSEAT_PORT": str(processes.free_port("127.0.0.1")), "LASTSEAT_WORKERS": "2"}
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        said = lastseat(face, settings=settings)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    assert said.returncode == 1
    assert "Traceback" not in said.stdout + said.stderr
    assert said.stderr.splitlines()[-1].startswith("Error: Redis would throw away seats when full")
    assert said.stderr.count("Change it: maxmemory-policy noeviction") == 1


async def test_the_doctor_names_the_line_to_change(outside: dict[str, str], redis: Redis) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        said = lastseat("doctor", settings=outside)
        told = json.loads(lastseat("doctor", "--json", settings=outside).stdout)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    assert said.returncode == 1
    assert "change: maxmemory-policy noeviction" in said.stdout
    assert not told["well"]
    refused = [symptom for symptom in told["symptoms"] if symptom["state"] == "refused"]
    assert [(symptom["subject"], symptom["change"]) for symptom in refused] == [
        ("redis", "maxmemory-policy noeviction")
    ]


def test_the_doctor_finds_a_healthy_shop_well(outside: dict[str, str]) -> None:
    said = lastseat("doctor", settings=outside)
    assert said.returncode == 0, said.stderr
    assert "the database has all" in said.stdout
    assert "Redis and Postgres tell the same time" in said.stdout


def test_the_openapi_document_is_printed() -> None:
    document = json.loads(lastseat("openapi").stdout)
    assert document["openapi"].startswith("3.1")
    assert "/v1/schedules/{schedule_id}/reservations" in document["paths"]
