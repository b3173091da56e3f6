"""E-mail: send a message, plain or from a template, over SMTP."""

from __future__ import annotations

import mimetypes
import smtplib
from email.encoders import encode_base64
from email.mime.base import MIMEBase
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection
from django.core.mail.backends.smtp import EmailBackend
from django.template import Context, Engine, TemplateDoesNotExist
from pydantic import AfterValidator, EmailStr, Field, JsonValue, model_validator

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import exponential
from tasks.payloads import Payload
from tasks.roots import UPLOADS, Location, contents, locate, path_under

MOST_RECIPIENTS = 50
MOST_ATTACHMENTS = 10
LARGEST_ATTACHMENTS = 20 * 1024 * 1024  # bytes, all together; common servers refuse more

TEMPLATES = Path(__file__).parent / "templates" / "email"
# An engine of its own: only these folder's templates, no loaders, libraries or context processors.
_engine = Engine(dirs=[str(TEMPLATES)])


def _one_line(text: str) -> str:
    """Refuse line breaks, by which one header becomes two."""
    if any(ord(character) < 32 or character in "\x7f\x85\u2028\u2029" for character in text):
        raise ValueError("must be one line without control characters")
    return text


def _ascii_address(address: str) -> str:
    """The address as SMTP servers everywhere accept it: the domain in its ASCII form."""
    name, _, domain = address.rpartition("@")
    if not name.isascii():
        raise ValueError("the part before the @ must be ASCII")
    return f"{name}@{domain.encode('idna').decode()}"


def _known_template(name: str) -> str:
    known = sorted(path.stem for path in TEMPLATES.glob("*.txt"))
    if name not in known:
        raise ValueError(f"there is no template {name!r}; there are: {', '.join(known)}")
    return name


Address = Annotated[EmailStr, AfterValidator(_ascii_address)]
Attachment = Annotated[str, path_under(UPLOADS)]
Addresses = Annotated[list[Address], Field(max_length=MOST_RECIPIENTS)]


class Email(Payload):
    """A message to at most 50 recipients in all.

    ``template`` names one of the shipped templates, which are given ``context``, ``subject`` and
    ``body``; without it, ``body`` is the text and ``html`` its alternative. A subject given here wins
    over the template's. Attachments are files under ``/uploads``.
    """

    to: Annotated[Addresses, Field(min_length=1)]
    cc: Addresses = Field(default_factory=list)
    bcc: Addresses = Field(default_factory=list)
    subject: Annotated[str, Field(max_length=250), AfterValidator(_one_line)] = ""
    body: Annotated[str, Field(max_length=200_000)] = ""
    html: Annotated[str, Field(max_length=200_000)] | None = None
    template: Annotated[str, Field(max_length=64), AfterValidator(_known_template)] | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)
    attachments: list[Attachment] = Field(default_factory=list, max_length=MOST_ATTACHMENTS)

    @model_validator(mode="after")
    def _is_a_message(self) -> Email:
        if len(self.recipients) > MOST_RECIPIENTS:
            raise ValueError(f"at most {MOST_RECIPIENTS} recipients in all")
        if self.template is None and not (self.subject and (self.body or self.html)):
            raise ValueError("give a template, or a subject and a body")
        if self.template is not None and self.html is not None:
            raise ValueError("give a template or html, not both")
        return self

    @property
    def recipients(self) -> list[str]:
        """Everybody who gets the message, blind copies included."""
        return [*self.to, *self.cc, *self.bcc]


@handler(
    "email_notification",
    payload=Email,
    queue="email",
    retry=exponential(base=2, cap=300, attempts=5),
    soft_time_limit=30,
    time_limit=60,
)
def send(task: RunningTask, email: Email) -> dict[str, Any]:
    """Hand the message to the SMTP server.

    The Message-ID is the task's, the same at every attempt, so that receivers can drop a duplicate.
    What the server refuses for good (5xx) is discarded, all else is tried again. If it takes some
    recipients only, the others are listed in ``refused``: trying again would reach the first ones twice.
    """
    _check_domains(email)
    message = _compose(task, email)
    task.progress(50, "composed")
    refused = _deliver(message)
    task.progress(100, "sent")
    return {
        "messageId": message.extra_headers["Message-ID"],
        "accepted": len(email.recipients) - len(refused),
        "refused": refused,
    }


