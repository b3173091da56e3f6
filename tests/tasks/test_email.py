"""E-mail goes over real SMTP, and arrives as it was meant or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import smtplib
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pytest_django import Settings

from capataz.errors import Discard
from capataz.handlers import RunningTask
from capataz.services.smtp_sink import SmtpSink
from tasks import email as emails

Answers = dict[str, str]


class FussySink(SmtpSink):
    """A sink that answers some recipients, or the message itself (""), as it is told."""

    answers: Answers

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address in self.answers:
            return self.answers[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return self.answers.get("") or await super().handle_DATA(server, session, envelope)


@pytest.fixture
def sink(settings: Settings, tmp_path: Path) -> Iterator[FussySink]:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST = "127.0.0.1"
    settings.EMAIL_HOST_USER = settings.EMAIL_HOST_PASSWORD = ""
    settings.EMAIL_USE_TLS = False
    settings.DEFAULT_FROM_EMAIL = "Capataz <no-reply@capataz.example>"
    settings.UPLOAD_ROOT = tmp_path / "uploads"
    settings.UPLOAD_ROOT.mkdir()
    sink = FussySink(tmp_path / "mail")
    sink.answers = {}
    sink.start()
    settings.EMAIL_PORT = sink.port
    yield sink
    sink.stop()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


def send(id: uuid.UUID | None = None, **data: Any) -> dict[str, Any]:
    message = {"to": ["ana@example.com"], "subject": "Hi", "body": "Text"} | data
    task = RunningTask(id or uuid.uuid4(), "email_notification", attempt=1, starts=1)
    result: dict[str, Any] = emails.send.function(task, emails.send.payload.validate_python(message))
    return result


def only(sink: SmtpSink) -> EmailMessage:
    (message,) = sink.messages()
    return message


def text_of(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


def test_the_seed_sample_arrives_with_its_attachment(sink: SmtpSink, uploads: Path) -> None:
    content = b"%PDF-1.4\n" + os.urandom(5_000)
    (uploads / "file1.pdf").write_bytes(content)
    result = send(
        to=["recipient@example.com"],
        subject="Subject line",
        body="Email content",
        template="welcome",
        attachments=["file1.pdf"],
    )
    message = only(sink)
    assert message["To"] == "recipient@example.com"
    assert message["X-RcptTo"] == "recipient@example.com"
    assert message["X-MailFrom"] == "no-reply@capataz.example"
    assert message["Subject"] == "Subject line"
    assert "Email content" in text_of(message, "plain") and "Email content" in text_of(message, "html")
    (attachment,) = message.iter_attachments()
    assert attachment.get_filename() == "file1.pdf"
    assert attachment.get_content_type() == "application/pdf"
    assert hashlib.sha256(attachment.get_content()).digest() == hashlib.sha256(content).digest()
    assert result == {"messageId": message["Message-ID"], "accepted": 1, "refused": []}


def test_any_language_arrives(sink: SmtpSink) -> None:
    send(subject="Añadido al pool: 李小龍 👷", body="Ñandú\n.\n..\nfin", html="<p>Ñ</p>")
    message = only(sink)
    assert message["Subject"] == "Añadido al pool: 李小龍 👷"
    assert text_of(message, "plain").splitlines() == ["Ñandú", ".", "..", "fin"]
    assert text_of(message, "html").strip() == "<p>Ñ</p>"


def test_blind_copies_are_delivered_and_not_shown(sink: SmtpSink) -> None:
    result = send(cc=["c@example.com"], bcc=["secret@example.com"])
    message = only(sink)
    assert message["X-RcptTo"] == "ana@example.com, c@example.com, secret@example.com"
    assert message["Cc"] == "c@example.com"
    assert "secret@example.com" not in message.as_string().split("\n\n")[0].replace(message["X-RcptTo"], "")
    assert result["accepted"] == 3


@pytest.mark.parametrize("name", ["data.csv", "ñandú 李.txt", 'a;b"c.html', "x.eml", "noext", "-rf.tar.gz"])
def test_every_byte_of_an_attachment_arrives(sink: SmtpSink, uploads: Path, name: str) -> None:
    content = b"a,b\r\n1,2\n\xff\xfe\r.\n\0\nFrom x\n"
    (uploads / name).write_bytes(content)
    send(attachments=[f"/uploads/{name}"])
    (attachment,) = only(sink).iter_attachments()
    assert attachment.get_filename() == name
    assert attachment.get_payload(decode=True) == content


def test_the_message_id_is_the_same_at_every_attempt(sink: SmtpSink) -> None:
    task = uuid.uuid4()
    send(task)
    send(task)
    send()
    ids = [message["Message-ID"] for message in sink.messages()]
    assert ids[0] == ids[1] == f"<{task}@capataz.example>" != ids[2]


def test_a_template_escapes_html_and_only_there(sink: SmtpSink) -> None:
    send(subject="", body="", template="welcome", context={"name": "<b>Ana & Co</b>"})
    message = only(sink)
    assert "&lt;b&gt;Ana &amp; Co&lt;/b&gt;" in text_of(message, "html")
    assert "<b>Ana & Co</b>" in text_of(message, "plain")
    assert message["Subject"] == "Welcome, <b>Ana & Co</b>"


def test_what_a_client_sends_is_never_a_template(sink: SmtpSink) -> None:
    send(subject="{{ settings.SECRET_KEY }}", body="{% debug %}{{ 7|add:7 }}", template="welcome")
    message = only(sink)
    assert message["Subject"] == "{{ settings.SECRET_KEY }}"
    assert "{% debug %}{{ 7|add:7 }}" in text_of(message, "plain")


@pytest.mark.parametrize("break_", ["\n", "\r", "\r\n", "\u2028", "\0", "\x85"])
def test_a_line_break_never_becomes_a_header(sink: SmtpSink, break_: str) -> None:
    with pytest.raises(ValidationError):
        send(subject=f"Hi{break_}Bcc: eve@example.com")
    with pytest.raises(ValidationError):
        send(to=[f"ana@example.com{break_}Bcc: eve@example.com"])
    with pytest.raises(Discard):
        send(
            attachments=["file.txt"],
            subject="",
            template="welcome",
            context={"name": f"A{break_}Bcc: e@x.example"},
        )
    assert sink.messages() == []


@pytest.mark.parametrize(
    "change",
    [
        {"to": []},
        {"to": ["not an address"]},
        {"to": ["ñ@example.com"]},
        {"to": [f"a{number}@example.com" for number in range(51)]},
        {"to": ["a@example.com"] * 30, "bcc": ["b@example.com"] * 21},
        {"to": ["a@example.com"] * 10_000},
        {"subject": ""},
        {"body": ""},
        {"template": "missing"},
        {"template": "../../settings"},
        {"template": "welcome", "html": "<p>"},
        {"attachments": ["../secret"]},
        {"attachments": ["/data/file.csv"]},
        {"attachments": ["/etc/passwd"]},
        {"attachments": ["a"] * 11},
        {"from": "boss@example.com"},
    ],
)
def test_a_message_that_makes_no_sense_is_refused_at_submission(change: dict[str, Any]) -> None:
    good = {"to": ["ana@example.com"], "subject": "Hi", "body": "Text"}
    emails.send.payload.validate_python(good)
    with pytest.raises(ValidationError):
        emails.send.payload.validate_python(good | change)


def test_attachments_are_bounded_together_and_never_links(
    sink: SmtpSink, uploads: Path, tmp_path: Path
) -> None:
    (uploads / "big").write_bytes(b"x" * (emails.LARGEST_ATTACHMENTS // 2 + 1))
    (tmp_path / "secret").write_text("secret")
    (uploads / "link").symlink_to(tmp_path / "secret")
    for paths in (["big", "big"], ["link"]):
        with pytest.raises(Discard):
            send(attachments=paths)
    with pytest.raises(FileNotFoundError):
        send(attachments=["later.pdf"])
    assert sink.messages() == []


def test_international_domains_are_sent_in_ascii(sink: SmtpSink) -> None:
    send(to=["ana@bücher.example"])
    assert only(sink)["X-RcptTo"] == "ana@xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({"": "451 later"}, smtplib.SMTPDataError),
        ({"": "554 never"}, Discard),
        ({"ana@example.com": "450 later"}, smtplib.SMTPRecipientsRefused),
        ({"ana@example.com": "550 nobody"}, Discard),
        ({"ana@example.com": "550 nobody", "b@example.com": "450 later"}, smtplib.SMTPRecipientsRefused),
        ({"ana@example.com": "550 nobody", "b@example.com": "550 nobody"}, Discard),
    ],
)
def test_a_refusal_for_good_is_discarded_and_one_for_now_is_not(
    sink: FussySink, answers: Answers, error: type[Exception]
) -> None:
    sink.answers = answers
    with pytest.raises(error):
        send(cc=["b@example.com"] if "b@example.com" in answers else [])


def test_recipients_refused_while_others_are_accepted_are_in_the_result(sink: FussySink) -> None:
    sink.answers = {"b@example.com": "550 nobody here"}
    result = send(cc=["b@example.com"])
    assert result["accepted"] == 1
    assert result["refused"] == [{"address": "b@example.com", "code": 550, "reason": "nobody here"}]


def test_a_server_that_is_away_is_tried_again(sink: SmtpSink, settings: Settings) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and kept, so that nobody else listens there meanwhile
        settings.EMAIL_PORT = silent.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            send()


def test_only_allowed_domains_are_written_to(sink: SmtpSink, settings: Settings) -> None:
    settings.EMAIL_ALLOWED_DOMAINS = ["example.com"]
    send()
    with pytest.raises(Discard, match=r"elsewhere\.example"):
        send(bcc=["x@elsewhere.example"])
    assert len(sink.messages()) == 1


def test_the_command_receives_until_it_is_told_to_stop(
    tmp_path: Path, settings: Settings, wait_for_line: Callable[[Any, str], str]
) -> None:
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "mail")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CAPATAZ_HOME": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        port = int(wait_for_line(process.stdout, "SMTP on").split(",")[0].rpartition(":")[2])
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: one\r\n\r\ntext\r\n")
        assert "'one'" in wait_for_line(process.stdout, "1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert [message["Subject"] for message in SmtpSink(tmp_path / "mail").messages()] == ["one"]


COMMAND = """
import sys
from django.core.management import call_command
from capataz.management.commands.smtp_sink import Command
call_command(Command(), port=0, folder=__import__("pathlib").Path(sys.argv[1]))
"""


@pytest.fixture
def wait_for_line() -> Callable[[Any, str], str]:
    def wait(stream: Any, start: str) -> str:
        for line in stream:
            if line.startswith(start):
                return str(line)
        raise AssertionError(f"no line starts with {start!r}")

    return wait
