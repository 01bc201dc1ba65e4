"""Console script ``lte``: run a day, see what is live, look at a user, roll back, erase, maintain."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from jobs.config.loading import default_config, load_deployment
from jobs.config.sections import Deployment
from jobs.config.shown import asdict_plain
from jobs.config.window import ConfigError
from jobs.lake.engine.exposure import exposure
from jobs.ownership.lease import hold_lease
from jobs.ownership.mark import require_own_lake
from jobs.runtime.entry import FAILED_EXIT_CODE, run_job
from jobs.runtime.flags import future_day, parse_ds
from jobs.runtime.progress import tell
from jobs.runtime.text import counted, printable, shown_user

EPILOG = """
The deployment is named by --config or the variable LTE_CONFIG. LTE_SECTION__KEY variables override single settings,
LTE_ENGINE__MASTER='local[2]' for one. Every command takes --json and then prints one JSON value on standard output;
logs go to standard error. Exit codes: 0 done, 1 an input, a gate or the store failed, 2 wrong flags or configuration,
141 nobody reads standard output any more. What failed is named on standard error: table, column, value and ds.

examples:
  lte check-config                      is the configuration right, and what does it amount to?
  lte run 2017-12-31                    one data day: ingest, embed, average, train, compare, validate, publish, report
  lte plan 2017-12-31                   what that run would do, without doing it
  lte status                            what is live, the last runs, failed gates, runs that late data made stale
  lte report --text 2017-12-31          verdict, changes and alarms of one day in 20 lines
  lte user 2375                         what the live LTE of one user looks like
  lte recommend 2375                    what the live ranker would show this user
  lte why 2375 1070820                  why the live ranker ranks this item there for this user
  lte items --like "red floral dress"   which items lie near some words: a contact sheet
  lte experiment integration            which LTE helps the ranker, with intervals, over seeds and days
  lte serve                             recommendations over HTTP, on this machine
  lte export lte.parquet                the live snapshot as one Parquet file
  lte rollback --drill                  what would an earlier ranker lose today? changes nothing
  lte ab groups.csv --from 2017-11-01 --to 2017-11-28   an A/B test's uplifts with intervals
  lte rollback                          switch back to the snapshot that was live before; again: forward
  lte erase 2375                        remove a user from tables, table history, copies, pages and online store
  lte erase --verify 2375               read every byte: is the user still anywhere?
  lte maintain                          compact tables, delete files beyond the rollback horizon
  lte lease                             which run writes the lake now; --break ends the lease of a dead one
  lte repair                            bring a damaged basis back to its last good version

