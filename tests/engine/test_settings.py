"""The variables, what they turn into, and what is said of one that cannot be used."""

import pytest

from engine.settings import Settings, SettingsFault


def test_without_variables_everything_is_embedded() -> None:
    settings = Settings.from_environment({"PATH": "/bin"})
    assert (settings.redis_url, settings.queue_redis_url, settings.postgres_url) == (None, None, None)
    assert (settings.data_dir, settings.host, settings.port) == (".lastseat", "127.0.0.1", 8000)
    assert (settings.currency, settings.time_zone, settings.repeat_window_s) == ("KRW", "UTC", 3600)
    assert settings.workers >= 1


def test_every_setting_has_a_variable() -> None:
    environ = {
        "LASTSEAT_REDIS_URL": "redis+cluster://one:7000,two:7000",
        "LASTSEAT_QUEUE_REDIS_URL": "redis://queue:6379",
        "LASTSEAT_POSTGRES_URL": "postgresql://shop@db/shop",
        "LASTSEAT_DATA_DIR": "/var/lib/shop",
        "LASTSEAT_HOST": "0.0.0.0",
        "LASTSEAT_PORT": "8080",
        "LASTSEAT_WORKERS": "4",
        "LASTSEAT_TAKE_TURNS": "false",
        "LASTSEAT_CORS_ORIGINS": "https://shop.example, http://localhost:3000",
        "LASTSEAT_ADMIN_KEY": "a" * 16,
        "LASTSEAT_SECRET": "s" * 32,
        "LASTSEAT_CURRENCY": "EUR",
        "LASTSEAT_TIME_ZONE": "Asia/Seoul",
        "LASTSEAT_REPEAT_WINDOW_S": "7200",
        "LASTSEAT_STRIPE_API_KEY": "sk_test",
        "LASTSEAT_STRIPE_API_BASE": "http://127.0.0.1:1",
        "LASTSEAT_STRIPE_WEBHOOK_SECRET": "whsec",
        "LASTSEAT_PASSWORD_MEMORY_KIB": "8",
        "LASTSEAT_PASSWORD_PASSES": "1",
        "LASTSEAT_REDIS_CONNECTIONS_MAX": "8",
        "LASTSEAT_POSTGRES_CONNECTIONS_MAX": "4",
        "LASTSEAT_BACKLOG_MAX": "500",
        "LASTSEAT_LISTENERS_MAX": "20",
    }
    settings = Settings.from_environment(environ)
    assert settings.cors_origins == ("https://shop.example", "http://localhost:3000")
    assert (settings.port, settings.workers, settings.repeat_window_s) == (8080, 4, 7200)
    assert not settings.take_turns
    assert set(settings.to_environment()) == set(environ)
    assert Settings.from_environment(settings.to_environment()) == settings


