"""Why a call to the provider failed and which setting mends it: for those who run the service, never for its users."""

import json
import re
from dataclasses import dataclass

import httpx2
import openai

from app.error_codes import ErrorCode

# Keys, organisations and projects; the provider shortens some of them with asterisks.
_SECRET = re.compile(r"\b(sk-|org-|proj_)[\w*.-]+")
LOGGED_CHARACTERS = 1_000

_MODEL = "set AGENT_DEFAULT_MODEL, or the AGENT_<KEY>_MODEL of its agent, to one that the provider serves"
_CAUSES: dict[ErrorCode, str] = {
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "The conversation is longer than {model} accepts.",
    ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND: "{address} has deleted what the request continues.",
    ErrorCode.UPSTREAM_CONFLICT: "{address} reported a conflict{status}.",
    ErrorCode.UPSTREAM_DISCONNECTED: "The connection to {address} broke before the end of the answer.",
    ErrorCode.UPSTREAM_FAILED: "{address} failed while it answered{status}: see its status page.",
    ErrorCode.UPSTREAM_NOT_FOUND: "{address} does not know {model}{status}: " + _MODEL + ".",
    ErrorCode.UPSTREAM_QUOTA: "The provider's account has no quota left{status}: add credit to it, or raise its limit.",
    ErrorCode.UPSTREAM_RATE_LIMITED: "The provider's account sends too many requests or tokens a minute{status}: raise"
    " its rate limit, or lower WORKER_CONCURRENCY.",
    ErrorCode.UPSTREAM_REJECTED: "{address} rejected the request{status}.",
    ErrorCode.UPSTREAM_TIMEOUT: "{address} sent nothing for longer than UPSTREAM_IDLE_SECONDS allows{status}.",
    ErrorCode.UPSTREAM_TOO_LARGE: "{address} rejected the request for its size{status}.",
    ErrorCode.UPSTREAM_UNAUTHORIZED: "{address} refused the key{status}: set OPENAI_API_KEY to one that it accepts.",
    ErrorCode.UPSTREAM_UNAVAILABLE: "{address} cannot serve now{status}: see its status page.",
    ErrorCode.UPSTREAM_UNREADABLE: "{address} sent what is no answer of the Responses API{status}: set OPENAI_BASE_URL"
    " to the address of the API, which mostly ends in /v1.",
}
_UNREACHABLE = (
    "{address} cannot be reached: set OPENAI_BASE_URL to the provider's address, or open the way to it in DNS, firewall"
    " and proxy."
)
_PAGE = (
    "{address} sent a page of HTML in place of the API's answer{status}: set OPENAI_BASE_URL to the address of the API,"
    " which mostly ends in /v1, and look whether a proxy answers in its place."
)


class PageReceived(Exception):
    """The provider's address answered a request with a page of HTML, as if all were well."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a page of HTML with HTTP {status}")
        self.status = status


@dataclass(frozen=True)
class Fault:
    """What is known of a failed call; `said` are the provider's words, or why there are none, without secrets."""

    said: str
    model: str | None = None
    address: str | None = None
    status: int | None = None
    provider_request_id: str | None = None
    page: bool = False
    unreachable: bool = False

    def cause(self, code: ErrorCode) -> str:
        text = _UNREACHABLE if self.unreachable else _PAGE if self._is_told_by_page(code) else _CAUSES.get(code)
        if text is None:
            return f"The provider reported {code}."
        return text.format(
            address=self.address or "The provider",
            model=f"the model {self.model!r}" if self.model else "a model or object that was named",
            status=f" (HTTP {self.status})" if self.status else "",
        )

    def _is_told_by_page(self, code: ErrorCode) -> bool:
        return self.page and code in (ErrorCode.UPSTREAM_UNREADABLE, ErrorCode.UPSTREAM_UNAVAILABLE)


def fault_of(error: openai.APIError | json.JSONDecodeError, model: str | None, *, unreachable: bool) -> Fault:
    """Of an exception of the SDK."""
    if not isinstance(error, openai.APIError):
        return Fault(str(error), model)
    request = error.request
    address = str(request.url.copy_with(userinfo=b"", query=None, fragment=None))
    page = page_of(error)
    status = error.status_code if isinstance(error, openai.APIStatusError) else page and page.status
    return Fault(
        _without_secrets(_words(error), request.headers.get("authorization", "")),
        model,
        address,
        status,
        error.request_id if isinstance(error, openai.APIStatusError) else None,
        page is not None,
        unreachable,
    )


def fault_in_stream(said: str, model: str | None = None) -> Fault:
    """Of a response that came, and said so itself."""
    return Fault(_without_secrets(said, ""), model)


def page_of(error: openai.APIError) -> PageReceived | None:
    """The page that came in place of an answer."""
    if isinstance(error, openai.APIStatusError) and _is_page(error.response):
        return PageReceived(error.status_code)
    return next((cause for cause in chain(error) if isinstance(cause, PageReceived)), None)


async def reject_page(response: httpx2.Response) -> None:
    """For each response, before the SDK sees it: it would read a page as a stream without events."""
    if response.is_success and _is_page(response):
        raise openai.APIConnectionError(request=response.request) from PageReceived(response.status_code)


def _is_page(response: httpx2.Response) -> bool:
    return response.headers.get("content-type", "").lower().startswith("text/html")


def chain(error: BaseException | None) -> list[BaseException]:
    """The exception and what it was raised from."""
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def _words(error: openai.APIError) -> str:
    """The SDK's own text of a lost connection says nothing: what it was raised from does."""
    if isinstance(error, openai.APIConnectionError):
        root = chain(error)[-1]
        return f"{type(root).__name__}: {root}"
    return str(error)


def _without_secrets(said: str, authorization: str) -> str:
    key = authorization.partition(" ")[2]
    cut = (said.replace(key, "***") if key else said)[:LOGGED_CHARACTERS]
    return _SECRET.sub(lambda match: f"{match[1]}***", cut)
