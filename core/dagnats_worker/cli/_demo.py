"""``dagnats-worker demo``: everything at work, in a few seconds."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib.metadata import version

import click
from rich.console import Console
from rich.text import Text

from dagnats_worker.cli._demo_board import Board
from dagnats_worker.cli._demo_play import Reporter, kept_logs, play
from dagnats_worker.cli._demo_summary import print_summary
from dagnats_worker.cli._demo_view import JsonView, LiveView, PlainView
from dagnats_worker.cli._embedded import embedded_server
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._main import EXIT_FAILED
from dagnats_worker.cli._running import run_async
from dagnats_worker.cli._screen import tell

PIPE_WIDTH = 100


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each event.")
@click.option(
    "--url", metavar="URL", help="Play on this server, without embedding one. It needs its streams."
)
def demo(*, as_json: bool, url: str | None) -> int:
    """See it work: a NATS server, a worker and 36 tasks, live, in a few seconds.

    The tasks succeed, stream, fail and are tried again, and fail for good; the exit code is 0 if
    each of them ended as it had to. Nothing is left behind, unless --url names another server.
    """
    console = _console()
    with ExitStack() as stack:
        server = None
        if url is None:
            with _status(console, "starting a NATS server", as_json=as_json):
                server = stack.enter_context(embedded_server())
        stage = Stage(
            url=server.url if server else url or "",
            server_version=server.version if server else "",
            suffix=secrets.token_hex(3),
            as_json=as_json,
        )
        return _play(stage, console)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo is played.

    Attributes:
        server_version: Of the embedded server; empty on somebody else's.
        suffix: Makes the runs of this demo unique.
    """

    url: str
    server_version: str
    suffix: str
    as_json: bool

    @property
    def prefix(self) -> str:
        """Before each task type: nothing on a server of our own."""
        return "" if self.server_version else f"demo-{self.suffix}."

    @property
    def left_behind(self) -> str:
        """What stays on the server, for people."""
        if self.server_version:
            return ""
        return (
            f"Left on {self.url}: histories and dead letters of the runs *-{self.suffix}, which "
            "expire after 30 days"
        )


def _play(stage: Stage, console: Console) -> int:
    board = Board(stage.suffix)
    view = _view(stage, board, console)
    _tell_beginning(stage, board, console, view)
    screen = view.screen if isinstance(view, LiveView) else nullcontext()
    with kept_logs() as log, screen:
        board.began_at = time.monotonic()
        run_async(play(stage.url, stage.prefix, board, view))
    problems = board.problems()
    if isinstance(view, JsonView):
        view.write(
            "demo.finished",
            ok=not problems,
            seconds=round(board.elapsed.total_seconds(), 3),
            completed=board.count("completed"),
            failed=board.count("failed"),
            dead_letters=sum(board.dead_letters.values()),
            problems=problems,
        )
    else:
        print_summary(board, console, left_behind=stage.left_behind)
    for line in log.lines:
        tell(line, err=True)
    return EXIT_FAILED if problems else 0


def _view(stage: Stage, board: Board, console: Console) -> Reporter:
    if stage.as_json:
        return JsonView(board, console)
    if _is_live(console):
        return LiveView(board, console)
    return PlainView(board, console)


def _tell_beginning(stage: Stage, board: Board, console: Console, view: Reporter) -> None:
    ours = version("dagnats-worker")
    if isinstance(view, JsonView):
        view.write(
            "demo.started",
            version=ours,
            url=stage.url,
            server_version=stage.server_version,
            tasks=len(board.rows),
        )
        return
    server = f"nats-server {stage.server_version} at " if stage.server_version else ""
    console.print(
        Text.assemble(("dagnats-worker demo", "bold"), (f"  {ours} on {server}{stage.url}", "dim"))
    )


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def _is_live(console: Console) -> bool:
    can_show_marks = console.encoding.lower().startswith("utf")
    return console.is_terminal and not console.is_dumb_terminal and can_show_marks


def _status(console: Console, text: str, *, as_json: bool) -> AbstractContextManager[object]:
    return console.status(text) if _is_live(console) and not as_json else nullcontext()
