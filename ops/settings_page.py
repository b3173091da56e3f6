"""Write docs/configuration.md from settings.py and its comments, or check that it is up to date.

Units, the allowed range and the default are read from the code, the reason from the comment above it. What
the code cannot say about itself is said here, in ``WORDS``.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "platform" / "capataz" / "settings.py"
SERVERS = ROOT / "platform" / "capataz" / "servers.py"
PAGE = ROOT / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

Every setting is read once, from the environment or from a file `.env` in the checkout; the environment wins.
A value that makes no sense stops the start, with a message that names the setting. `.env.example` shows the
ones that an installation usually sets.

This page is written by `make docs` from `platform/capataz/settings.py`. `make check` fails if the two differ.
"""

# Read before settings.py or outside it, so described here. Each: name, unit, default, reason.
FIRST = [
    (
        "CAPATAZ_HOME",
        "path",
        "`.capataz` in the checkout",
        "The data directory: embedded servers, uploads, outputs, logs. A command that is typed by hand "
        "joins the platform that runs in it.",
    ),
    (
        "DATABASE_URL",
        "URL or DSN",
        "the running platform's",
        "The PostgreSQL to use, version 15 or later. Unset, `manage.py up` starts one of its own.",
    ),
    (
        "DB_HOST, DB_PORT, DB_NAME, DB_USER, DB_PASSWORD",
        "text",
        "`queue_system` and `postgres` for name and user",
        "The same in parts; only looked at with a DB_HOST. A contradiction to DATABASE_URL stops the start.",
    ),
    (
        "REDIS_URL",
        "redis:// or rediss:// URL",
        "the running platform's",
        "The Redis to use as broker, version 7 or later. Unset, `manage.py up` starts one of its own.",
    ),
    (
        "REDIS_HOST, REDIS_PORT, REDIS_PASSWORD",
        "text",
        "port 6379",
        "The same in parts; only looked at with a REDIS_HOST. A contradiction to REDIS_URL stops the start.",
    ),
    (
        "CAPATAZ_POSTGRES_BIN",
        "path",
        "found by itself",
        "The directory of `postgres` and `initdb` that `manage.py up` is to use.",
    ),
    (
        "CAPATAZ_REDIS_SERVER",
        "path",
        "found by itself",
        "The `redis-server` or `valkey-server` program that `manage.py up` is to use.",
    ),
]

# Reasons for settings that have no comment of their own.
WORDS = {
    "MAX_CONCURRENT_JOBS": "Counts only where it is set; without it, a worker of `manage.py up` has 2 to 10.",
    "APP_ENV": "What kind of installation this is.",
    "NODE_ENV": "Another name for APP_ENV, which wins.",
    "LOG_LEVEL": "How much the platform and its handlers say on the console.",
    "PORT": "Where the web process listens when `manage.py up` or `make web` starts it.",
    "CAPATAZ_KEEP_SUCCEEDED_DAYS": "Succeeded tasks are kept for a week, then pruned.",
    "CAPATAZ_KEEP_DEAD_DAYS": "Dead letters wait for a person, so they are kept for a quarter.",
    "CAPATAZ_KEEP_CANCELLED_DAYS": "A month, in which somebody may ask why.",
    "CAPATAZ_KEEP_EXPIRED_DAYS": "A month, in which somebody may ask why.",
    "ALLOWED_HOSTS": "The host names by which the web process may be addressed.",
    "CSRF_TRUSTED_ORIGINS": "Origins, with scheme, from which forms may be sent through a proxy.",
    "ENCRYPTION_KEYS": "Keys for [sensitive values](sensitive-values.md), `id:base64` each: the first one "
    "encrypts, all decrypt. Unset, one is made on first use and kept in `encryption-key` in the data "
    "directory, but not in production.",
    "SECRET_KEY": "Signs sessions. Unset, one is made on first use and kept in `secret-key` in the data "
    "directory; set it where several machines serve the web.",
    "EMAIL_HOST": "The SMTP server of the `email_notification` handler.",
    "EMAIL_PORT": "Its port. The default is that of `manage.py smtp_sink`, which keeps messages as files.",
    "EMAIL_USER": "The SMTP login; empty for none.",
    "EMAIL_PASSWORD": "The password of the SMTP login.",
    "EMAIL_USE_TLS": "Whether to ask the SMTP server for STARTTLS.",
    "DEFAULT_FROM_EMAIL": "The sender of messages.",
    "EMAIL_ALLOWED_DOMAINS": "Recipients outside these domains are refused; empty: mail may go anywhere.",
}

UNITS = {
    "MAX_RETRIES": "retries",
    "RETRY_DELAY": "milliseconds",
    "CAPATAZ_MAX_PAYLOAD": "bytes",
    "CAPATAZ_MAX_RESULT": "bytes",
    "CAPATAZ_WINDOW": "multiple of the slots",
    "CAPATAZ_BUNDLE_TASKS": "tasks",
    "CAPATAZ_MAX_LOSSES": "deaths",
    "CAPATAZ_MAX_WORKER_LOSSES": "deaths",
    "CAPATAZ_LOOKS_WITH_FREE_LOCK": "looks, one a second",
    "CAPATAZ_LOOKS_WITHOUT_BEAT": "looks, one a second",
    "MAX_CONCURRENT_JOBS": "children",
    "PORT": "TCP port",
    "GITHUB_API_URL": "URL",
    "SLACK_API_URL": "URL",
    "EMAIL_PORT": "TCP port",
}
KINDS = {
    "str": "text",
    "bool": "true or false",
    "list": "list, with commas",
    "path": "path",
    "int": "number",
    "json": "JSON",
}

