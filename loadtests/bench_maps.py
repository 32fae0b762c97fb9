"""The seat map of a big hall: whole, as often as it can be served, and what changes, to a crowd that listens."""

import asyncio
import gzip
import json
import os
import resource
import secrets
import statistics
import time
from pathlib import Path

from loadtests.bench_http import drive
from loadtests.results import Row
from loadtests.shop import Shop, seat_no, shop

SEATS = 50_000
MAPS = 2_000
MAP_CALLERS = 16
ROUNDS = 3
LISTENERS = 5_000
CONNECTING_AT_ONCE = 200
CHANGES = 10
SOLD = 2_000
LEFT = 200
SEATS_AT_ONCE = 20
# No map is older than this.
OLD_AFTER_S = 2.1
HEARD_WITHIN_S = 30.0
MEMORY_MAX_MIB = 1024


class _Ear(asyncio.Protocol):
    """Somebody who listens, and notes when a word is heard that it waits for."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.began: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._word = b""
        self._heard: asyncio.Future[float] | None = None
        self._transport: asyncio.Transport | None = None

    def wait_for(self, word: bytes) -> "asyncio.Future[float]":
        """When this word is heard."""
        self._word, self._heard = word, asyncio.get_running_loop().create_future()
        return self._heard

    def close(self) -> None:
        """Listen no more."""
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection makes no other kind
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, part: bytes) -> None:
        if not self.began.done():
            self.began.set_result(part)
        told = self._tail + part
        if self._heard is not None and not self._heard.done() and self._word in told:
            self._heard.set_result(time.perf_counter())
        self._tail = told[-64:]

    def connection_lost(self, _fault: Exception | None) -> None:
        for waiting in (self.began, self._heard):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionResetError("the stream ended"))


async def maps() -> tuple[list[Row], list[str]]:
    """Whole maps a second, and how soon a crowd hears of a change; one API process, 50,000 seats."""
    _allow_files(2 * LISTENERS)
    async with shop(processes=1, connections_max=64) as running:
        schedule_id, sale_id = await running.make_sale(SEATS)
        (token,) = await running.make_buyers(1)
        found = await _whole_maps(running, schedule_id)
        times_s, memory_mib = await _deltas(running, schedule_id, sale_id, token)
        await _sell(running, schedule_id, SOLD, SEATS - LEFT)
        late_times_s, late_memory_mib = await _deltas(running, schedule_id, sale_id, token, last=SEATS - CHANGES)
    memory_mib = max(memory_mib, late_memory_mib)
    rows = [
        Row("seat_map_50k_per_s", found[0], "maps/s", f"gzip, {found[1]:,.0f} KiB each", at_least=200.0),
        Row(
            "seat_delta_5k_listeners_s",
            max(times_s),
            "s",
            f"the slowest of {CHANGES} changes, to the last of {LISTENERS:,} listeners",
            at_most=1.0,
        ),
        Row(
            "seat_delta_nearly_sold_out_s",
            max(late_times_s),
            "s",
            f"the same with {LEFT} of {SEATS:,} seats left",
            at_most=1.0,
        ),
    ]
    drawn = f"A new map took {found[2] * 1000:,.0f} ms to read and draw, once for all who asked."
    heard = (
        f"In the median a change reached all listeners {statistics.median(times_s):.2f} s after its request was sent, "
    )
    heard += f"{statistics.median(late_times_s):.2f} s in the nearly sold out hall; they took "
    heard += f"{memory_mib:,.0f} MiB of one process."
    if memory_mib > MEMORY_MAX_MIB:
        raise RuntimeError(heard)
    return rows, [drawn, heard]


async def _whole_maps(running: Shop, schedule_id: str) -> tuple[float, float, float]:
    """Maps a second, their size in KiB, and how long a new one takes in seconds."""
    request = running.client.encode("GET", f"/v1/schedules/{schedule_id}/seats", headers={"accept-encoding": "gzip"})
    known = (await running.client.send(request)).header("etag")  # the plan of the hall is read
    await _sell(running, schedule_id, 0, SOLD)
    await asyncio.sleep(OLD_AFTER_S)
    began = time.perf_counter()
    drawn = await running.client.send(request)
    drawn_s = time.perf_counter() - began
    if drawn.header("etag") == known:
        raise RuntimeError("the map is older than it may be")
    whole = json.loads(gzip.decompress(drawn.body))
    if not whole["full"] or len(whole["seats"]) != SEATS:
        raise RuntimeError(f"this is not the whole map: {len(whole['seats'])} seats")
    rates = [(await drive(running.client, [request] * MAPS, 200, callers=MAP_CALLERS)).per_s for _ in range(ROUNDS)]
    return statistics.median(rates), len(drawn.body) / 1024, drawn_s


async def _deltas(
    running: Shop, schedule_id: str, sale_id: str, token: str, *, last: int = SEATS
) -> tuple[list[float], float]:
    """How long each change took to reach everybody, in seconds, and the memory of the process in MiB.

    The seats that change are those before `last`.
    """
    ears = await _listen(running, f"/v1/sales/{sale_id}/events", LISTENERS)
    path = f"/v1/schedules/{schedule_id}/reservations"
    times_s: list[float] = []
    for change in range(CHANGES):
        seat = seat_no(last - 1 - change)
        waiting = [ear.wait_for(f'"{seat}"'.encode()) for ear in ears]
        began = time.perf_counter()
        await _hold(running, path, token, [seat])
        async with asyncio.timeout(HEARD_WITHIN_S):
            heard = await asyncio.gather(*waiting)
        times_s.append(max(heard) - began)
    memory_mib = _memory_mib()
    for ear in ears:
        ear.close()
    return times_s, memory_mib


async def _listen(running: Shop, path: str, count: int) -> list[_Ear]:
    loop = asyncio.get_running_loop()
    request = running.client.encode("GET", path)
    ears: list[_Ear] = []
    for first in range(0, count, CONNECTING_AT_ONCE):
        made = await asyncio.gather(
            *[
                loop.create_connection(lambda: _Ear(request), running.client.host, running.client.port)
                for _ in range(min(CONNECTING_AT_ONCE, count - first))
            ]
        )
        ears += [ear for _, ear in made]
        for began in await asyncio.gather(*[ear.began for _, ear in made]):
            if not began.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"a listener was answered {began[:200]!r}")
    return ears


async def _sell(running: Shop, schedule_id: str, first: int, last: int) -> None:
    """Hold the seats of the hall from `first` and before `last`, for as many buyers as that takes."""
    path = f"/v1/schedules/{schedule_id}/reservations"
    firsts = range(first, last, SEATS_AT_ONCE)
    tokens = await running.make_buyers(len(firsts))
    holds = [
        _hold(running, path, token, [seat_no(n + k) for k in range(SEATS_AT_ONCE)])
        for n, token in zip(firsts, tokens, strict=True)
    ]
    await asyncio.gather(*holds)


async def _hold(running: Shop, path: str, token: str, seats: list[str]) -> None:
    headers = {"authorization": f"Bearer {token}", "idempotency-key": secrets.token_hex(8)}
    answer = await running.client.request("POST", path, headers=headers, body={"seats": seats})
    if answer.status != 201:
        raise RuntimeError(f"a hold was answered {answer.status} {answer.body.decode()[:300]}")


def _memory_mib() -> float:
    """The memory of the API process, the largest child of a child of ours; 0 where the system does not say."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields["PPid"]), []).append(int(fields["Pid"]))
        resident[int(fields["Pid"])] = int(fields.get("VmRSS", "0 kB").split()[0])
    below = [grandchild for child in children.get(os.getpid(), []) for grandchild in children.get(child, [])]
    return max((resident[pid] for pid in below), default=0) / 1024


def _allow_files(wanted: int) -> None:
    """Let this process, and those it starts, open so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