def test_an_empty_variable_is_not_set() -> None:
    assert Settings.from_environment({"LASTSEAT_REDIS_URL": "", "LASTSEAT_PORT": " "}).port == 8000


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("LASTSEAT_PORT", "eighty", "Expected `int`"),
        ("LASTSEAT_PORT", "65536", "<= 65535"),
        ("LASTSEAT_WORKERS", "0", ">= 1"),
        ("LASTSEAT_CURRENCY", "won", "matching regex"),
        ("LASTSEAT_SECRET", "short", "length >= 32"),
        ("LASTSEAT_TIME_ZONE", "Mars/Olympus", "no known time zone"),
        ("LASTSEAT_TIME_ZONE", "../../etc/passwd", "no known time zone"),
        ("LASTSEAT_REDIS_URL", "http://redis", "redis://"),
        ("LASTSEAT_REDIS_URL", "redis://[::1", "is no address"),
        ("LASTSEAT_REDIS_URL", "redis://redis:many", "host:port"),
        ("LASTSEAT_REDIS_URL", "redis://:pass/word@redis:6379", "%2F"),
        ("LASTSEAT_QUEUE_REDIS_URL", "redis+cluster://one:1", "redis://"),
        ("LASTSEAT_POSTGRES_URL", "postgresql://shop@one:5432,two:many/shop", "host:port"),
        ("LASTSEAT_POSTGRES_URL", "mysql://db", "postgresql://"),
        ("LASTSEAT_CORS_ORIGINS", "shop.example", "https://shop.example"),
        ("LASTSEAT_CORS_ORIGINS", "https://shop.example/path", "https://shop.example"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_the_name_of_its_variable(name: str, text: str, said: str) -> None:
    with pytest.raises(SettingsFault, match=f"^{name}") as refused:
        Settings.from_environment({name: text})
    assert said in str(refused.value)


def test_a_refusal_does_not_repeat_a_secret() -> None:
    with pytest.raises(SettingsFault) as refused:
        Settings.from_environment({"LASTSEAT_SECRET": "hunter2"})
    assert "hunter2" not in str(refused.value)


def test_a_misspelt_variable_is_refused_with_the_right_name() -> None:
    with pytest.raises(SettingsFault, match=r"^LASTSEAT_REDIS_URI is no setting\. Did you mean LASTSEAT_REDIS_URL\?"):
        Settings.from_environment({"LASTSEAT_REDIS_URI": "redis://redis"})


def test_a_node_of_a_cluster_has_a_port() -> None:
    environ = {"LASTSEAT_REDIS_URL": "redis+cluster://one:7000,two", "LASTSEAT_QUEUE_REDIS_URL": "redis://queue"}
    with pytest.raises(SettingsFault, match=r"^LASTSEAT_REDIS_URL must look like redis\+cluster://host:port,host:port"):
        Settings.from_environment(environ)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("LASTSEAT_REDIS_URL", "redis://user:pass@[::1]:6379/3"),
        ("LASTSEAT_REDIS_URL", "unix:///run/redis.sock?db=1"),
        ("LASTSEAT_REDIS_URL", "rediss://:p%40ss@redis.example"),
        ("LASTSEAT_POSTGRES_URL", "postgresql:///shop?host=/run/postgresql"),
        ("LASTSEAT_POSTGRES_URL", "postgres://shop:secret@one:5432,two:5432/shop"),
        ("LASTSEAT_POSTGRES_URL", "postgresql://shop@%2Frun%2Fpostgresql/shop"),
    ],
)
def test_an_address_in_any_usual_form_is_taken(name: str, address: str) -> None:
    assert Settings.from_environment({name: address}).to_environment()[name] == address


def test_a_cluster_needs_a_queue_store_of_its_own() -> None:
    with pytest.raises(SettingsFault, match=r"^LASTSEAT_QUEUE_REDIS_URL must name a Redis of its own"):
        Settings.from_environment({"LASTSEAT_REDIS_URL": "redis+cluster://one:7000"})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"LASTSEAT_STRIPE_API_BASE": "http://127.0.0.1:1"}, "means nothing without LASTSEAT_STRIPE_API_KEY"),
        ({"LASTSEAT_STRIPE_WEBHOOK_SECRET": "whsec"}, "means nothing without LASTSEAT_STRIPE_API_KEY"),
        (
            {"LASTSEAT_STRIPE_API_KEY": "sk_test", "LASTSEAT_STRIPE_API_BASE": "http://gateway.example"},
            "must begin with https://",
        ),
        ({"LASTSEAT_STRIPE_API_KEY": "sk_test", "LASTSEAT_CURRENCY": "ISK"}, "counts ISK in hundredths"),
    ],
)
def test_a_gateway_that_cannot_be_used_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsFault, match=said):
        Settings.from_environment(environ)


@pytest.mark.parametrize(
    ("key", "real"),
    [(None, False), ("sk_test_simulated", False), ("sk_test_simulated_1f", False), ("sk_test_1f", True)],
)
def test_only_a_key_of_the_simulated_gateway_moves_no_money(key: str | None, *, real: bool) -> None:
    assert Settings(stripe_api_key=key).has_real_gateway is real


def test_a_simulated_gateway_may_be_anywhere() -> None:
    base = "http://gateway.test:8420"
    assert Settings(stripe_api_key="sk_test_simulated", stripe_api_base=base).stripe_api_base == base


def test_settings_tell_no_secret() -> None:
    settings = Settings(
        admin_key="admin-key-of-an-operator",
        secret="s3cret" * 6,
        stripe_api_key="sk_test_of_a_shop",
        stripe_webhook_secret="whsec_of_a_shop",
        redis_url="rediss://shop:passw0rd@redis:6379",
        postgres_url="postgresql://shop:passw0rd@db/shop",
    )
    told = f"{settings!r} {settings} {settings.__rich_repr__()}"
    for secret in ("admin-key", "s3cret", "sk_test", "whsec", "passw0rd"):
        assert secret not in told
    for open_to_all in ("redis:6379", "db/shop", "port=8000", "KRW"):
        assert open_to_all in told