LTE_WAIT_SECONDS=600 waits up to 600 s for another run of the same lake; without it, a second run is refused (exit 1).
"""


def _print(as_json: bool, value: Any, text: str) -> None:
    # Titles and ids come from files and may contain line breaks. Only the line breaks between lines of text are kept.
    lines = [json.dumps(value, indent=2, default=str)] if as_json else map(printable, text.split("\n"))
    print("\n".join(lines))


def _run(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.days.run import run_day

    if not args.allow_future and (why := future_day(args.ds)):
        raise ConfigError(why)
    # The tasks inherit the lease, so no other run can start between two tasks.
    with hold_lease(deployment, "lte run", args.ds):
        results = run_day(args.config, args.ds, *["--allow-future"] * args.allow_future)
    lines = [
        f"{r.task:18}{'not started' if r.exit_code is None else f'exit {r.exit_code}':14}{r.seconds:7.1f} s"
        for r in results
    ]
    value = {"ds": str(args.ds), "deployment": deployment.deployment.name, "tasks": [asdict(r) for r in results]}
    _print(args.json, value, "\n".join(lines))
    if any(result.exit_code != 0 for result in results):
        sys.exit(FAILED_EXIT_CODE)


def _plan(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.days.plan import plan_day, plan_text

    plan = plan_day(deployment, args.ds)
    _print(args.json, plan.as_json(), plan_text(plan))


def _status(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.days.status import deployment_status, status_text

    while True:
        status = deployment_status(deployment, last=args.last)
        _print(args.json, status.as_json(), status_text(status))
        if args.watch is None:
            return
        sys.stdout.flush()
        time.sleep(args.watch)
        print()


def _report(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.days.report import day_report, text_of, value_of
    from jobs.report.alerts import send

    report = day_report(deployment, args.ds)
    _print(args.json, value_of(report), text_of(report, deployment))
    if args.is_sent:
        ways = send(deployment, report)
        tell(f"sent by {' and '.join(ways)}" if ways else "nothing new to send by the settings of [alerts]")


def _user(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.users.user import user_text, user_view

    view = user_view(deployment, args.user_id, n_nearest=args.nearest)
    _print(args.json, view.as_json(), user_text(view))
    if args.page:
        from jobs.commands.users.user_page import write_user_page

        write_user_page(deployment, args.user_id, args.page)
        tell(f"page: {args.page} (it holds personal data)")


def _recommend(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.users.recommend import recommendations, recommendations_text

    found = recommendations(deployment, args.user_id, ds=args.ds, k=args.k)
    _print(args.json, found, recommendations_text(found))


def _ab(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.live import ab

    shares = dict(args.share) if args.share else None
    question = ab.Question(
        args.first, args.last, tuple(args.kpi), args.control, shares, args.by, args.cuped_days, args.anytime_effect
    )
    if args.assignments is None:
        planned = ab.plan(deployment, question)
        _print(args.json, planned, ab.plan_text(planned))
        return
    found = ab.read_out(deployment, args.assignments, question)
    _print(args.json, found, ab.read_out_text(found))
    if not found["is_split_right"]:
        sys.exit(FAILED_EXIT_CODE)


def _export(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.live.export import export_snapshot

    done = export_snapshot(deployment, args.file)
    manifest = json.loads(done.manifest.to_json())
    text = f"{done.path}: {counted(done.manifest.row_count, 'user')} of ds={done.manifest.ds}"
    _print(args.json, {"file": str(done.path), "manifest": manifest}, text)


def _why(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.users.why import why, why_text

    found = why(deployment, args.user_id, args.item_id)
    _print(args.json, found, why_text(found))


def _serve(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.live.serve import serve

    serve(deployment, args.host, args.port)


def _check_config(args: argparse.Namespace, deployment: Deployment) -> None:
    require_own_lake(deployment)
    from jobs.store.opening import check_store

    unknown = check_store(deployment)
    if unknown:
        tell(f"the owner of the online store was not looked up: {unknown}")
    exposed = exposure() if deployment.engine.master == "sail" else None
    if exposed:
        tell(exposed)
    settings = asdict_plain(deployment)
    lines = [f"{args.config}: good"]
    for section, values in settings.items():
        lines += [f"[{section}]", *(f"  {key} = {value}" for key, value in values.items())]
    _print(args.json, settings, "\n".join(lines))


def _items(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.users.items import found_text, search_items, write_sheet

    found = search_items(deployment, like=args.like, like_image=args.like_image, n=args.nearest)
    write_sheet(deployment, found, args.out)
    _print(args.json, found.as_json() | {"sheet": str(args.out)}, f"{found_text(found)}\ncontact sheet: {args.out}")


def _rollback(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.live.rollback import roll_back

    if args.drill:
        _rollback_drill(args, deployment)
        return
    if args.ranker:
        _rollback_ranker(args, deployment)
        return
    if args.to or args.is_dry_run:
        raise ConfigError("--to and --dry-run are for a ranker: give --ranker too, or --drill with --dry-run")
    done = roll_back(deployment, force=args.force)
    users = counted(done["row_count"], "user")
    _print(args.json, done, f"live is ds={done['ds']} ({users}); the same command switches forward again")


def _rollback_drill(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.live.drill import drill, drill_text

    if args.ranker or args.to or args.force:
        raise ConfigError("--drill changes nothing that is live: give it without --ranker, --to and --force")
    found = drill(deployment, is_dry_run=args.is_dry_run)
    _print(args.json, asdict(found), drill_text(found))
    if found.failed:
        sys.exit(FAILED_EXIT_CODE)


def _rollback_ranker(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.live.rollback import roll_back_ranker

    live = roll_back_ranker(deployment, to=args.to, force=args.force, is_dry_run=args.is_dry_run)
    forward = "`lte rollback --ranker` switches forward again"
    text = f"live is the ranker of ds={live.ds}; the LTEs are what they were; {forward}"
    if args.is_dry_run:
        text = f"the ranker of ds={live.ds} reads the live LTEs and would be made live; nothing was changed"
    _print(args.json, asdict(live), text)


def _erase(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.users import erase

    if args.audit:
        rows = erase.audit(deployment)
        _print(args.json, rows, erase.audit_text(rows))
        return
    users = [*args.user_ids, *(erase.requested_users(deployment) if args.requests else [])]
    if args.verify:
        _verify(args, deployment, users)
    elif args.readmit:
        # The log of a task must name no user, as below.
        back = {
            user if user in args.user_ids else shown_user(user): erase.let_back_in(deployment, user) for user in users
        }
        lines = [f"{user!r} {'may come back' if was else 'was not kept out'}" for user, was in back.items()]
        _print(args.json, back, "\n".join(lines))
    elif users:
        done = (erase.plan_erasure if args.dry_run else erase.erase_users)(deployment, users)
        # The log of a task must name no user. Users in the arguments are named, because the operator typed them.
        named = args.user_ids if not args.requests else []
        _print(args.json, done.as_json(), erase.erasure_text(done, named, is_plan=args.dry_run))
    else:
        _print(args.json, [], "no user asks to be forgotten")


def _verify(args: argparse.Namespace, deployment: Deployment, users: Sequence[str]) -> None:
    from jobs.commands.users import erase

    found = erase.verify_erasure(deployment, users)
    _print(args.json, found, erase.verification_text(found))
    if found["places"]:
        sys.exit(FAILED_EXIT_CODE)


def _maintain(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.days.maintain import maintain

    done = maintain(deployment, is_dry_run=args.dry_run)
    would = "would be " if args.dry_run else ""
    lines = [
        f"{name:18}{row['files_compacted']:>6} files {would}compacted, {row['files_deleted']:>6} {would}deleted"
        for name, row in done.items()
    ]
    _print(args.json, done, "\n".join(lines) or "no table yet")


def _lease(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.days.maintain import lease_holders

    found = lease_holders(deployment, is_broken=args.is_broken)
    ended = "ended: " if args.is_broken else ""
    _print(args.json, found, "\n".join(ended + row["text"] for row in found) or "no run writes the lake")


def _repair(args: argparse.Namespace, deployment: Deployment) -> None:
    from jobs.commands.days.maintain import repair

    done = repair(deployment)
    _print(args.json, done, done["text"])


# Commands that parse their own flags.
TOOLS = {
    "make-sample": ("jobs.samples.complete_journey", "write The Complete Journey as landing files"),
    "make-fashion": ("jobs.samples.fashion.shop", "make a fashion shop: items with pictures, users with tastes"),
    "train-clip": ("jobs.samples.train_clip", "train a CLIP on a catalogue's own pictures and texts"),
    "experiment": ("jobs.experiment", "which LTE helps, how, and what leaks: on this deployment's own data"),
}


def _count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    """Parse a port."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


