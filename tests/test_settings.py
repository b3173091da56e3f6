"""Settings: the names that people know are honoured, and a senseless value stops the start with a word."""

import os
import subprocess
import sys

import pytest
from environs import Env, EnvError

from capataz import servers
from tests.processes import ROOT

SERVERS = ("DATABASE_URL", "REDIS_URL", *servers.PARTS)


def start(tmp_path, **environment):
    """What becomes of a process of the platform with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAPATAZ", "APP_ENV"))}
    kept = {name: value for name, value in kept.items() if name not in SERVERS}
    return subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**kept, "CAPATAZ_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def env(monkeypatch, tmp_path):
    """An environment without servers."""
    for name in SERVERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAPATAZ_HOME", str(tmp_path))
    return Env()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"NODE_ENV": "banana"}, "use development, production or test"),
        ({"APP_ENV": "banana", "NODE_ENV": "production"}, "use development, production or test"),
        ({"LOG_LEVEL": "loud"}, "use error, warn, info or debug"),
        (
            {"PORT": "99999"},
            "PORT='99999': Must be greater than or equal to 1 and less than or equal to 65535.",
        ),
        ({"MAX_CONCURRENT_JOBS": "0"}, "MAX_CONCURRENT_JOBS='0': Must be"),
        ({"MAX_RETRIES": "many", "RETRY_DELAY": "-1"}, "MAX_RETRIES='many': Not a valid"),
        ({"MAX_RETRIES": "many", "RETRY_DELAY": "-1"}, "; RETRY_DELAY='-1': Must be"),
        ({"DB_HOST": "db", "DB_PORT": "abc"}, "DB_PORT must be a number from 1 to 65535"),
        ({"REDIS_HOST": "redis", "REDIS_PORT": "0"}, "REDIS_PORT must be a number from 1 to 65535"),
        ({"REDIS_URL": "redis://127.0.0.1:99999/0"}, "REDIS_URL must be a number from 1 to 65535"),
        ({"REDIS_URL": "http://127.0.0.1"}, "REDIS_URL must start with redis:// or rediss://"),
        ({"DATABASE_URL": "postgres:/x y"}, "DATABASE_URL is not a PostgreSQL URL or DSN"),
        (
            {"REDIS_URL": "redis://one:6379/0", "REDIS_HOST": "other"},
            "REDIS_URL and REDIS_HOST contradict each other",
        ),
        (
            {"REDIS_URL": "redis://:a@one:6379/0", "REDIS_PASSWORD": "b"},
            "REDIS_URL and REDIS_PASSWORD contradict each other",
        ),
        (
            {"REDIS_URL": "redis://one:6379/0", "REDIS_PASSWORD": "b"},
            "REDIS_URL and REDIS_PASSWORD contradict each other",
        ),
        (
            {"DATABASE_URL": "postgresql://u@db/x", "DB_PASSWORD": "b"},
            "DATABASE_URL and DB_PASSWORD contradict each other",
        ),
        ({"DATABASE_URL": "postgresql://u@db/x", "DB_PORT": "5433"}, "DATABASE_URL and DB_PORT contradict"),
        ({"CAPATAZ_HEARTBEAT_SECONDS": "10"}, "CAPATAZ_HEARTBEAT_SECONDS must fit twice into"),
        ({"CAPATAZ_HANDLERS": "nope.mod"}, "CAPATAZ_HANDLERS names 'nope.mod': there is no module 'nope'"),
        ({"EXTERNAL_GITHUB_REPOSITORIES": "a/b, c"}, "c is not a repository: write owner/name"),
        ({"EXTERNAL_SLACK_CHANNELS": "general", "SLACK_TOKEN": "x"}, "general is not the id of a channel"),
        ({"EXTERNAL_SLACK_CHANNELS": "C01"}, "EXTERNAL_SLACK_CHANNELS needs SLACK_TOKEN"),
        ({"CAPATAZ_HANDLERS": "tasks.nope"}, "there is no module 'tasks.nope'"),
    ],
)
def test_a_senseless_value_stops_the_start_with_a_word(tmp_path, environment, says):
    done = start(tmp_path, **environment)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_senseless_value_that_may_hold_a_secret_is_not_quoted(tmp_path):
    faulty = {"GITHUB_TOKEN": "ghp hunter2", "SLACK_API_URL": "https://me:hunter2@slack.example"}
    done = start(tmp_path, **faulty)
    assert "GITHUB_TOKEN: use the token alone" in done.stderr
    assert "SLACK_API_URL: must not have a login" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_handler_that_makes_no_sense_stops_the_start_with_a_word(tmp_path):
    code = 'from capataz.handlers import handler\n@handler("Bad Name")\ndef work(task, payload): ...\n'
    (tmp_path / "faulty.py").write_text(code)
    done = start(tmp_path, CAPATAZ_HANDLERS="faulty", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert "a handler in 'faulty': handler name 'Bad Name' must match" in done.stderr


def test_a_fault_inside_a_module_of_handlers_is_told_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    done = start(tmp_path, CAPATAZ_HANDLERS="broken", PYTHONPATH=str(tmp_path))
    assert "Traceback" not in done.stderr
    assert f"No module named 'no_such_library' ({tmp_path}/broken.py, line 1)" in done.stderr


def test_sound_values_start(tmp_path):
    done = start(
        tmp_path,
        NODE_ENV="production",
        LOG_LEVEL="warn",
        MAX_CONCURRENT_JOBS="7",
        MAX_RETRIES="0",
        EXTERNAL_GITHUB_REPOSITORIES="ana/one, ana/two.js",
        EXTERNAL_SLACK_CHANNELS="C0123456789",
        SLACK_TOKEN="xoxb-1",
        GITHUB_API_URL="https://github.example/api/v3/",
    )
    assert done.returncode == 0, done.stderr


def test_the_names_of_the_database_make_its_dsn(env, monkeypatch):
    for name, value in {"HOST": "db", "PORT": "5433", "NAME": "q", "USER": "u", "PASSWORD": "p w"}.items():
        monkeypatch.setenv(f"DB_{name}", value)
    found = servers.django_database(servers.database_url(env))
    assert {name: found[name] for name in ("HOST", "PORT", "NAME", "USER", "PASSWORD")} == {
        "HOST": "db",
        "PORT": "5433",
        "NAME": "q",
        "USER": "u",
        "PASSWORD": "p w",
    }


def test_the_names_of_redis_make_its_url(env, monkeypatch):
    monkeypatch.setenv("REDIS_HOST", "redis")
    assert servers.redis_url(env) == "redis://redis:6379/0"
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss:word")
    monkeypatch.setenv("REDIS_PORT", "6380")
    assert servers.redis_url(env) == "redis://:p%40ss%3Aword@redis:6380/0"


def test_the_url_wins_where_both_agree(env, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://one:6380/3")
    monkeypatch.setenv("REDIS_HOST", "one")
    monkeypatch.setenv("REDIS_PORT", "6380")
    assert servers.redis_url(env) == "redis://one:6380/3"
    monkeypatch.setenv("REDIS_PORT", "6381")
    with pytest.raises(EnvError, match="contradict"):
        servers.redis_url(env)


def test_without_any_there_is_no_server(env):
    assert (servers.database_url(env), servers.redis_url(env)) == (None, None)
