"""Every setting and limit of an installation; the faces read the environment and pass it in."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

PREFIX = "LASTSEAT_"

REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "unix")
QUEUE_SCHEMES = ("redis", "rediss", "unix")
POSTGRES_SCHEMES = ("postgres", "postgresql")

# Connections of one process.
REDIS_CONNECTIONS_MAX = 64
POSTGRES_CONNECTIONS_MAX = 16

# A host and its port; either may be left to its default, and a host with colons stands in brackets.
NODE = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(?::\d{0,5})?")

LOOPBACK = ("127.0.0.1", "::1", "localhost")

SIMULATED_KEY = "sk_test_simulated"
"""What the key of the simulated gateway begins with; it moves no money."""

# Stripe does not count these in their smallest unit (docs.stripe.com/currencies, special cases): amounts would be a
# hundredth of what they should be.
STRIPE_COUNTS_OTHERWISE = ("ISK", "UGX")

SECRETS = ("admin_key", "secret", "stripe_api_key", "stripe_webhook_secret")
ADDRESSES = ("redis_url", "queue_redis_url", "postgres_url")

Positive = Annotated[int, Meta(ge=1)]


class SettingsFault(ValueError):
    """A setting cannot be used; the message begins with the name of its variable."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may choose. Field `redis_url` is the variable `LASTSEAT_REDIS_URL`, and so on.

    An address that is None means the embedded server of the data folder.
    """

    redis_url: str | None = None
    queue_redis_url: str | None = None
    postgres_url: str | None = None
    data_dir: str = ".lastseat"

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 8000
    workers: Positive = msgspec.field(default_factory=lambda: os.cpu_count() or 1)
    # Whether processes are woken only when another has ended its turn: engine/processes.py.
    take_turns: bool = True
    cors_origins: tuple[str, ...] = ()

    admin_key: Annotated[str, Meta(min_length=16)] | None = None
    secret: Annotated[str, Meta(min_length=32)] | None = None
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] = "KRW"
    time_zone: str = "UTC"
    repeat_window_s: Annotated[int, Meta(ge=60)] = 3600
    # Joins and holds answer `busy` while Postgres is this many entries of a sale's stream behind.
    backlog_max: Positive = 100_000
    # People who listen to events at one process; each is a connection that stays open.
    listeners_max: Positive = 10_000

    stripe_api_key: str | None = None
    stripe_api_base: str | None = None
    stripe_webhook_secret: str | None = None

    # The cost of one argon2id hash. These are the least that OWASP's password storage cheat sheet asks for:
    # 26 ms of a core here, against 164 ms with the library's own defaults.
    password_memory_kib: Annotated[int, Meta(ge=8)] = 19_456
    password_passes: Positive = 2

    redis_connections_max: Positive = REDIS_CONNECTIONS_MAX
    postgres_connections_max: Positive = POSTGRES_CONNECTIONS_MAX

    def __post_init__(self) -> None:
        """Refuse what no single field's type can refuse."""
        _check_address("redis_url", self.redis_url, REDIS_SCHEMES)
        _check_address("queue_redis_url", self.queue_redis_url, QUEUE_SCHEMES)
        _check_address("postgres_url", self.postgres_url, POSTGRES_SCHEMES)
        _check_address("stripe_api_base", self.stripe_api_base, ("http", "https"))
        self._check_gateway()
        if self.queue_redis_url is None and urlsplit(self.redis_url or "").scheme == "redis+cluster":
            raise SettingsFault(
                f"{variable('queue_redis_url')} must name a Redis of its own: "
                f"arq cannot use the cluster in {variable('redis_url')}."
            )
        try:
            ZoneInfo(self.time_zone)
        except (KeyError, OSError, ValueError) as fault:
            raise SettingsFault(f"{variable('time_zone')}: {self.time_zone!r} is no known time zone.") from fault
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise SettingsFault(f"{variable('cors_origins')}: {origin!r} must look like https://shop.example.")

    def _check_gateway(self) -> None:
        if self.stripe_api_key is None:
            for field in ("stripe_api_base", "stripe_webhook_secret"):
                if getattr(self, field) is not None:
                    raise SettingsFault(f"{variable(field)} means nothing without {variable('stripe_api_key')}.")
            return
        base = urlsplit(self.stripe_api_base or "https://")
        if self.has_real_gateway and base.scheme != "https" and base.hostname not in LOOPBACK:
            raise SettingsFault(f"{variable('stripe_api_base')} must begin with https://: a key is sent there.")
        if self.has_real_gateway and self.currency in STRIPE_COUNTS_OTHERWISE:
            raise SettingsFault(f"{variable('currency')}: the card gateway counts {self.currency} in hundredths.")

    @property
    def has_real_gateway(self) -> bool:
        """Whether card payments move money."""
        return self.stripe_api_key is not None and not self.stripe_api_key.startswith(SIMULATED_KEY)

    @property
    def data_path(self) -> Path:
        """The data folder, absolute."""
        return Path(self.data_dir).absolute()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the `LASTSEAT_` variables; an empty one counts as not set.

        Raises SettingsFault, which names the variable, also for a name that is no setting: a misspelt address
        would quietly start an embedded store.
        """
        fields = {variable(field.name): field for field in msgspec.structs.fields(cls)}
        chosen: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX) or not text.strip():
                continue
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                raise SettingsFault(f"{name} is no setting." + (f" Did you mean {near[0]}?" if near else ""))
            field = fields[name]
            value = _items(text) if field.type == tuple[str, ...] else text.strip()
            try:
                chosen[field.name] = msgspec.convert(value, field.type, strict=False)
            except msgspec.ValidationError as fault:
                # Without the value: it may be a secret.
                raise SettingsFault(f"{name}: {fault}.") from fault
        return cls(**chosen)

    def __repr__(self) -> str:
        """Tell every setting but what is secret: settings end up in logs."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Tell the fields as `__repr__` does."""
        told = []
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name in SECRETS:
                value = "..."
            elif value is not None and field.name in ADDRESSES:
                value = re.sub(r"//[^/@]*@", "//...@", value)
            told.append((field.name, value))
        return told

    def to_environment(self) -> dict[str, str]:
        """Answer the variables from which `from_environment` makes these settings, for a process we start."""
        environ = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is not None and value != ():
                environ[variable(field.name)] = _text_of(value)
        return environ


def variable(field: str) -> str:
    """Name the environment variable of a field."""
    return PREFIX + field.upper()


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _check_address(field: str, url: str | None, schemes: tuple[str, ...]) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
    except ValueError:
        raise SettingsFault(f"{variable(field)} is no address.") from None  # whose words may be the password
    if parts.scheme not in schemes or not (parts.netloc or parts.path or parts.query):
        allowed = ", ".join(f"{scheme}://" for scheme in schemes)
        raise SettingsFault(f"{variable(field)} must begin with one of {allowed}.")
    nodes = parts.netloc.rpartition("@")[2].split(",")
    if not all(NODE.fullmatch(node) for node in nodes):
        raise SettingsFault(f"{variable(field)}: a host looks like host:port, what is special in a password like %2F.")
    if parts.scheme == "redis+cluster" and not all(re.search(r".:\d+$", node) for node in nodes):
        raise SettingsFault(f"{variable(field)} must look like redis+cluster://host:port,host:port.")