def _check_domains(email: Email) -> None:
    """Keep to EMAIL_ALLOWED_DOMAINS, if that setting names any."""
    allowed = {domain.lower() for domain in settings.EMAIL_ALLOWED_DOMAINS}
    strangers = {address.rpartition("@")[2].lower() for address in email.recipients} - allowed
    if allowed and strangers:
        raise Discard(f"no e-mail is sent to {', '.join(sorted(strangers))}: see EMAIL_ALLOWED_DOMAINS")


def _compose(task: RunningTask, email: Email) -> EmailMultiAlternatives:
    subject, text, html = _words(email)
    message = EmailMultiAlternatives(
        subject=subject,
        body=text,
        to=email.to,
        cc=email.cc,
        bcc=email.bcc,
        headers={"Message-ID": f"<{task.id}@{_own_domain()}>"},
    )
    if html is not None:
        message.attach_alternative(html, "text/html")
    room = LARGEST_ATTACHMENTS
    for path in email.attachments:
        location = locate(path, UPLOADS)
        data = contents(location, limit=room)
        room -= len(data)
        message.attach(_attachment(location, data))
    return message


def _words(email: Email) -> tuple[str, str, str | None]:
    """Subject, text and HTML."""
    if email.template is None:
        return email.subject, email.body, email.html
    values = {**email.context, "subject": email.subject, "body": email.body}
    subject = email.subject or (_render(email.template, "subject", values) or "").strip()
    try:
        _one_line(subject)
    except ValueError as error:
        raise Discard(f"the subject {error}") from None
    text = _render(email.template, "txt", values) or ""
    return subject, text, _render(email.template, "html", values)


def _render(name: str, kind: str, values: dict[str, Any]) -> str | None:
    try:
        template = _engine.get_template(f"{name}.{kind}")
    except TemplateDoesNotExist:
        return None
    # Escaping is for HTML: in plain text a reader would see &amp;.
    return str(template.render(Context(values, autoescape=kind == "html")))


def _attachment(location: Location, data: bytes) -> MIMEBase:
    """A part that keeps every byte. Django's own way rewrites the line ends of text files."""
    kind = mimetypes.guess_type(location.name)[0] or "application/octet-stream"
    main, _, sub = kind.partition("/")
    part = MIMEBase(main, sub) if main != "message" else MIMEBase("application", "octet-stream")
    part.set_payload(data)
    encode_base64(part)
    name = location.name if location.name.isascii() else ("utf-8", "", location.name)
    part.add_header("Content-Disposition", "attachment", filename=name)
    return part


def _own_domain() -> str:
    return parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"


def _deliver(message: EmailMultiAlternatives) -> list[dict[str, Any]]:
    """Send, and tell which recipients were refused while others were accepted."""
    connection = get_connection()
    try:
        with connection:
            return _send(connection, message)
    except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
        raise _judged(error, [error.smtp_code]) from error
    except smtplib.SMTPRecipientsRefused as error:
        raise _judged(error, [code for code, _ in error.recipients.values()]) from error


def _send(connection: Any, message: EmailMultiAlternatives) -> list[dict[str, Any]]:
    if not isinstance(connection, EmailBackend) or connection.connection is None:
        connection.send_messages([message])
        return []
    # Not send_messages: it forgets which recipients were refused.
    content: Any = message.message()
    refused = connection.connection.sendmail(
        parseaddr(message.from_email)[1], message.recipients(), content.as_bytes(linesep="\r\n")
    )
    return [
        {"address": address, "code": code, "reason": reason.decode(errors="replace")[:200]}
        for address, (code, reason) in refused.items()
    ]


def _judged(error: smtplib.SMTPException, codes: list[int]) -> Exception:
    """What to raise: 5xx about this message will not change, 4xx may."""
    if all(500 <= code < 600 for code in codes):
        return Discard(f"the mail server refused the message: {error}")
    return error