DEFAULTS = {
    "APP_ENV != 'production'": "true, but false in production",
    "env.str('NODE_ENV', 'development')": "`NODE_ENV`, else `development`",
    "_failure_threshold": "`failureThreshold`, else `5`",
    "_call_timeout": "`timeout`, else `30000`",
    "_reset_timeout": "`resetTimeout`, else `60000`",
}


@dataclass
class Setting:
    """One name in the environment."""

    name: str
    kind: str
    default: str
    allowed: str

    @property
    def unit(self) -> str:
        """What its number counts, or what else it is."""
        if self.name in UNITS:
            return UNITS[self.name]
        for unit in ("SECONDS", "DAYS"):
            if self.name.endswith(unit):
                return unit.lower()
        return KINDS.get(self.kind, "number")


@dataclass
class Group:
    """Settings under one comment."""

    section: str
    comment: str
    settings: list[Setting] = field(default_factory=list)


def page() -> str:
    """The whole page. Raises SystemExit naming every setting that nothing describes."""
    source = SOURCE.read_text()
    groups = list(_groups(source))
    _refuse_gaps(groups)
    parts = [INTRODUCTION, "\n## Where the servers are\n\n", _first_table()]
    section = ""
    for group in groups:
        if group.section != section:
            section = group.section
            parts.append(f"\n## {section}\n")
        if group.comment:
            parts.append(f"\n{group.comment}\n")
        parts.append("\n" + _table(group))
    return "".join(parts)


def names() -> set[str]:
    """Every name that settings.py, servers.py and home.py read from the environment."""
    found = {setting.name for group in _groups(SOURCE.read_text()) for setting in group.settings}
    found |= set(re.findall(r'env\.str\("([A-Z_]+)"', SOURCE.read_text() + SERVERS.read_text()))
    return found | {name for row in FIRST for name in row[0].split(", ")}


def _groups(source: str) -> Iterator[Group]:
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.start[1] == 0
    }
    section, group, last_line = "", Group("", ""), 0
    for node in ast.parse(source).body:
        heading = [comments[line] for line in range(last_line + 1, node.lineno) if line in comments]
        titles = [text.strip("- ") for text in heading if text.endswith("---")]
        section = titles[-1] if titles else section
        settings = list(_settings(node))
        own = [text for text in heading if not text.endswith("---")]
        if settings:
            if own or titles or not group.settings or node.lineno != last_line + 1:
                if group.settings:
                    yield group
                group = Group(section, " ".join(own))
            group.settings += settings
        elif group.settings:
            yield group
            group = Group(section, "")
        last_line = node.end_lineno or node.lineno
    if group.settings:
        yield group


def _settings(node: ast.stmt) -> Iterator[Setting]:
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
            continue
        of, name = call.func.value, call.args[0]
        if (
            isinstance(of, ast.Name)
            and of.id == "env"
            and isinstance(name, ast.Constant)
            and len(call.args) > 1
        ):
            allowed = next((_allowed(word.value) for word in call.keywords if word.arg == "validate"), "")
            yield Setting(str(name.value), call.func.attr, _default(call.args[1]), allowed)


def _default(node: ast.expr) -> str:
    text = ast.unparse(node)
    if text in DEFAULTS:
        return DEFAULTS[text]
    under_home = re.fullmatch(r"CAPATAZ_DATA_DIR / '(\w+)'", text)
    if under_home:
        return f"`{under_home[1]}` in the data directory"
    value = _value(node)
    if value is None:
        return f"`{text}`"
    if isinstance(value, list):
        value = ",".join(value)
    if isinstance(value, bool):
        value = str(value).lower()
    return f"`{value}`" if value != "" else "empty"


def _allowed(node: ast.expr) -> str:
    if not isinstance(node, ast.Call):
        return ""
    values = [_value(each) for each in node.args]
    if ast.unparse(node.func) == "Range":
        return f"{values[0]:,} to {values[1]:,}"
    if ast.unparse(node.func) == "OneOf" and isinstance(values[0], list):
        return ", ".join(values[0])
    return ""


def _value(node: ast.expr) -> object:
    """What an expression of constants comes to; None if it needs more than constants."""
    try:
        return eval(compile(ast.Expression(node), "default", "eval"), {"__builtins__": {}})
    except (NameError, AttributeError, TypeError):
        return None


def _refuse_gaps(groups: list[Group]) -> None:
    silent = [
        setting.name
        for group in groups
        for setting in group.settings
        if not group.comment and setting.name not in WORDS
    ]
    described = {setting.name for group in groups for setting in group.settings}
    silent += sorted(names() - described - {name for row in FIRST for name in row[0].split(", ")})
    if silent:
        sys.exit(
            f"give these settings a comment in settings.py, or a line in {Path(__file__).name}: {silent}"
        )


def _first_table() -> str:
    rows = [(name.replace(", ", "`, `"), unit, default, reason) for name, unit, default, reason in FIRST]
    lines = [f"| `{name}` | {unit} | {default} | {reason} |" for name, unit, default, reason in rows]
    return "\n".join(["| name | unit | default | reason |", "| --- | --- | --- | --- |", *lines]) + "\n"


def _table(group: Group) -> str:
    explained = any(setting.name in WORDS for setting in group.settings)
    head = ["name", "unit", "default", "allowed", *(["reason"] if explained else [])]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for setting in group.settings:
        cells = [f"`{setting.name}`", setting.unit, setting.default, setting.allowed]
        lines.append(f"| {' | '.join([*cells, *([WORDS.get(setting.name, '')] if explained else [])])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or with ``--check`` say whether it is up to date."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        sys.exit("docs/configuration.md is out of date: run `make docs`")


if __name__ == "__main__":
    main()
