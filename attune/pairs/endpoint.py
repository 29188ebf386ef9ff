"""The client of an OpenAI-compatible endpoint, with a cache on disk: no request is sent twice, even after a kill.

The cache is an SQLite file where DVC removes nothing. A row is committed with each answer, so a killed run loses at
most `endpoint.concurrency` answers, and the next run sends only the requests without one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from attune.config.schema import Converse, Endpoint, Judge, Llm
from attune.runtime.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI

CHARACTERS_A_TOKEN = 4  # of English text, for the estimate
# So many refusals before the first answer are a wrong setting, such as more tokens than the model has positions.
MOST_REFUSED = 10


@dataclass(frozen=True)
class Request:
    """The text of the user's message, and the temperature and seed of the answer."""

    text: str
    temperature: float
    seed: int


def ask(llm: Llm, endpoint: Endpoint, requests: Sequence[Request], cache: Path) -> list[str | None]:
    """The answers to `requests` in order, from the cache or the endpoint.

    The number of requests to send and their estimated cost are printed before the first.

    Returns:
        N texts; None for a request that the endpoint refuses (HTTP 400 and 422, such as a content filter) or whose
        response is no chat completion.

    Raises:
        UserError: the variable of the API key is not set, the endpoint rejects key or model or the first
            `MOST_REFUSED` requests, or it does not answer after `endpoint.retries` retries. The answers until then are
            in the cache.
    """
    bodies = [_body(llm, request) for request in requests]
    keys = [_key(llm, body) for body in bodies]
    cache.parent.mkdir(parents=True, exist_ok=True)
    # The threads write one at a time, under a lock.
    with closing(sqlite3.connect(cache, check_same_thread=False)) as database:
        with database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT)")
        known = {key for (key,) in database.execute("SELECT key FROM answers")}
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
        if missing:
            print(estimate(llm, endpoint, list(missing.values()), len(set(keys))), flush=True)
            _fetch(llm, endpoint, missing, database)
        answers: dict[str, str | None] = dict(database.execute("SELECT key, text FROM answers"))
    return [answers.get(key) for key in keys]


def reached_by(llm: Llm, settings: Judge | Converse) -> Llm:
    """`llm` at the address, and with the model and the longest answer, of another section of the params."""
    own = {"base_url": settings.base_url, "model": settings.model, "max_tokens": settings.max_tokens}
    return Llm(**vars(llm) | own)


