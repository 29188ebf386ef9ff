"""Blind pairwise ratings of two variants' replies, on a page that this machine serves.

    python -m attune rate sft sft-dpo                   # serves http://127.0.0.1:8765/ until Ctrl-C
    python -m attune rate sft sft-dpo --export ratings/sft-dpo.csv
    python -m attune rate sft sft-dpo --share           # adds the answers to the file that `report` reads

Each rater gives a name, sees the two replies to a context in random order without the variants' names, chooses the
better one or a tie with an optional reason, may take answers back, and may continue later. All raters see the same 20
contexts first, so that their agreement can be computed; `--limit` has them rate that many contexts alone. Answers are
stored in `ratings/answers.sqlite`; `--export` writes the answers to the current replies as csv and prints the win rate
and the raters' agreement. `--share` adds them, without names and reasons, to `data/ratings.csv`, which is in Git: stage
`report` depends on that file, since a clone has no database and DVC runs no stage with a missing dependency. Only this
machine can open the page; `--host` serves it to others, without a password.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.report.ratings import (
    COMMON,
    Answer,
    Item,
    Store,
    as_csv,
    current,
    drawn,
    first,
    items,
    order,
    read_csv,
    shared,
)
from attune.report.results import RATINGS, read_replies
from attune.report.win_rates import summary
from attune.runtime.cli import command_parser
from attune.runtime.errors import DataError, UserError
from attune.runtime.io import write_text
from attune.tools.rate_page import PAGE, POLICY

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

ANSWERS = Path("ratings/answers.sqlite")
LOOPBACK = "127.0.0.1"
HERE = (LOOPBACK, "localhost", "::1")
"""Addresses that only this machine can reach."""
PORT = 8765
# Characters of a rater's name and of a reason.
NAME, REASON = 80, 2000


def own_names(host: str, port: int) -> list[str]:
    """The names under which browsers reach a server that only this machine can reach; empty: others can."""
    names = (LOOPBACK, "localhost") if host == LOOPBACK else (LOOPBACK, "localhost", "[::1]")
    return [f"{name}:{port}" for name in names] if host in HERE else []


class Guard:
    """Middleware that refuses requests to other host names and from pages of other sites."""

    def __init__(self, app: Any, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with status 403, or pass the request on."""
        from starlette.responses import PlainTextResponse

        if scope["type"] == "http":
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            host, origin = headers.get("host", ""), headers.get("origin")
            if (self.hosts and host not in self.hosts) or (origin is not None and origin != f"http://{host}"):
                await PlainTextResponse("this page is served to its host machine only", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def app(pairs: Sequence[Item], names: tuple[str, str], store: Store, seed: int, hosts: Sequence[str]) -> Starlette:
    """The web application: the page, the next item, and the endpoint for answers.

    Args:
        pairs: the pairs of replies to rate, from `ratings.drawn`.
        names: of the variants a and b.
        store: of the answers.
        seed: of the orders.
        hosts: accepted values of the header Host, against DNS rebinding (another site's page whose name points to this
            machine); empty: all.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    by_example = {item.example: item for item in pairs}

    def page(request: Request) -> Response:
        """The page itself."""
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "X-Frame-Options": "DENY"})

    def upcoming(request: Request) -> Response:
        """The rater's next item, and how many are done."""
        rater = _rater(request.query_params.get("rater"))
        done = {rated.example for rated in current(store.answers(rater), pairs, names)}
        left = [item for item in order(pairs, rater, seed) if item.example not in done]
        state: dict[str, Any] = {"done": len(done), "all": len(pairs)}
        return JSONResponse(state | ({"item": shown(left[0], rater, seed)} if left else {}))

    async def answer(request: Request) -> Response:
        """Store an answer; confirmed once it is on disk."""
        answered = await _sent(request, lambda given: _answer(given, by_example, names, seed))
        # SQLite waits for the disk and for other writers.
        await run_in_threadpool(store.keep, answered)
        return JSONResponse({"kept": answered.example})

    async def undo(request: Request) -> Response:
        """Remove an answer, so that its item comes again."""
        rater, item = await _sent(request, lambda given: (_rater(given["rater"]), by_example[given["example"]]))
        removed = await run_in_threadpool(store.withdraw, rater, item, names)
        return JSONResponse({"undone": item.example if removed else None})

    def refused(request: Request, error: Exception) -> Response:
        """Status 400 with the message of a `DataError`."""
        return JSONResponse({"error": str(error)}, 400)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/next", upcoming),
            Route("/answer", answer, methods=["POST"]),
            Route("/undo", undo, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={DataError: refused},
    )


async def _sent(request: Request, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of the JSON that the page sent.

    Raises:
        DataError: it is none, or not what the page sends.
    """
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise DataError("an answer is JSON")
    try:
        return read(await request.json())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not an answer of this page: {error!r}") from None


def shown(item: Item, rater: str, seed: int) -> dict[str, Any]:
    """The JSON of an item for the page, without the names of the variants."""
    replies = [item.reply_a, item.reply_b]
    ordered = replies if first(item, rater, seed) == "a" else replies[::-1]
    return {"example": item.example, "context": item.context, "replies": ordered, "hash": item.replies}


def _rater(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name.strip()) <= NAME:
        raise DataError(f"a rater's name has 1 to {NAME} characters")
    return name.strip()


def _answer(given: Any, by_example: dict[str, Item], names: tuple[str, str], seed: int) -> Answer:
    """The answer that the page sent; its `better` is first, second or tie."""
    rater, item = _rater(given["rater"]), by_example[given["example"]]
    if given["hash"] != item.replies:
        raise DataError("the replies have changed since the page was loaded: load it again")
    reason = str(given.get("reason", "")).strip()
    if len(reason) > REASON:
        raise DataError(f"a reason has at most {REASON} characters")
    begun = first(item, rater, seed)
    second: Any = "b" if begun == "a" else "a"
    choice = {"first": begun, "second": second, "tie": "tie"}[given["better"]]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Answer(rater, item.example, *names, choice, reason, begun, item.replies, time)


def read(names: tuple[str, str], params: Params) -> list[Item]:
    """The pairs of replies of two variants that differ.

    Raises:
        UserError: a variant does not exist or has no replies yet, or all replies are equal.
    """
    for name in names:
        named(params.variants, name, "variants")
    a, b = map(read_replies, names)
    if not (pairs := items(a, b)):
        raise UserError(f"{names[0]} and {names[1]} give equal replies to every context: there is nothing to compare")
    return pairs


def export(answers: Sequence[Answer], path: Path, params: Params) -> None:
    """Write the answers as csv and print their summary."""
    result = summary(answers, params.context.targets)
    write_text(path, as_csv(answers))
    several = f"{result['several']:.0f} contexts that several raters answered"
    agreed = (
        f"Krippendorff's alpha {result['agreement']:.2f} over n = {several}"
        if "agreement" in result
        else f"no agreement can be computed from {several}"
    )
    print(
        f"{answers[0].variant_b} is better than {answers[0].variant_a} in {result['win_rate']:.1f} % "
        f"({result['win_rate.low']:.1f} to {result['win_rate.high']:.1f}) of {result['answers']:.0f} answers, ties "
        f"counted half, to {result['dialogues']:.0f} dialogues by {result['raters']:.0f} raters; {agreed}"
    )


def share(answers: Sequence[Answer]) -> None:
    """Add the answers, without names and reasons, to the file that `report` reads.

    Raises:
        DataError: there are no answers, or the file cannot be read.
    """
    if not answers:
        raise DataError(f"no answers yet to these replies: nothing is added to {RATINGS}")
    kept = shared(answers, read_csv(RATINGS))
    write_text(RATINGS, as_csv(kept))
    print(f"{RATINGS} has {len(kept)} answers: `dvc repro report` summarizes them")


def main(argv: Sequence[str]) -> None:
    """Serve the page, or export the answers."""
    parser = command_parser("rate", __doc__)
    parser.add_argument("a", help="a key of variants")
    parser.add_argument("b", help="another variant")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--limit", type=int, metavar="N", help="rate N contexts, the same for all raters; default: all")
    parser.add_argument("--export", type=Path, metavar="CSV", help="write the answers and serve nothing")
    parser.add_argument("--share", action="store_true", help=f"add the answers to {RATINGS} and serve nothing")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit: expected a number of contexts, at least 1")
    params, names = load(), (arguments.a, arguments.b)
    pairs, store = read(names, params), Store(ANSWERS)
    if arguments.export:
        export(current(store.answers(), pairs, names), arguments.export, params)
    if arguments.share:
        share(current(store.answers(), pairs, names))
    if arguments.export or arguments.share:
        return
    import uvicorn

    host, port = arguments.host, arguments.port
    shown_pairs = drawn(pairs, params.seed, arguments.limit)
    common = f"the first {min(COMMON, len(shown_pairs))} of them the same for all raters"
    print(f"{len(shown_pairs)} contexts: http://{host}:{port}/ (Ctrl-C ends); {common}", flush=True)
    uvicorn.run(
        app(shown_pairs, names, store, params.seed, own_names(host, port)), host=host, port=port, log_level="warning"
    )
