"""Changing a password, resetting it by mail, and how often anybody may guess."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app_server import PASSWORD, ApiUser, AppServer, running_server
from tests.mails import mails, token_in, wait_for_mail
from tests.results import Results
from tests.tables import rows

NEW = "another long password"
GUESSES = 10
PER_HOUR = 100


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def test_a_new_password_ends_every_other_sign_in(server: AppServer, ada: ApiUser) -> None:
    phone = server.anyone().post("/v1/tokens", json={"email": ada.email, "password": PASSWORD}).json()
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert ada.http.put("/v1/me/password", json=body).status_code == 204
    assert ada.http.get("/v1/me").status_code == 200
    assert server.anyone().get("/v1/me", headers=bearer(phone["access_token"])).status_code == 401
    refreshed = server.anyone().post("/v1/tokens/refresh", json={"refresh_token": phone["refresh_token"]})
    assert refreshed.status_code == 401
    assert sign_in(server, ada.email, PASSWORD).status_code == 401
    assert sign_in(server, ada.email, NEW).status_code == 201


def test_the_current_password_must_be_right(server: AppServer, ada: ApiUser) -> None:
    body = {"current_password": "not the password", "new_password": NEW}
    answer = ada.http.put("/v1/me/password", json=body)
    assert (answer.status_code, answer.json()["code"]) == (403, "wrong_password")
    assert "not the password" not in answer.text
    assert sign_in(server, ada.email, PASSWORD).status_code == 201


@pytest.mark.parametrize("password", ["short", "qwertyuiop", "Password123", "1234567890", "x" * 1001, "long enough\0"])
def test_a_password_that_others_guess_first_is_refused(server: AppServer, ada: ApiUser, password: str) -> None:
    changed = ada.http.put("/v1/me/password", json={"current_password": PASSWORD, "new_password": password})
    assert (changed.status_code, changed.json()["errors"][0]["field"]) == (422, "new_password")
    body = {"email": "grace@example.com", "password": password, "tenant_name": "Acme"}
    refused = server.anyone().post("/v1/signup", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "password")
    assert password not in refused.text


def test_the_address_is_no_password(server: AppServer) -> None:
    body = {"email": "grace.hopper@example.com", "tenant_name": "Acme"}
    for password in ("Grace.Hopper@example.com", "grace.hopper"):
        assert server.anyone().post("/v1/signup", json={**body, "password": password}).status_code == 422


def test_a_forgotten_password_is_reset_by_mail_once(server: AppServer, ada: ApiUser) -> None:
    assert ask_for_reset(server, ada.email.upper()).status_code == 202
    token = token_in(wait_for_mail(server, ada.email))
    assert token.startswith("easel_pr_")
    assert reset(server, token, "1234567890").status_code == 422
    assert reset(server, token, NEW).status_code == 204
    assert ada.http.get("/v1/me").status_code == 401
    assert sign_in(server, ada.email, NEW).status_code == 201
    again = reset(server, token, NEW)
    assert (again.status_code, again.json()["code"]) == (404, "not_found")
    # No operator had a part in it.
    ada.sign_in(NEW)
    entries = ada.http.get("/v1/audit").json()["data"]
    assert [(one["action"], one["actor"]["type"]) for one in entries] == [
        ("password.changed", "user"),
        ("tenant.created", "user"),
    ]


def test_every_reset_token_that_is_not_good_is_answered_alike(
    server: AppServer, ada: ApiUser, database_url: str
) -> None:
    ask_for_reset(server, ada.email)
    replaced = token_in(wait_for_mail(server, ada.email))
    ask_for_reset(server, ada.email)
    expired = token_in(wait_for_mail(server, ada.email, count=2))
    rows(database_url, "UPDATE password_resets SET expires_at = now()")
    tokens = [replaced, expired, "easel_pr_never", ada.signed_up["access_token"], ada.invite("g@example.com")["token"]]
    answers = [reset(server, token, NEW) for token in tokens]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.json()["detail"] for answer in answers}) == 1


def test_asking_for_a_reset_tells_nobody_who_has_an_account(server: AppServer, ada: ApiUser) -> None:
    known, unknown = ask_for_reset(server, ada.email), ask_for_reset(server, "nobody@example.com")
    assert (known.status_code, known.content) == (unknown.status_code, unknown.content) == (202, b"")
    wait_for_mail(server, ada.email)
    assert mails(server, "nobody@example.com") == []


def test_the_eleventh_guess_of_a_minute_is_not_looked_at(server: AppServer, ada: ApiUser, database_url: str) -> None:
    for email in (ada.email, "nobody@example.com"):
        guesses = [sign_in(server, email, "not the password") for _ in range(GUESSES)]
        assert {guess.status_code for guess in guesses} == {401}
        refused = sign_in(server, email, PASSWORD)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
    changed = ada.http.put("/v1/me/password", json={"current_password": PASSWORD, "new_password": NEW})
    assert (changed.status_code, changed.json()["code"]) == (429, "too_many_attempts")
    assert ask_for_reset(server, ada.email).status_code == 429
    later(database_url, "61 seconds")
    assert sign_in(server, ada.email, PASSWORD).status_code == 201


def test_of_many_guesses_at_once_ten_are_looked_at(server: AppServer, ada: ApiUser) -> None:
    with ThreadPoolExecutor(3 * GUESSES) as pool:
        guesses = [pool.submit(sign_in, server, ada.email, "not the password") for _ in range(3 * GUESSES)]
        answers = [guess.result() for guess in guesses]
    codes = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert codes.count((401, "unauthenticated")) <= GUESSES
    assert {status for status, _ in codes} == {401, 429}


def test_the_right_password_clears_the_minute(server: AppServer, ada: ApiUser) -> None:
    for _ in range(3):
        guesses = [sign_in(server, ada.email, "not the password") for _ in range(GUESSES - 1)]
        assert {guess.status_code for guess in guesses} == {401}
        assert sign_in(server, ada.email, PASSWORD).status_code == 201


@pytest.mark.slow
def test_sign_ins_of_one_user_at_once_do_not_wait_for_each_other_in_a_circle(server: AppServer) -> None:
    """Which of a user's two counts comes first is a matter of their hashes: of six users both orders are among them."""
    for user in [server.sign_up() for _ in range(6)]:
        with ThreadPoolExecutor(8) as pool:
            signing_in = [pool.submit(sign_in, server, user.email, PASSWORD) for _ in range(24)]
        assert {one.result().status_code for one in signing_in} <= {201, 429}