Command = Callable[[argparse.Namespace, Deployment], None]


def _command(
    commands: Any, name: str, run: Command, help_text: str, *flags: tuple[str, dict[str, Any]]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    for flag, settings in flags:
        parser.add_argument(flag, **settings)
    default = default_config()
    parser.add_argument("--config", type=Path, default=default, help=f"TOML file of the deployment ({default})")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.set_defaults(command=run)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lte",
        description="Long-Term Embeddings: one vector a user, made every day, live one at a time.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lte {version('long-term-embeddings')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    user = ("user_id", {"metavar": "USER", "help": "user_id"})
    day = ("ds", {"metavar": "DS", "type": parse_ds, "help": "data day, YYYY-MM-DD (UTC)"})
    watch = ("--watch", {"type": _count, "metavar": "SECONDS", "help": "show it again every SECONDS, until Ctrl-C"})
    last = ("--last", {"type": _count, "default": 10, "help": "how many runs to show (10)"})
    nearest = ("--nearest", {"type": _count, "default": 10, "help": "how many items to show (10)"})
    future = ("--allow-future", {"action": "store_true", "help": "also take a day after today (made data)"})
    _command(commands, "run", _run, "run one data day without Airflow", day, future)
    plan_help = "what a run of one day would do: days to ingest, items to encode, examples to build; changes nothing"
    _command(commands, "plan", _plan, plan_help, day)
    _command(commands, "status", _status, "what is live, the last runs, their gates, and which are stale", last, watch)
    _reading_commands(commands, day, user, nearest)
    best = "the live ranker's best items for a user, as a server would find them"
    _command(commands, "recommend", _recommend, best, user, *_recommend_flags())
    ab_help = "uplift of each KPI of an A/B test with its interval; without a table, the plan of a test (docs/ab.md)"
    _command(commands, "ab", _ab, ab_help, *_ab_flags())
    item = ("item_id", {"metavar": "ITEM", "help": "item_id"})
    _command(commands, "why", _why, "the score of an item for a user, in parts", user, item)
    host = ("--host", {"default": "127.0.0.1", "help": "address to listen on (127.0.0.1); others need LTE_SERVE_TOKEN"})
    port = ("--port", {"type": _port, "default": 8000, "help": "port (8000); 0 for any free port"})
    _command(commands, "serve", _serve, "serve recommendations over HTTP (docs/serving.md)", host, port)
    target = ("file", {"metavar": "FILE", "type": Path, "help": "Parquet file to write"})
    _command(commands, "export", _export, "write the live snapshot to a Parquet file (docs/serving.md)", target)
    _command(commands, "check-config", _check_config, "check the configuration and show what it amounts to")
    _items_command(commands)
    ranker = ("--ranker", {"action": "store_true", "help": "the ranker instead of the snapshot"})
    force = ("--force", {"action": "store_true", "help": "also where the ranker does not read the LTEs"})
    to = ("--to", {"metavar": "DS", "type": parse_ds, "help": "with --ranker: the ranker that this day trained"})
    dry_help = "with --ranker: check, change nothing; with --drill: write no metrics"
    dry = ("--dry-run", {"dest": "is_dry_run", "action": "store_true", "help": dry_help})
    drill_help = "change nothing: score the newest day with the rankers of earlier days"
    drill = ("--drill", {"action": "store_true", "help": drill_help})
    rollback_help = "switch back to the snapshot that was live before"
    _command(commands, "rollback", _rollback, rollback_help, ranker, force, to, dry, drill)
    erase_help = "remove users from the tables, their history, copies, pages and the online store"
    _command(commands, "erase", _erase, erase_help, *_erase_flags())
    dry_run = ("--dry-run", {"action": "store_true", "help": "say what would be done, change nothing"})
    maintain_help = "compact tables and delete files beyond the rollback horizon"
    _command(commands, "maintain", _maintain, maintain_help, dry_run)
    broken = ("--break", {"dest": "is_broken", "action": "store_true", "help": "end the lease of a run that is dead"})
    _command(commands, "lease", _lease, "which run writes the lake now", broken)
    _command(commands, "repair", _repair, "bring a damaged table item_embeddings back to its last good version")
    for name, (_, help_text) in TOOLS.items():
        commands.add_parser(name, help=f"{help_text} (lte {name} --help)", add_help=False)
    return parser


def _reading_commands(commands: Any, day: Any, user: Any, nearest: Any) -> None:
    """Add the commands that explain a day and a user."""
    text = ("--text", {"action": "store_true", "help": "as text (the default)"})
    sent = ("--send", {"dest": "is_sent", "action": "store_true", "help": "also send it by the settings of [alerts]"})
    report_help = "one day in 20 lines: verdict, what changed, alarms"
    _command(commands, "report", _report, report_help, day, text, sent)
    page = ("--page", {"metavar": "HTML", "type": Path, "help": "also write a page that explains the vector"})
    user_help = "a user's live LTE: n_items, nearest items, drift since yesterday"
    _command(commands, "user", _user, user_help, user, nearest, page)


def _recommend_flags() -> list[tuple[str, dict[str, Any]]]:
    day_help = "last day whose interactions count, YYYY-MM-DD (that of the live LTEs)"
    return [
        ("--ds", {"type": parse_ds, "help": day_help}),
        ("-k", {"type": _count, "default": 10, "help": "number of items (10)"}),
    ]


def _share(text: str) -> tuple[str, float]:
    """Parse VARIANT=NUMBER."""
    name, _, number = text.rpartition("=")
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not name or not 0 < share < float("inf"):
        raise argparse.ArgumentTypeError(f"expected VARIANT=NUMBER with a positive number, got {text!r}")
    return name, share


def _ab_flags() -> list[tuple[str, dict[str, Any]]]:
    table = {
        "metavar": "FILE",
        "nargs": "?",
        "type": Path,
        "help": "assignment table, .csv or .parquet: user_id, variant",
    }
    kpi_help = "TYPE, all, active or days, per user, or a ratio like purchase/click; may be repeated (all of them)"
    cuped = {"type": _count, "default": 0, "metavar": "DAYS", "help": "CUPED: take off what these days before explain"}
    anytime_help = "uplift at which the interval for daily looks is tightest; choose it before the test (0.02)"
    return [
        ("assignments", table),
        ("--from", {"dest": "first", "metavar": "DS", "type": parse_ds, "required": True, "help": "first day (UTC)"}),
        ("--to", {"dest": "last", "metavar": "DS", "type": parse_ds, "required": True, "help": "last day (UTC)"}),
        ("--control", {"default": "control", "help": "variant that the others are compared with (control)"}),
        ("--share", {"action": "append", "type": _share, "metavar": "VARIANT=NUMBER", "help": "planned share (equal)"}),
        ("--kpi", {"action": "append", "default": [], "help": kpi_help}),
        ("--by", {"metavar": "COLUMN", "help": "split by market, or by a column of the assignment table"}),
        ("--cuped-days", cuped),
        ("--anytime-effect", {"type": float, "default": 0.02, "metavar": "UPLIFT", "help": anytime_help}),
    ]


def _words(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected words, got nothing")
    return text


def _items_command(commands: Any) -> None:
    help_text = "the items most like words or a picture, on a contact sheet"
    parser = _command(commands, "items", _items, help_text, *_item_flags())
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--like", metavar="WORDS", type=_words, help="words to search for")
    query.add_argument("--like-image", metavar="FILE", type=Path, help="picture to search for")


def _erase_flags() -> list[tuple[str, dict[str, Any]]]:
    switches = {
        "--dry-run": "say what is known of the users, change nothing",
        "--verify": "erase nothing: read every byte under the deployment's folders; exit 1 where a user is found",
        "--requests": "the users in table erasure_requests, too",
        "--readmit": "erase nothing: let ingest take the users' rows again",
        "--audit": "erase nothing: list the erasures, and the models that still know the erased users",
    }
    users = ("user_ids", {"metavar": "USER", "nargs": "*", "help": "user_id, one or several"})
    return [users, *((flag, {"action": "store_true", "help": text}) for flag, text in switches.items())]


def _item_flags() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("--out", {"metavar": "PNG", "type": Path, "default": Path("items.png"), "help": "contact sheet (items.png)"}),
        ("--nearest", {"type": _count, "default": 24, "help": "how many items to show (24)"}),
    ]


def dispatch(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Raises:
        jobs.config.window.ConfigError: The configuration is wrong.
        SystemExit: The flags are wrong (2), or a task of the day failed (1).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in TOOLS:
        module, _ = TOOLS[arguments[0]]
        sys.exit(importlib.import_module(module).main(arguments[1:]))
    args = _parser().parse_args(arguments)
    args.command(args, load_deployment(args.config))


def main() -> NoReturn:
    """Entry point of the console script ``lte``."""
    run_job(dispatch)


if __name__ == "__main__":
    main()
