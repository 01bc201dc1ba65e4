"""Messages that a real HTTP server and a real mail server on this machine receive."""

from __future__ import annotations

import dataclasses
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from jobs.build_report import tell_people
from jobs.config.sections import AlertsSection, Deployment
from jobs.config.window import ConfigError
from jobs.report.alerts import AlertError, message, send
from jobs.report.facts import Step
from jobs.report.summary import summarize
from report_facts import facts


def bad_day() -> Any:
    return summarize(facts(steps=[Step("ingest", "failed", "", "bad", error="IngestError: <b> & \u202e```")]))


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", got
        server.shutdown()


def alerting(deployment: Deployment, **settings: Any) -> Deployment:
    return dataclasses.replace(deployment, alerts=AlertsSection(**settings))


def test_a_day_with_an_alarm_is_sent_once(deployment: Deployment) -> None:
    with webhook() as (address, got):
        told = alerting(deployment, webhook=address, format="json")
        assert send(told, summarize(facts())) == []  # a good day
        assert send(told, bad_day()) == ["webhook"]
        assert send(told, bad_day()) == []  # the same message, after a retry of build_report
        told = dataclasses.replace(told, alerts=dataclasses.replace(told.alerts, page_url="https://pages/"))
        other = dataclasses.replace(bad_day(), alarms=["embed_items failed"])
        assert send(told, other) == ["webhook"]
        always = alerting(deployment, webhook=address, format="json", when="always")
        assert send(always, summarize(facts())) == ["webhook"]
    assert [body["title"] for body in got] == [
        "shop 2017-01-02: Live, but incomplete: ingest failed or left nothing"
    ] * 2 + ["shop 2017-01-02: Live"]
    assert "page: https://pages/ds=2017-01-02/index.html" in got[1]["text"]
    assert "\\u202e" in got[0]["text"]  # a mark that would turn the line around is shown, not obeyed


def test_the_forms_of_slack_and_teams() -> None:
    slack = message("slack", "t", "a <b> & ```")
    assert slack == {"text": "```a &lt;b&gt; &amp; '''```"}
    teams = message("teams", "t", "a\nb")
    [card] = teams["attachments"]
    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [block["text"] for block in card["content"]["body"]] == ["t", "a\n\nb"]


def test_a_webhook_that_refuses_fails_the_command_but_not_the_day(deployment: Deployment, capsys) -> None:
    with webhook(status=500) as (address, got):
        told = alerting(deployment, webhook=address)
        with pytest.raises(AlertError, match="was not delivered by webhook: HTTPError") as error:
            send(told, bad_day())
        assert address not in str(error.value)
        tell_people(told, bad_day())
    assert len(got) == 2  # nothing was delivered, so it is tried again
    assert "build_report: WARNING: ds=2017-01-02: the message was not delivered" in capsys.readouterr().err


def test_an_e_mail(deployment: Deployment) -> None:
    lines: list[str] = []

    class Mail(socketserver.StreamRequestHandler):
        """As much of SMTP as a client without extensions needs (RFC 5321)."""

        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            is_data = False
            for raw in self.rfile:
                lines.append(raw.decode().rstrip())
                if is_data:
                    is_data = lines[-1] != "."
                    if is_data:
                        continue
                word = lines[-1][:4].upper()
                is_data = word == "DATA"
                self.wfile.write(b"354 go\r\n" if is_data else b"221 bye\r\n" if word == "QUIT" else b"250 ok\r\n")
                if word == "QUIT":
                    return

    with socketserver.TCPServer(("127.0.0.1", 0), Mail) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        way = {"smtp_host": "127.0.0.1", "smtp_port": server.server_address[1], "smtp_tls": False}
        told = alerting(deployment, email_to=("a@example.com",), email_from="lte@example.com", **way)
        assert send(told, bad_day()) == ["e-mail"]
        server.shutdown()
    assert "Subject: shop 2017-01-02: Live, but incomplete: ingest failed or left nothing" in lines
    assert any("IngestError" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"webhook": "http://hooks.example.com/secret"}, r"alerts\.webhook must begin with https://"),
        ({"webhook": "https://"}, r"alerts\.webhook must begin"),
        ({"webhook": "http://localhost.example.com/x"}, r"alerts\.webhook must begin"),
        ({"email_to": ("a@b",)}, r"alerts\.email_from: expected an address"),
        ({"smtp_password": "hush", "smtp_tls": False}, r"alerts\.smtp_tls: expected true"),
    ],
)
def test_settings_that_would_leak_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        AlertsSection(**settings)
    assert "secret" not in str(error.value)
    assert "hush" not in str(error.value)