def test_an_address_is_guessed_a_hundred_times_an_hour_from_anywhere(
    server: AppServer, ada: ApiUser, database_url: str
) -> None:
    statement = "UPDATE attempt_counts SET count = :count WHERE expires_at > now() + interval '2 minutes'"
    assert sign_in(server, ada.email, "not the password").status_code == 401
    rows(database_url, statement, {"count": PER_HOUR})
    later(database_url, "61 seconds")
    refused = sign_in(server, ada.email, PASSWORD)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
    assert int(refused.headers["Retry-After"]) > 60
    later(database_url, "1 hour")
    assert sign_in(server, ada.email, PASSWORD).status_code == 201


def test_every_process_and_restart_knows_of_the_guesses(
    server: AppServer, ada: ApiUser, database_url: str, provider_url: str, tmp_path: Path
) -> None:
    for _ in range(GUESSES):
        sign_in(server, ada.email, "not the password")
    with running_server(database_url, provider_url, tmp_path / "second") as second:
        assert sign_in(second, ada.email, PASSWORD).status_code == 429


@pytest.mark.parametrize("path", ["/v1/password-resets", "/v1/invitations/acceptance"])
def test_tokens_are_guessed_ten_times_a_minute(server: AppServer, path: str) -> None:
    def guess() -> httpx.Response:
        if path == "/v1/password-resets":
            return reset(server, "easel_pr_guess", NEW)
        return server.anyone().post(path, json={"token": "easel_iv_guess", "password": NEW})

    assert {guess().status_code for _ in range(GUESSES)} == {404}
    refused = guess()
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")


def test_guesses_from_elsewhere_do_not_lock_the_owner_out(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path / "proxied", trusted_proxies=["127.0.0.1"]) as server:
        ada = server.sign_up()
        body = {"email": ada.email, "password": "not the password"}
        elsewhere = {"X-Forwarded-For": "203.0.113.9"}
        guesses = [server.anyone().post("/v1/tokens", json=body, headers=elsewhere) for _ in range(GUESSES + 1)]
        assert guesses[-1].status_code == 429
        assert sign_in(server, ada.email, PASSWORD).status_code == 201


@pytest.mark.prove
def test_known_and_unknown_addresses_take_as_long(
    server: AppServer, ada: ApiUser, database_url: str, results: Results
) -> None:
    times: dict[str, list[float]] = {ada.email: [], "nobody@example.com": []}
    for number in range(100):
        # In turns: the first one after the counts are deleted takes longer, whoever it is.
        for email, taken in sorted(times.items(), reverse=bool(number % 2)):
            began = time.perf_counter()
            sign_in(server, email, "not the password")
            taken.append(time.perf_counter() - began)
        rows(database_url, "DELETE FROM attempt_counts")
    known, unknown = (statistics.median(taken) for taken in times.values())
    spread = abs(known - unknown) / unknown
    kept = f"medians {known * 1000:.1f} and {unknown * 1000:.1f} ms, {spread:.1%} apart"
    results(27, "sign-ins of known and unknown addresses", tried="200 sign-ins", kept=kept)
    assert spread < 0.05


def sign_in(server: AppServer, email: str, password: str) -> httpx.Response:
    return server.anyone().post("/v1/tokens", json={"email": email, "password": password})


def ask_for_reset(server: AppServer, email: str) -> httpx.Response:
    return server.anyone().post("/v1/password-resets", json={"email": email})


def reset(server: AppServer, token: str, password: str) -> httpx.Response:
    return server.anyone().put("/v1/password-resets", json={"token": token, "new_password": password})


def later(database_url: str, interval: str) -> None:
    """As if so much time had passed."""
    statement = "UPDATE attempt_counts SET expires_at = expires_at - CAST(:interval AS interval)"
    rows(database_url, statement.replace(":interval", f"'{interval}'"))


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}
