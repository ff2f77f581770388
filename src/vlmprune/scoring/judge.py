"""A language model as judge, behind any URL that speaks OpenAI's chat completions.

Answers are cached by their content: the same words to the same model are asked once, whatever run they come from. A
server that is busy or fails is asked again, later each time; one that refuses is an error at once.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlmprune.core.errors import Option, UserError

KEY = "OPENAI_API_KEY"
ATTEMPTS = 6
AT_ONCE = 4
_LONGEST_WAIT = 60.0  # seconds
_TIMEOUT = 120.0  # seconds for one answer
_ENDPOINT = "/chat/completions"
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 529}


@dataclass
class Cost:
    """What judging took: calls answered by the server, answers from the cache, tokens read and written."""

    calls: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __str__(self) -> str:
        tokens = f"{self.tokens_in:,} tokens read and {self.tokens_out:,} written"
        return f"{self.calls:,} calls, {tokens}; {self.cached:,} answers from the cache"


@dataclass
class Judge:
    """A model that is asked.

    Attributes:
        url: of the server, "https://api.openai.com/v1"; the key is taken from OPENAI_API_KEY.
        model: its name there.
        cache: the file that keeps its answers, one a line.
        pause: seconds before the first repeat; each next waits twice as long.
        cost: so far.

    Raises:
        UserError: the URL is none, or the cache cannot be read.
    """

    url: str
    model: str
    cache: Path
    pause: float = 1.0
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            example = Option("judge", "https://api.openai.com/v1")
            raise UserError(Option("judge", self.url), " is not a URL: give one such as ", example, ".")
        self._lock = threading.Lock()
        self._known = _read_cache(self.cache)

    def answers(self, prompts: Iterable[str]) -> list[str]:
        """The answers to prompts, in order. Those that came before an error stay in the cache.

        Raises:
            UserError: the server refuses, or fails again and again.
        """
        asked = list(prompts)
        new = list(dict.fromkeys(prompt for prompt in asked if prompt_key(self.model, prompt) not in self._known))
        self.cost.cached += len(asked) - len(new)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                list(pool.map(self._ask, new))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return [self._known[prompt_key(self.model, prompt)] for prompt in asked]

    def _ask(self, prompt: str) -> None:
        message = {"role": "user", "content": prompt}
        reply, usage = self._post({"model": self.model, "messages": [message], "temperature": 0})
        key = prompt_key(self.model, prompt)
        line = {"key": key, "model": self.model, "reply": reply, "usage": usage}
        with self._lock:
            self._known[key] = reply
            self.cost.calls += 1
            self.cost.tokens_in += int(usage.get("prompt_tokens") or 0)
            self.cost.tokens_out += int(usage.get("completion_tokens") or 0)
            try:
                with self.cache.open("a", encoding="utf-8", newline="\n") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            except OSError as error:
                where = repr(str(self.cache))
                raise UserError(f"The judge's answers cannot be kept in {where}: {error.strerror or error}.") from error

    def _post(self, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The reply and its usage."""
        why = ""
        for attempt in range(ATTEMPTS):
            wait = min(_LONGEST_WAIT, self.pause * 2**attempt)
            try:
                return _content(self._send(payload))
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}"
                said = _message(error)
                if error.code == 400 and "temperature" in said and "temperature" in payload:
                    payload = {name: value for name, value in payload.items() if name != "temperature"}
                    continue
                if error.code not in _BUSY:
                    hint = f" (the key is read from {KEY})" if error.code in (401, 403) else ""
                    raise UserError(f"The judge at {self.url} refuses: {why}{said and f', {said}'}{hint}.") from None
                wait = max(wait, min(_LONGEST_WAIT, _retry_after(error)))
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait)
        raise UserError(
            f"The judge at {self.url} has not answered in {ATTEMPTS} attempts ({why}): its earlier answers are kept, "
            "and the same command asks for the rest."
        )

    def _send(self, payload: dict[str, Any]) -> bytes:
        base = self.url.rstrip("/")
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        url = base if base.endswith(_ENDPOINT) else base + _ENDPOINT
        request = urllib.request.Request(url, json.dumps(payload).encode(), headers)  # the scheme is checked above
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            return response.read()


def prompt_key(model: str, prompt: str) -> str:
    """What an answer is cached by."""
    return sha256(f"{model}\n{prompt}".encode()).hexdigest()[:24]


def _content(body: bytes) -> tuple[str, dict[str, Any]]:
    """The text and usage of a completion.

    Raises:
        ValueError: it is not one, or an empty one.
    """
    try:
        parsed = json.loads(body)
        text, usage = parsed["choices"][0]["message"]["content"], parsed.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("what it sends is not a chat completion") from None
    if not isinstance(text, str) or not text.strip() or not isinstance(usage, dict):
        raise ValueError("it sends an empty answer")
    return text, usage


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says of an error, as far as it is short."""
    try:
        said = json.loads(error.read())["error"]
        text = said if isinstance(said, str) else str(said["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return " ".join(text.split()).rstrip(".")[:200]


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return max(0.0, float(error.headers.get("Retry-After", "0")))
    except ValueError:  # a date: the doubling pause will do
        return 0.0


def _read_cache(path: Path) -> dict[str, str]:
    """Answers by key. A line that was not written to its end is passed over."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The judge's answers in {str(path)!r} cannot be read: {error}.") from None
    for line in lines:
        try:
            entry = json.loads(line)
            found[entry["key"]] = str(entry["reply"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