def answers_file() -> Path:
    """The database of an endpoint's answers, in a folder of its own in DVC's cache.

    The temporary workspaces of experiments share that cache, so no answer is paid for twice, and `dvc gc` removes only
    files that DVC put there.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local_cache_dir) / "llm" / "answers.sqlite"


def estimate(llm: Llm, endpoint: Endpoint, bodies: Sequence[Mapping[str, Any]], requests: int) -> str:
    """A sentence with the cost of sending `bodies`, from the length of their texts and the longest answers.

    Args:
        llm: the model and its longest answer.
        endpoint: the prices.
        bodies: of the requests to send.
        requests: the number of all requests, with the cached ones.
    """
    texts = [message["content"] for body in bodies for message in body["messages"]]
    return (
        f"{llm.model} at {llm.base_url}: {requests:,} requests, {requests - len(bodies):,} of them answered before and "
        f"{len(bodies):,} to ask: {cost(llm, endpoint, texts)}"
    )


def cost(llm: Llm, endpoint: Endpoint, texts: Sequence[str]) -> str:
    """The tokens and the cost of asking `texts`, in words."""
    sent = sum(map(len, texts)) / CHARACTERS_A_TOKEN
    received = len(texts) * llm.max_tokens
    dollars = (sent * endpoint.input_price + received * endpoint.output_price) / 1e6
    return f"about {sent:,.0f} tokens in and at most {received:,} out, at most {dollars:,.2f} USD"


def _body(llm: Llm, request: Request) -> dict[str, Any]:
    return {
        "model": llm.model,
        "messages": [{"role": "user", "content": request.text}],
        "temperature": request.temperature,
        "max_tokens": llm.max_tokens,
        "seed": request.seed,
    }


def _key(llm: Llm, body: Mapping[str, Any]) -> str:
    text = json.dumps([llm.base_url, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _fetch(llm: Llm, endpoint: Endpoint, missing: Mapping[str, dict[str, Any]], database: sqlite3.Connection) -> None:
    """Send the requests `missing`; each thread commits an answer before it sends its next request.

    After a failure, requests that have been sent are still answered and committed, and no others are sent. Refusals are
    committed once there is an answer: of a setting that the endpoint does not take none may stay in the cache.
    """
    from tqdm import tqdm

    failure: Exception | None = None
    lock, failed, answered = Lock(), Event(), Event()
    refused: list[str] = []

    def keep(rows: Sequence[tuple[str, str | None]]) -> None:
        with database:
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def send(key: str, body: dict[str, Any]) -> None:
        if failed.is_set():
            return
        try:
            answer = _answer(client, body)
        except BaseException:
            # Not where the future is read: by then this thread would have sent its next request.
            failed.set()
            raise
        if answer is NO_COMPLETION:
            return
        with lock:
            if isinstance(answer, _Refusal):
                refused.append(key)
                if len(refused) >= MOST_REFUSED and not answered.is_set():
                    failed.set()
                    raise UserError(
                        f"{llm.base_url} refused the first {len(refused)} requests: {answer[:200]}: check the model, "
                        f"{llm.model!r}, and max_tokens, {llm.max_tokens}, in the same section of the params"
                    )
            else:
                answered.set()
                keep([(key, answer)])
            if answered.is_set():
                keep([(one, None) for one in refused])
                refused.clear()

    with _client(llm, endpoint) as client, ThreadPoolExecutor(endpoint.concurrency) as pool:
        futures = [pool.submit(send, key, body) for key, body in missing.items()]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="endpoint", unit="answer"):
                if error := future.exception():
                    failure = failure or _as_error(llm, endpoint, error)
        finally:
            # The pool waits for its threads, also on Ctrl-C, after which no request should be sent.
            failed.set()
    if failure:
        raise failure
    keep([(one, None) for one in refused])


class _Refusal(str):
    """What the endpoint says of a request that it refuses."""


class _NoCompletion(str):
    """Marks a response that is no chat completion, such as a proxy's error page; it is not cached."""


NO_COMPLETION = _NoCompletion()


def _answer(client: OpenAI, body: dict[str, Any]) -> str:
    import openai

    try:
        answer = client.chat.completions.create(**body).choices[0].message.content
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        return _Refusal(error)
    except (openai.APIResponseValidationError, AttributeError, IndexError, TypeError, json.JSONDecodeError):
        return NO_COMPLETION
    return answer if isinstance(answer, str) else NO_COMPLETION


def _client(llm: Llm, endpoint: Endpoint) -> OpenAI:
    """The official client, which retries with backoff and honours Retry-After."""
    from openai import OpenAI

    key = "none"
    if endpoint.key_variable is not None:
        key = os.environ.get(endpoint.key_variable, "")
        if not key:
            raise UserError(
                f"the environment variable {endpoint.key_variable} is not set: endpoint.key_variable names the "
                f"variable with the API key of {llm.base_url} (null if it needs none)"
            )
    return OpenAI(base_url=llm.base_url, api_key=key, max_retries=endpoint.retries, timeout=endpoint.timeout)


def _as_error(llm: Llm, endpoint: Endpoint, error: BaseException) -> Exception:
    """An error of the endpoint as a `UserError`; any other unchanged."""
    import openai

    if not isinstance(error, openai.OpenAIError):
        return error if isinstance(error, Exception) else UserError(repr(error))
    final = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
    advice = (
        f"check the address, the name of the model, {llm.model!r}, and the key in the environment variable "
        f"{endpoint.key_variable}"
        if isinstance(error, final)
        else "its answers are cached: run the same command again"
    )
    return UserError(f"{llm.base_url} does not answer ({type(error).__name__}: {str(error)[:200]}): {advice}")
