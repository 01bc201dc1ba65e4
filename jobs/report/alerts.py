"""Tells people about a day: a message for Slack, Teams or any webhook, and an e-mail, through section ``[alerts]``.

A message is sent at least once and, as a rule, only once: the file ``alert.json`` beside the report holds the hash of
the last message that was delivered. A kill between delivery and that file sends the message again.
"""

from __future__ import annotations

import hashlib
import json
import smtplib
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from datetime import date
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from jobs.config.sections import AlertsSection, Deployment
from jobs.report.summary import Report, report_text
from jobs.runtime.pages import report_page
from jobs.runtime.text import printable
from lte_models.files import write_atomically

SECONDS = 10.0
SENT = "alert.json"


class AlertError(RuntimeError):
    """A message was not delivered; the text names the way and never the address, which is secret."""


def sent_file(deployment: Deployment, ds: date) -> Path:
    """File with the hash of the last message that was delivered by each way."""
    return report_page(deployment, ds).with_name(SENT)


def send(deployment: Deployment, report: Report) -> list[str]:
    """Send the message of a report by every configured way that has not delivered the same message yet.

    Args:
        deployment: Section ``alerts`` has the ways, and when to use them.
        report: The report.

    Returns:
        The ways that delivered: "webhook", "e-mail".

    Raises:
        AlertError: A way did not deliver; the other ways were tried.
    """
    settings = deployment.alerts
    if settings.when == "alarm" and not report.alarms:
        return []
    text = printable_lines(report_text(report, _address(deployment, report.ds)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    delivered = _delivered(sent_file(deployment, report.ds))
    done, failed = [], []
    for way, deliver in _ways(settings).items():
        if delivered.get(way) == digest:
            continue
        try:
            deliver(_title(report), text)
        except (OSError, smtplib.SMTPException) as error:
            failed.append(f"{way}: {type(error).__name__}")
            continue
        delivered[way] = digest
        done.append(way)
        write_atomically(sent_file(deployment, report.ds), json.dumps(delivered, indent=2))
    if failed:
        raise AlertError(f"ds={report.ds}: the message was not delivered by {'; '.join(failed)}")
    return done


def _address(deployment: Deployment, ds: date) -> str:
    """Where a reader of the message finds the page."""
    page, base = report_page(deployment, ds), deployment.alerts.page_url
    return f"{base.rstrip('/')}/{page.parent.name}/{page.name}" if base else str(page)


def printable_lines(text: str) -> str:
    """The text without characters that a reader would not see; error texts come from files."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _title(report: Report) -> str:
    return printable(f"{report.deployment} {report.ds}: {report.verdict.text}")


def _delivered(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ways(settings: AlertsSection) -> dict[str, Callable[[str, str], None]]:
    ways: dict[str, Callable[[str, str], None]] = {}
    if settings.webhook:
        ways["webhook"] = lambda title, text: _post(settings, title, text)
    if settings.email_to:
        ways["e-mail"] = lambda title, text: _mail(settings, title, text)
    return ways


def _post(settings: AlertsSection, title: str, text: str) -> None:
    body = json.dumps(message(settings.format, title, text)).encode()
    headers = {"Content-Type": "application/json"}
    # The section has checked the scheme: https, or http of this machine.
    request = urllib.request.Request(settings.webhook, body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310
        return  # a status of 400 or more is an HTTPError, which is an OSError


def message(form: str, title: str, text: str) -> Mapping[str, Any]:
    """The body of a webhook.

    Args:
        form: "slack" (also Mattermost and Rocket.Chat), "teams" (Workflows: an Adaptive Card) or "json" (title, text).
        title: One line.
        text: The report in 20 lines.
    """
    if form == "slack":
        escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")
        return {"text": f"```{escaped}```"}
    if form == "teams":
        blocks = [
            {"type": "TextBlock", "text": title, "weight": "bolder", "wrap": True},
            {"type": "TextBlock", "text": text.replace("\n", "\n\n"), "fontType": "monospace", "wrap": True},
        ]
        card = {"type": "AdaptiveCard", "version": "1.4", "body": blocks}
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return {"type": "message", "attachments": [attachment]}
    return {"title": title, "text": text}


def _mail(settings: AlertsSection, title: str, text: str) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = title, settings.email_from, ", ".join(settings.email_to)
    mail.set_content(text)
    with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=SECONDS) as server:
        if settings.smtp_tls:
            server.starttls(context=ssl.create_default_context())
        if settings.smtp_username:
            server.login(settings.smtp_username, settings.smtp_password)
        server.send_message(mail)
