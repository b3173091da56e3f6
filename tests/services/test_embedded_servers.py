"""The embedded PostgreSQL and Redis are real servers that lose nothing and leave nothing behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from capataz import home
from capataz.services import binaries, orphans
from capataz.services.account import Account, unprivileged_account
from capataz.services.binaries import PostgresBinaries, find_postgres, find_redis
from capataz.services.embedded import embedded
from capataz.services.errors import HomeInUse, StartFailed
from capataz.services.keepsakes import PORTS, Keepsakes, is_free
from capataz.services.postgres import Postgres
from capataz.services.server import Server
from capataz.services.waiting import eventually
from tests.processes import PATIENCE

# Starts both servers, says which they are, and waits to be killed.
OWNER = """
import sys, time
from pathlib import Path
from capataz.services.embedded import embedded
with embedded(Path(sys.argv[1])) as servers:
    print(servers.postgres.child.pid, servers.redis.child.pid, flush=True)
    time.sleep(600)
"""


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def pid_of(server: Server | None) -> int:
    assert server is not None
    assert server.child is not None
    return server.child.pid


def is_gone(pid: int) -> bool:
    return home.start_time(pid) is None


def family(pid: int) -> list[int]:
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def restart(server: Server) -> None:
    server.start()
    server.wait_until_ready()


def test_both_servers_answer_and_are_stopped_at_the_end(place: Path) -> None:
    with embedded(place) as servers:
        assert query(servers.database_url, "SELECT current_database(), current_user") == [
            ("capataz", "capataz")
        ]
        assert client(servers.redis_url).ping()
        pids = family(pid_of(servers.postgres)) + family(pid_of(servers.redis))
    assert all(is_gone(pid) for pid in pids)


def test_the_database_is_utf8_and_durable(place: Path) -> None:
    with embedded(place) as servers:
        for name, value in {"fsync": "on", "synchronous_commit": "on", "max_connections": "200"}.items():
            assert query(servers.database_url, f"SHOW {name}") == [(value,)]
        assert query(servers.database_url, "SHOW server_encoding") == [("UTF8",)]


def test_the_role_may_create_databases_and_nothing_else(place: Path) -> None:
    with embedded(place) as servers:
        query(servers.database_url, "CREATE DATABASE test_capataz")
        other = servers.database_url.removesuffix("/capataz") + "/test_capataz"
        assert query(other, "SELECT current_database()") == [("test_capataz",)]
        facts = "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user"
        assert query(servers.database_url, facts) == [(False, True, False)]
        with pytest.raises(psycopg.OperationalError):
            query(servers.database_url.replace("//capataz:", "//postgres:"), "SELECT 1")


def test_redis_keeps_what_it_is_told_and_never_evicts(place: Path) -> None:
    with embedded(place) as servers:
        settings = client(servers.redis_url).config_get("append*", "save", "maxmemory*")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["save"] == ""
    assert settings["maxmemory"] == "0"
    assert settings["maxmemory-policy"] == "noeviction"


def test_only_this_machine_and_only_with_the_password_can_reach_them(place: Path) -> None:
    with embedded(place) as servers:
        for server in servers.own():
            listening = psutil.Process(pid_of(server)).net_connections("all")
            places = {one.laddr for one in listening if one.status == psutil.CONN_LISTEN}
            assert {address.ip for address in places} == {"127.0.0.1"}
        with pytest.raises(psycopg.OperationalError):
            query(servers.database_url.replace("capataz:", "capataz:x"), "SELECT 1")
        with pytest.raises(redis.AuthenticationError):
            client(servers.redis_url.replace("//:", "//:x")).ping()


def test_passwords_are_in_no_command_line_and_in_no_readable_file(place: Path) -> None:
    with embedded(place) as servers:
        arguments = [" ".join(psutil.Process(pid_of(server)).cmdline()) for server in servers.own()]
        passwords = [server.password for server in servers.own()]
    assert not any(password in text for password in passwords for text in arguments)
    for name in ("postgres-password", "redis-password"):
        assert stat.S_IMODE((place / "secrets" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((place / "redis" / "redis.conf").stat().st_mode) == 0o600


def test_data_and_addresses_outlive_a_restart(place: Path) -> None:
    with embedded(place) as servers:
        query(servers.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        client(servers.redis_url).set("kept", "42")
        before = servers.database_url, servers.redis_url
    with embedded(place) as servers:
        assert query(servers.database_url, "SELECT answer FROM kept") == [(42,)]
        assert client(servers.redis_url).get("kept") == "42"
        assert (servers.database_url, servers.redis_url) == before


def test_a_port_that_was_taken_meanwhile_is_given_up(place: Path) -> None:
    first = Keepsakes(place).port("redis-port")
    assert first in PORTS
    with embedded(place) as servers:
        assert servers.redis is not None
        assert servers.redis.port == first
        assert not is_free("127.0.0.1", first)
        assert Keepsakes(place).port("redis-port") != first


def test_servers_that_were_killed_start_again_with_their_data(place: Path) -> None:
    with embedded(place) as servers:
        query(servers.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        client(servers.redis_url).set("kept", "42")
        assert client(servers.redis_url).waitaof(1, 0, 0) == [1, 0]
        for server in servers.own():
            server.kill()
            restart(server)
        assert query(servers.database_url, "SELECT answer FROM kept") == [(42,)]
        assert client(servers.redis_url).get("kept") == "42"


def test_a_lock_file_with_the_pid_of_somebody_else_does_not_prevent_a_start(place: Path) -> None:
    with embedded(place) as servers:
        postgres = servers.postgres
        assert postgres is not None
        postgres.kill()
        lock = postgres.data / "postmaster.pid"
        lines = lock.read_text().splitlines()
        with subprocess.Popen(["sleep", "600"]) as stranger:
            lock.write_text("\n".join([str(stranger.pid), *lines[1:]]))
            restart(postgres)
            assert stranger.poll() is None
            stranger.kill()
        assert query(servers.database_url, "SELECT 1") == [(1,)]


def test_an_interrupted_first_start_is_begun_anew(place: Path) -> None:
    half_made = place / "postgres" / "data.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("1\n")
    with embedded(place) as servers:
        assert query(servers.database_url, "SELECT 1") == [(1,)]


def test_a_lost_password_is_replaced(place: Path) -> None:
    with embedded(place) as servers:
        query(servers.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        before = servers.database_url
    (place / "secrets" / "postgres-password").unlink()
    with embedded(place) as servers:
        assert servers.database_url != before
        assert query(servers.database_url, "SELECT answer FROM kept") == [(42,)]


def test_a_long_path_is_no_obstacle(place: Path) -> None:
    with embedded(place / ("long" * 20) / ("path" * 20)) as servers:
        assert query(servers.database_url, "SELECT 1") == [(1,)]
        assert client(servers.redis_url).ping()


def test_a_path_with_spaces_and_quotes_is_no_obstacle(place: Path) -> None:
    with embedded(place / 'it\'s a "home" $HOME') as servers:
        assert query(servers.database_url, "SELECT 1") == [(1,)]
        assert client(servers.redis_url).ping()


def test_a_home_that_is_hidden_from_other_users_works(private_place: Path) -> None:
    with embedded(private_place) as servers:
        query(servers.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with embedded(private_place) as servers:
        assert query(servers.database_url, "SELECT answer FROM kept") == [(42,)]


def test_data_that_has_gone_from_its_place_is_not_replaced_by_an_empty_database(place: Path) -> None:
    (place / "postgres").symlink_to(place / "an-unmounted-disk")
    with pytest.raises(StartFailed, match="an-unmounted-disk"), embedded(place):
        pass


def test_a_temporary_home_is_removed() -> None:
    with embedded() as servers:
        assert query(servers.database_url, "SELECT 1") == [(1,)]
        temporary = servers.home
        data = (temporary / "postgres").resolve()
    assert not temporary.exists()
    assert not data.exists()


def test_servers_that_the_environment_names_are_not_started(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/x")
    with embedded(place) as servers:
        assert servers.postgres is None
        assert servers.database_url == "postgresql://elsewhere/x"
        assert client(servers.redis_url).ping()
    assert not (place / "postgres").exists()


def start_owner(place: Path) -> tuple[subprocess.Popen[str], list[int]]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(place)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 2
    return owner, pids


def test_servers_die_with_the_process_that_started_them(place: Path) -> None:
    owner, pids = start_owner(place)
    everyone = [pid for server in pids for pid in family(server)]
    with owner:
        owner.kill()
    assert eventually(lambda: all(is_gone(pid) for pid in everyone), PATIENCE)


def test_a_start_right_after_the_owner_was_killed_succeeds(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, pids = start_owner(place)
    # They cannot follow their owner until they may run again: the next start finds them alive.
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with owner:
        owner.kill()
    try:
        monkeypatch.setattr(orphans, "ORPHANS_WITHIN", 1)
        with embedded(place) as servers:
            assert query(servers.database_url, "SELECT 1") == [(1,)]
            assert client(servers.redis_url).ping()
            assert all(is_gone(pid) for pid in pids)
    finally:
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_second_start_says_who_holds_the_home_and_harms_nothing(place: Path) -> None:
    with embedded(place) as servers:
        second = subprocess.run(
            [sys.executable, "-c", OWNER, str(place)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert second.returncode != 0
        assert f"in use by process {os.getpid()}" in second.stderr
        assert query(servers.database_url, "SELECT 1") == [(1,)]
        assert client(servers.redis_url).ping()
        with pytest.raises(HomeInUse, match=str(os.getpid())), embedded(place):
            pass


def test_the_home_is_free_again_after_a_failed_start(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(binaries.REDIS_SERVER, "/nowhere/redis-server")
    with pytest.raises(StartFailed, match="REDIS_URL"), embedded(place):
        pass
    monkeypatch.delenv(binaries.REDIS_SERVER)
    with embedded(place) as servers:
        assert client(servers.redis_url).ping()


def test_a_server_that_does_not_start_says_why(place: Path) -> None:
    with embedded(place) as servers:
        postgres = servers.postgres
        assert postgres is not None
        postgres.stop()
        control = postgres.data / "global" / "pg_control"
        control.rename(control.with_suffix(".away"))
        postgres.start()
        with pytest.raises(StartFailed, match="pg_control"):
            postgres.wait_until_ready()


def test_servers_start_with_no_home_directory_no_language_and_no_input(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    closed = f'exec {sys.executable} -c "$1" "$2" <&-'
    owner = subprocess.Popen(["sh", "-c", closed, "sh", OWNER, str(place)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 2
        owner.kill()
    assert eventually(lambda: all(is_gone(pid) for pid in pids), PATIENCE)


def reachable_binaries() -> PostgresBinaries:
    return find_postgres(unprivileged_account(Path("/nowhere")))


def test_a_postgres_that_is_too_old_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachable_binaries().major >= 15
    monkeypatch.setattr(binaries, "OLDEST_POSTGRES", 1000)
    with pytest.raises(StartFailed, match="DATABASE_URL"):
        reachable_binaries()


def test_data_is_only_opened_by_the_version_that_made_it(place: Path) -> None:
    with embedded(place):
        pass
    data = Postgres(place).data
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(StartFailed, match="version 9"), embedded(place):
        pass


def test_binaries_that_are_hidden_from_postgres_user_are_copied_to_where_it_can_run_them(
    place: Path, private_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = private_place / "wheel" / "pginstall" / "bin"
    hidden.mkdir(parents=True)
    (private_place / "wheel.libs").mkdir()
    for name in ("postgres", "initdb"):
        (hidden / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.1'\n")
        (hidden / name).chmod(0o700)
    monkeypatch.setattr(
        binaries, "_installations", lambda: binaries._installation(hidden, site=private_place)
    )
    monkeypatch.setattr(binaries, "FOR_COPIES", (str(place / "cache"),))
    stranger = Account("stranger", uid=os.getuid() + 54321, gid=os.getgid() + 54321)

    found = find_postgres(stranger)

    assert found.major == 18
    assert not stranger.can_reach(hidden)
    assert stranger.can_reach(found.postgres)
    assert found.postgres.stat().st_mode & 0o555 == 0o555
    assert stranger.can_reach(found.directory.parents[2] / "wheel.libs")
    assert find_postgres(stranger) == found


def test_the_wheels_are_enough(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """No server installed on the machine: those that came with our dependencies serve."""
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr(binaries, "DISTRIBUTION", place)
    assert "site-packages" in str(find_redis())
    with embedded(place / "home") as servers:
        assert query(servers.database_url, "SELECT 1") == [(1,)]
        version = query(servers.database_url, "SELECT current_setting('server_version_num')::int / 10000")
        assert version == [(18,)]
