"""A conversation with a model behind an OpenAI-compatible endpoint, such as that of `python -m attune serve`."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from attune.config.schema import Generate
from attune.data.dialogue import Turn
from attune.runtime.errors import UserError, reason

KEY = "ATTUNE_KEY"
"""The environment variable with the key that a server asks for and a client sends; it is written nowhere."""
TIMEOUT = 120.0
"""Seconds that the endpoint may be silent."""


@dataclass
class Remote:
    """A model of an endpoint and the turns so far; `say` adds the user's turn and the model's."""

    url: str
    model: str
    settings: Generate
    turns: list[Turn] = field(default_factory=list)

    def say(self, text: str) -> tuple[Generator[str], int]:
        """Add a user turn and the model's reply, as far as it is read.

        Returns:
            The reply in pieces as they arrive, and 0: the endpoint gets all turns.

        Raises:
            UserError: while the reply is read: the endpoint cannot be reached, refuses, breaks off, or sends something
                else.
        """
        return self._reply([*self.turns, Turn("user", text)]), 0

    def _reply(self, turns: list[Turn]) -> Generator[str]:
        import openai

        from attune.models.chat_template import messages

        settings, chat, reply = self.settings, messages(turns), ""
        key = os.environ.get(KEY) or "none"
        asked: dict[str, Any] = {"model": self.model, "messages": chat, "max_tokens": settings.max_new_tokens}
        drawn = {"temperature": settings.temperature, "top_p": settings.top_p}
        asked |= drawn if settings.do_sample else {"temperature": 0}
        try:
            with (
                openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=TIMEOUT) as client,
                client.chat.completions.create(**asked, stream=True) as stream,
            ):
                for event in stream:
                    piece = event.choices[0].delta.content if event.choices else None
                    if not piece:
                        continue
                    reply += piece
                    # Only here: chat templates refuse an empty turn.
                    self.turns = [*turns, Turn("assistant", reply)]
                    yield piece
        except openai.AuthenticationError:
            raise UserError(f"{self.url} refuses the key: set the environment variable {KEY} to its key") from None
        except openai.APITimeoutError:
            raise UserError(f"{self.url} is silent for {TIMEOUT:.0f} seconds: is another reply in progress?") from None
        except openai.APIConnectionError:
            told = "broke off" if reply else f"cannot be reached: `python -m attune serve {self.model}` starts it"
            raise UserError(f"{self.url} {told}") from None
        except openai.APIStatusError as error:
            raise UserError(f"{self.url} refuses, status {error.status_code}: {error.response.text[:300]}") from None
        except openai.OpenAIError as error:
            raise UserError(f"{self.url} refuses: {reason(error)[:300]}") from None
        except (json.JSONDecodeError, AttributeError, IndexError, TypeError) as error:
            raise UserError(
                f"{self.url} sends no chat completion ({reason(error)[:100]}): is it an endpoint?"
            ) from None
