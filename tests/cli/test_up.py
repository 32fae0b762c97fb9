"""`lastseat up`: everything on one machine, killed and started again."""

import asyncio
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cli import processes
from engine.stores.embedded import postgres_server, valkey_server
from loadtests.client import Client
from loadtests.history import Heard, History
from tests.cli.program import PROGRAM, environment, lastseat

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes to kill in /proc")


@pytest.fixture
def shop(shop: dict[str, str]) -> dict[str, str]:
    """The same, with an operator who can be named beforehand."""
    return shop | {"LASTSEAT_ADMIN_KEY": "the operator of the test"}


@contextmanager
def running(shop: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Run `lastseat up` from when it is ready; it is ended by SIGTERM unless it has ended."""
    log = Path(shop["LASTSEAT_DATA_DIR"]) / "up.log"
    with log.open("w") as output:
        up = subprocess.Popen([PROGRAM, "up"], env=environment(shop), stdout=subprocess.PIPE, stderr=output, text=True)
    assert up.stdout is not None
    try:
        said = []
        for line in up.stdout:
            said.append(line)
            if "Ctrl-C stops it." in line:
                break
        else:
            pytest.fail("".join(said) + log.read_text())
        yield up
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGTERM)
            assert up.wait(60) == 0
        up.stdout.close()


def descendants(pid: int) -> list[int]:
    """Every process that this one started, and they, and so on."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


class Buyer:
    """One person, and the operator who makes it all."""

    def __init__(self, client: Client, history: History, key: str) -> None:
        self.client = client
        self.history = history
        self.operator = {"authorization": f"Bearer {key}"}

    async def ask(self, method: str, path: str, who: dict[str, str], body: object = None, status: int = 201) -> Any:
        headers = {**who, "idempotency-key": f"{method} {path}".replace(" ", "")[:128]}
        answer = await self.client.request(method, path, headers=headers, body=body)
        assert answer.status == status, (method, path, answer.status, answer.body)
        return answer.json()

    async def pay(self, path: str, who: dict[str, str]) -> Any:
        """Pay, and ask again by the same key while it is not known: the worker may take the new sale over only now."""
        while True:
            headers = {**who, "idempotency-key": "payment"}
            answer = await self.client.request("POST", path, headers=headers, body={"method": "BALANCE"})
            if answer.status != 202:
                assert (answer.status, answer.json()["status"]) == (201, "SUCCESS")
                return answer.json()

    async def buy(self) -> tuple[str, dict[str, str]]:
        """Make a concert and buy one of its two seats; answers the reservation, and who has it."""
        concert = await self.ask("POST", "/v1/admin/concerts", self.operator, {"title": "First night"})
        seats = [{"section": "A", "row": "1", "number": n, "category": "R", "price": 500} for n in (1, 2)]
        terms = {"start_at": "2030-01-01T19:00:00Z", "seats": seats}
        path = f"/v1/admin/concerts/{concert['concert_id']}/schedules"
        schedule = await self.ask("POST", path, self.operator, terms)
        people = await self.ask("POST", "/v1/admin/accounts", self.operator, {"count": 1, "balance": 500})
        person = people["items"][0]
        who = {"authorization": f"Bearer {person['access_token']}"}
        path = f"/v1/schedules/{schedule['schedule_id']}/reservations"
        held = await self.ask("POST", path, who, {"seats": ["A-1-2"]})
        path = f"/v1/reservations/{held['reservation_id']}/payments"
        payment = await self.pay(path, who)
        self.history.record(
            Heard(
                event="confirmed", sale_id=schedule["sale_id"], user_id=person["user_id"], key=path,
                reservation_id=held["reservation_id"], seats=("A-1-2",), amount=500, payment_id=payment["payment_id"],
            )
        )  # fmt: skip
        return held["reservation_id"], who


def test_what_was_confirmed_outlives_the_death_of_everything(shop: dict[str, str]) -> None:
    history_path = Path(shop["LASTSEAT_DATA_DIR"]) / "history.jsonl"
    port = int(shop["LASTSEAT_PORT"])

    async def buy() -> tuple[str, dict[str, str]]:
        async with Client("127.0.0.1", port) as client:
            with History(history_path) as history:
                return await Buyer(client, history, shop["LASTSEAT_ADMIN_KEY"]).buy()

    async def look(reservation_id: str, who: dict[str, str]) -> Any:
        async with Client("127.0.0.1", port) as client:
            return (await client.request("GET", f"/v1/reservations/{reservation_id}", headers=who)).json()

    async def wait_for_metric(series: str) -> None:
        async with asyncio.timeout(5), Client("127.0.0.1", port) as client:
            while series not in (await client.request("GET", "/metrics")).body.decode():
                pass

    with running(shop) as up:
        reservation_id, who = asyncio.run(buy())
        # The API tells what it counted, and what the worker did.
        asyncio.run(wait_for_metric('lastseat_http_request_seconds_count{method="POST",route="/v1/admin/accounts"'))
        asyncio.run(wait_for_metric('lastseat_entries_applied_total{stream="outbox"} 1.0'))
        asyncio.run(wait_for_metric("lastseat_sales_owned 1.0"))
        everything = [up.pid, *descendants(up.pid)]
        assert len(everything) > 5  # the stores, the worker, the API and its process
        for pid in everything:
            with suppress(ProcessLookupError):  # it has died with one that it belonged to
                os.kill(pid, signal.SIGKILL)
        up.wait()
    with running(shop) as up:
        found = asyncio.run(look(reservation_id, who))
        assert (found["status"], [seat["status"] for seat in found["seats"]]) == ("CONFIRMED", ["SOLD"])
        judged = lastseat("audit", settings=shop)
        assert judged.returncode == 0, judged.stdout + judged.stderr
        assert re.search(r"^I2 +true .*1 confirmations heard", judged.stdout, re.MULTILINE)


def test_after_the_death_of_its_parent_nothing_is_in_the_way_of_the_next_start(shop: dict[str, str]) -> None:
    with running(shop) as up:
        up.kill()
        up.wait()
    with running(shop):
        pass
    assert processes.is_free("127.0.0.1", int(shop["LASTSEAT_PORT"]))


@pytest.mark.parametrize("store", ["valkey", "postgres"])
def test_the_end_of_a_store_is_the_end_of_all(store: str, shop: dict[str, str]) -> None:
    folder = Path(shop["LASTSEAT_DATA_DIR"]) / store
    with running(shop) as up:
        server = {"valkey": valkey_server, "postgres": postgres_server}[store].find(folder)
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        assert up.wait(60) == 1
    said = (Path(shop["LASTSEAT_DATA_DIR"]) / "up.log").read_text()
    assert f"Error: The embedded server in {folder} ended. Its log ends:\n" in said
    with running(shop):
        pass


def test_the_first_key_is_shown_before_anything_can_go_wrong(shop: dict[str, str]) -> None:
    first = {name: value for name, value in shop.items() if name != "LASTSEAT_ADMIN_KEY"}
    with subprocess.Popen([PROGRAM, "up"], env=environment(first), stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        assert up.stdout.readline().startswith("Admin key, shown this once: lsk_")
        up.send_signal(signal.SIGTERM)
        assert "Stopped.\n" in up.stdout.read()
    assert up.returncode == 0


def test_a_port_that_is_taken_is_a_line(shop: dict[str, str]) -> None:
    with running(shop):
        second = lastseat("up", settings=shop)
    assert second.returncode == 1
    assert (
        second.stderr
        == f"Error: Port {shop['LASTSEAT_PORT']} of 127.0.0.1 is taken. Name another one: LASTSEAT_PORT=…\n"
    )


def test_of_two_starts_at_once_one_has_the_port(shop: dict[str, str]) -> None:
    starting = [
        subprocess.Popen(
            [PROGRAM, "up"], env=environment(shop), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [os.pidfd_open(up.pid) for up in starting]
    ended, _, _ = select.select(ends, [], [], 60)  # either may be the one
    assert len(ended) == 1
    for end in ends:
        os.close(end)
    refused, other = sorted(starting, key=lambda up: up.poll() is None)
    assert "is taken" in refused.communicate()[1]
    other.send_signal(signal.SIGTERM)
    said, _ = other.communicate(timeout=60)
    assert (refused.returncode, other.returncode, said.endswith("Stopped.\n")) == (1, 0, True)


def test_a_host_that_is_none_is_a_line(shop: dict[str, str]) -> None:
    said = lastseat("up", settings=shop | {"LASTSEAT_HOST": "192.0.2.1"})
    assert (said.returncode, said.stderr.count("\n")) == (1, 1), said.stderr
    assert said.stderr.startswith(f"Error: Nothing can listen on port {shop['LASTSEAT_PORT']} of 192.0.2.1: ")


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has classes of turns")
@pytest.mark.parametrize(("setting", "expected"), [("true", "SCHED_BATCH"), ("false", "SCHED_OTHER")])
def test_stores_api_and_worker_wait_for_the_turns_of_others_where_that_is_set(
    setting: str, expected: str, shop: dict[str, str]
) -> None:
    with running(shop | {"LASTSEAT_TAKE_TURNS": setting}) as up:
        classes = {pid: os.sched_getscheduler(pid) for pid in descendants(up.pid)}
    assert len(classes) > 5  # Postgres alone has that many
    assert set(classes.values()) == {getattr(os, expected)}
