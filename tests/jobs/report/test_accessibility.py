"""axe-core finds no serious fault on the pages, in headless Chromium: wide and phone, light and dark.

The package axe-core is not part of this project. The environment variable ``AXE_CORE`` names its ``axe.min.js``:
``npm pack axe-core@4 && tar xf axe-core-*.tgz`` gives ``package/axe.min.js``.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.build_report import write_report
from jobs.config.sections import Deployment
from jobs.report.facts import Step
from report_facts import DS, facts, gate, point

AXE = Path(os.environ.get("AXE_CORE", "no-axe-core"))
pytestmark = [
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: apt-get install chromium"),
    pytest.mark.skipif(not AXE.is_file(), reason="AXE_CORE does not name axe.min.js: npm pack axe-core@4"),
]
WIDTHS = (1280, 390)
SERIOUS = ("serious", "critical")

# Runs axe in the page, and leaves what it found as text that --dump-dom prints. Chromium's smallest window is 500 px
# wide, so a frame of the wanted width holds the page.
PROBE = """<!doctype html><html lang="en"><title>probe</title><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:6000px" srcdoc="{page}"></iframe><pre id="found"></pre><script>
document.getElementById("page").onload = async (event) => {{
  const inner = event.target.contentDocument, script = inner.createElement("script");
  script.textContent = {axe};
  inner.head.append(script);
  const found = await event.target.contentWindow.axe.run(inner, {{resultTypes: ["violations"]}});
  const wide = inner.documentElement.scrollWidth;
  document.getElementById("found").textContent = "FOUND" + JSON.stringify({{wide, violations: found.violations.map(
    (each) => [each.impact, each.id, each.nodes.length, each.nodes[0].html.slice(0, 200)])}}) + "END";
}};
</script></body></html>"""


def probed(page: Path, folder: Path, width: int, *, is_dark: bool) -> dict[str, Any]:
    """What axe found, and the width that the page needs in px."""
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    probe = folder / f"probe-{width}-{is_dark}.html"
    script = json.dumps(AXE.read_text(encoding="utf-8")).replace("</", "<\\/")
    probe.write_text(PROBE.format(width=width, page=html.escape(source), axe=script), encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", *scheme]
    command += [f"--user-data-dir={folder / 'chromium'}", "--window-size=1300,6000", "--dump-dom", probe.as_uri()]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    match = re.search(r'id="found">FOUND(.*?)END</pre>', shown, re.DOTALL)
    assert match, shown[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


def red_day() -> Any:
    steps = [Step("ingest", "failed", "", "bad", 1.5, 200.0, "IngestError: " + "a long sentence of one word" * 9)]
    steps.append(Step("embed_items", "off", "turned off in the configuration", "neutral"))
    models = {"candidate": 0.3, "live": 0.35, "frequency_365d": 0.4}
    ranked: dict[Any, float] = {("evaluate_ranker", "ndcg_at_500", model): n for model, n in models.items()}
    return facts(
        steps=steps,
        metrics=ranked | {("evaluate_ranker", "ndcg_at_500", "candidate/1-5"): 0.2},
        gates=[gate(success=False, sample='[{"user_id": "u1", "norm": 3.5}]'), gate(), gate(skipped="no earlier day")],
        points=(point(DS.replace(day=1), n_users=3.0), point(DS, seconds={"ingest": 1.5, "embed_items": 2.0})),
    )


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_serious_fault_on_a_red_day_and_on_the_index(
    deployment: Deployment, tmp_path: Path, width: int, is_dark: bool
) -> None:
    Path(deployment.paths.reports).mkdir(parents=True)
    page = write_report(red_day(), deployment)
    for each in (page, Path(deployment.paths.reports) / "index.html"):
        found = probed(each, tmp_path, width, is_dark=is_dark)
        assert [fault for fault in found["violations"] if fault[0] in SERIOUS] == []
        assert found["wide"] <= width, "the page does not scroll sideways"


def test_no_serious_fault_on_a_first_day(deployment: Deployment, tmp_path: Path) -> None:
    Path(deployment.paths.reports).mkdir(parents=True)
    page = write_report(replace(facts(), live=None, gates=[]), deployment)
    found = probed(page, tmp_path, 390, is_dark=False)
    assert [fault for fault in found["violations"] if fault[0] in SERIOUS] == []
