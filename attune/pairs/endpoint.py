"""An OpenAI-compatible endpoint, asked once for everything: what it answered is kept on disk, whatever ends the run.

The cache is an SQLite file outside of what DVC removes. A row is committed with each answer, so a killed run loses what
was under way, `endpoint.concurrency` requests at most, and the next asks only for what is missing.
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

from attune.config.schema import Endpoint, Llm
from attune.runtime.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI

CHARACTERS_A_TOKEN = 4  # of English text, for the estimate


@dataclass(frozen=True)
class Request:
    """One question: the text of the user's message, its temperature and its seed."""

    text: str
    temperature: float
    seed: int


def ask(llm: Llm, endpoint: Endpoint, requests: Sequence[Request], cache: Path) -> list[str | None]:
    """The answers to `requests`, in their order, from the cache where they were asked before.

    A line with the number of requests and their estimated cost is printed before the first.

    Returns:
        N texts; None for a request that the endpoint refuses (HTTP 400 and 422, a content filter say) or answers with
        something that is no chat completion.

    Raises:
        UserError: the key's variable is not set, the endpoint rejects key or model, or it does not answer after
            `endpoint.retries` attempts more. What it answered until then is in the cache.
    """
    bodies = [_body(llm, request) for request in requests]
    keys = [_key(llm, body) for body in bodies]
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Written by the threads that ask, one at a time.
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


def estimate(llm: Llm, endpoint: Endpoint, bodies: Sequence[Mapping[str, Any]], requests: int) -> str:
    """What `bodies` cost, in a sentence: tokens by the length of the text, answers at their longest."""
    sent = sum(len(message["content"]) for body in bodies for message in body["messages"]) / CHARACTERS_A_TOKEN
    received = len(bodies) * llm.max_tokens
    cost = (sent * endpoint.input_price + received * endpoint.output_price) / 1e6
    return (
        f"{llm.model} at {llm.base_url}: {requests:,} requests, {requests - len(bodies):,} of them answered before and "
        f"{len(bodies):,} to ask: about {sent:,.0f} tokens in and at most {received:,} out, at most {cost:,.2f} USD"
    )


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
    """Ask for `missing`; an answer is committed before its thread asks again, after a failure if it is under way."""
    from tqdm import tqdm

    failure: Exception | None = None
    lock, given_up = Lock(), Event()

    def asked(key: str, body: dict[str, Any]) -> None:
        if given_up.is_set():
            return
        try:
            answer = _answer(client, body)
        except BaseException:
            # Here, and not where the future is read: this thread would have begun its next request by then.
            given_up.set()
            raise
        if answer is not RUBBISH:
            with lock, database:
                database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))

    with _client(llm, endpoint) as client, ThreadPoolExecutor(endpoint.concurrency) as pool:
        futures = [pool.submit(asked, key, body) for key, body in missing.items()]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="endpoint", unit="answer"):
                if error := future.exception():
                    failure = failure or _as_error(llm, endpoint, error)
        finally:
            # The pool waits for its threads; whoever interrupts the run wants no more requests.
            given_up.set()
    if failure:
        raise failure


class _Rubbish(str):
    """Marks what is no chat completion; it is not kept, since a proxy's page is no answer of the model."""


RUBBISH = _Rubbish()


def _answer(client: OpenAI, body: dict[str, Any]) -> str | None:
    import openai

    try:
        answer = client.chat.completions.create(**body).choices[0].message.content
    except (openai.BadRequestError, openai.UnprocessableEntityError):
        return None
    except (openai.APIResponseValidationError, AttributeError, IndexError, TypeError, json.JSONDecodeError):
        return RUBBISH
    return answer if isinstance(answer, str) else RUBBISH


def _client(llm: Llm, endpoint: Endpoint) -> OpenAI:
    """The official client, which backs off and honours Retry-After by itself."""
    from openai import OpenAI

    key = "none"
    if endpoint.key_variable is not None:
        key = os.environ.get(endpoint.key_variable, "")
        if not key:
            raise UserError(
                f"the environment variable {endpoint.key_variable} is not set: endpoint.key_variable names where the "
                f"key of {llm.base_url} is (null, if it needs none)"
            )
    return OpenAI(base_url=llm.base_url, api_key=key, max_retries=endpoint.retries, timeout=endpoint.timeout)


def _as_error(llm: Llm, endpoint: Endpoint, error: BaseException) -> Exception:
    """An error of the endpoint as a sentence; any other as it is."""
    import openai

    if not isinstance(error, openai.OpenAIError):
        return error if isinstance(error, Exception) else UserError(repr(error))
    final = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
    advice = (
        f"check llm.base_url, llm.model = {llm.model!r} and the key in the environment variable {endpoint.key_variable}"
        if isinstance(error, final)
        else "what it answered is kept: run the same command again"
    )
    return UserError(f"{llm.base_url} does not answer ({type(error).__name__}: {str(error)[:200]}): {advice}")
