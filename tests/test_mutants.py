"""Promise 38: each mechanism that keeps a promise has a test that fails without it.

A mutant is the code with one mechanism taken out. The list is checked in every run, so that it stays true as the code
changes; `./just prove` runs the mutants, one at each processor, in copies of the project.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.results import Results

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("app", "docs", "migrations", "offline", "tests", "openapi.json", "pyproject.toml", ".env.example")
SECONDS = 280
"""For the tests of a mutant."""
FAILED_TESTS = 1
"""The exit code of pytest that says so; others are faults of the mutant."""


@dataclass(frozen=True)
class Mutant:
    """In `file`, `code` becomes `changed`, and of the tests that `tests` selects (`path` or `path::test`) one fails."""

    mechanism: str
    file: str
    code: str
    changed: str
    tests: str


MUTANTS = [
    Mutant(
        "a start that is refused before the plan is read tells how many runs may start",
        "app/middleware.py",
        "                    await self._tell_rate_of(scope)",
        "                    pass",
        "tests/usage/test_limits.py::test_a_bucket_of_runs_is_refilled_evenly_and_every_answer_tells_how_full_it_is",
    ),
    Mutant(
        "a call knows how many entries were booked with it",
        "app/usage/ledger.py",
        '            booked_entries=_given("count", Integer),\n',
        "",
        "tests/usage/test_operator.py::test_wrong_books_are_named",
    ),
    Mutant(
        "what is to be done is looked for",
        "app/worker/housekeeping.py",
        "                job.found.set()",
        "                pass",
        "tests/runs/test_idempotency.py::test_a_run_whose_launch_was_lost_is_swept_up_and_launched_once",
    ),
    Mutant(
        "an idle worker looks with one statement",
        "app/worker/housekeeping.py",
        "            await job.found.wait()\n",
        "",
        "tests/worker/test_idle.py",
    ),
    Mutant(
        "nobody asks whether a task is cancelled",
        "app/worker/quiet_worker.py",
        "async def _cancellation_listener(self)",
        "async def _unused(self)",
        "tests/worker/test_idle.py",
    ),
    Mutant(
        "a mail that is refused for good is not sent again",
        "app/worker/mail_tasks.py",
        " or isinstance(error, MailRefused)",
        "",
        "tests/accounts/test_mail_attempts.py::test_a_mail_that_is_refused_for_good_is_tried_once",
    ),
    Mutant(
        "a run keeps the id of the request that started it",
        "app/runs/service.py",
        '"request_id": origin.request_id',
        '"request_id": None',
        "tests/operation/test_logs.py::test_a_chat_takes_three_lines",
    ),
    Mutant(
        "a reader that is busy as it is woken does not wait afterwards",
        "app/event_log.py",
        "self._woken = True",
        "pass",
        "tests/runs/test_event_log.py::test_a_reader_that_is_busy_as_it_is_woken_does_not_wait",
    ),
    Mutant(
        "what is sent after a rejection is read slowly",
        "app/http_rejection.py",
        "LINGER_PAUSE_SECONDS = 0.05",
        "LINGER_PAUSE_SECONDS = 0",
        "tests/operation/test_http_limits.py::test_who_goes_on_pouring_is_not_cut_off_before_the_answer",
    ),
    Mutant(
        "what a request sets off is of its trace",
        "app/middleware.py",
        "if own := traces.traceparent():",
        "if own := None:",
        "tests/operation/test_traces.py::test_a_request_its_run_and_its_image_are_one_trace",
    ),
    Mutant(
        "no exception's words leave with a span",
        "app/open_telemetry.py",
        "            record_exception=False,\n",
        "",
        "tests/operation/test_traces.py::test_a_span_says_by_its_error_what_failed",
    ),
    Mutant(
        "no exception's words go to Sentry",
        "app/sentry.py",
        'KEPT_OF_EXCEPTION = ("type",',
        'KEPT_OF_EXCEPTION = ("value", "type",',
        "tests/operation/test_traces.py::test_an_unforeseen_fault_goes_to_sentry_without_its_words",
    ),
    Mutant(
        "a refresh is repeated by each key of SECRET_KEY",
        "app/accounts/service.py",
        "for key in settings.signing_keys()]",
        "for key in settings.signing_keys()[:1]]",
        "tests/operation/test_operators_book.py::test_the_signing_key_is_rotated_as_written_without_a_link_or_a_sign_in_lost",
    ),
    Mutant(
        "a request that reads a run names the one that started it",
        "app/runs/run_log.py",
        "else started_by)",
        "else None)",
        "tests/operation/test_logs_of_processes.py",
    ),
    Mutant(
        "a request that was sent ahead begins without tags",
        "app/logs.py",
        "    _tags.set({})",
        "    pass",
        "tests/operation/test_logs.py::test_a_request_that_was_sent_ahead_has_no_tags_of_the_one_before",
    ),
    Mutant(
        "a credential is no request id",
        "app/request_context.py",
        "_REQUEST_ID(given) and not _CREDENTIAL(given)",
        "_REQUEST_ID(given)",
        "tests/operation/test_logs.py::test_a_malformed_id_gets_a_new_one",
    ),
    Mutant(
        "no value begins a line of its own in the log",
        "app/logs.py",
        ".translate(_CONTROLS)",
        "",
        "tests/operation/test_logs.py::test_whatever_python_prints_is_a_line_of_json",
    ),
    Mutant(
        "a page of HTML is no answer of the provider",
        "app/provider/causes.py",
        "    if response.is_success and _is_page(response):",
        "    if False:",
        "tests/provider/test_operators_texts.py",
    ),
    Mutant(
        "the provider's words are logged without the key that was sent",
        "app/provider/causes.py",
        'said.replace(key, "***") if key else said',
        "said",
        "tests/provider/test_operators_texts.py",
    ),
    Mutant(
        "a missing right is noticed",
        "app/rights.py",
        "    if missing := sorted(expected - found):",
        "    if missing := sorted(found - found):",
        "tests/tenancy/test_rights.py",
    ),
    Mutant(
        "a policy that no migration made is noticed",
        "app/rights.py",
        'if right.startswith("policy ")',
        "if not right",
        "tests/tenancy/test_rights.py",
    ),
    Mutant(
        "readiness becomes both roles",
        "app/rights.py",
        "for role in (APP_ROLE, IDENTITY_ROLE) if",
        "for role in (APP_ROLE,) if",
        "tests/tenancy/test_rights.py",
    ),
    Mutant(
        "probes share one look",
        "app/readiness.py",
        "    if look is not None and (not look.task.done() or",
        "    if look is not None and False and (not look.task.done() or",
        "tests/tenancy/test_rights.py",
    ),
    Mutant(
        "readiness waits for no storage that hangs",
        "app/readiness.py",
        "timeout=max(left, 0))",
        "timeout=None)",
        "tests/tenancy/test_rights.py",
    ),
    Mutant(
        "doctor tells which models there are",
        "app/commands/parts.py",
        "    part.faults.extend(dict.fromkeys(fault for fault in found if fault))",
        "    del found",
        "tests/operation/test_doctor.py",
    ),
    Mutant(
        "doctor writes an object",
        "app/commands/parts.py",
        "        await write_read_delete(store)",
        "        pass",
        "tests/operation/test_doctor.py",
    ),
    Mutant(
        "loopback is reached past proxies",
        "app/cli.py",
        "    keep_loopback_direct()\n    try",
        "    try",
        "tests/operation/test_plain_messages.py::test_loopback_is_reached_past_the_proxies_of_the_environment",
    ),
    Mutant(
        "the embedded PostgreSQL accepts a folder with a space",
        "app/embedded_postgres.py",
        "    if _NEEDS_NO_QUOTES(str(data)):",
        "    if data:",
        "tests/operation/test_embedded_postgres.py",
    ),
    Mutant(
        "a pooler is noticed",
        "app/pool.py",
        "self._pooled = await is_pooled(connection)",
        "self._pooled = False",
        "tests/operation/test_pooler.py::test_a_pooler_in_between_makes_no_request_fail",
    ),
    Mutant(
        "a backup is counted",
        "app/backup.py",
        "        if held != expected:",
        "        if False:",
        "tests/operation/test_backup.py::test_a_dump_that_lacks_rows_is_no_backup",
    ),
    Mutant(
        "each table may be read for a backup",
        "app/backup.py",
        "    if unreadable:",
        "    if False:",
        "tests/operation/test_backup.py::test_what_a_backup_would_leave_out_is_named",
    ),
    Mutant(
        "a backup that fails leaves nothing",
        "app/backup.py",
        "        partial.unlink(missing_ok=True)",
        "        pass",
        "tests/operation/test_backup.py::test_a_dump_that_lacks_rows_is_no_backup",
    ),
    Mutant(
        "a refused login is no fault of the program",
        "app/errors.py",
        "    asyncpg.InvalidAuthorizationSpecificationError,\n",
        "",
        "tests/operation/test_owners.py::test_a_changed_password_is_answered_with_503_until_it_is_back",
    ),
    Mutant(
        "one install's login cannot enter another's database",
        "migrations/roles.sql",
        "    EXECUTE format('REVOKE CONNECT",
        "    NULL; -- EXECUTE format('REVOKE CONNECT",
        "tests/operation/test_owners.py::test_two_installs_share_a_server_and_no_row",
    ),
    Mutant(
        "a reconnect that cannot be matched starts nothing",
        "app/runs/idempotency.py",
        "    if last_event_id is not None and key is None:",
        "    if False:",
        "tests/runs/test_listing.py::test_a_reconnect_without_a_key_buys_nothing",
    ),
    Mutant(
        "runs are listed for their user",
        "app/runs/service.py",
        "    statement = select(Run).where(Run.user_id == actor.user_id)",
        "    statement = select(Run)",
        "tests/tenancy/test_strangers.py",
    ),
    Mutant(
        "masks are kept apart from the images",
        "app/attachments/service.py",
        '    statement = statement.where(Attachment.purpose == bindparam("purpose"))',
        "    pass",
        "tests/attachments/test_uploads.py::test_a_mask_is_kept_apart_from_the_images",
    ),
    Mutant(
        "an image that failed has a row",
        "app/worker/run_end.py",
        "                await insert_many(session, images)",
        "                pass",
        "tests/conversations/test_history.py::test_an_image_that_failed_is_in_its_message_and_nowhere_else",
    ),
    Mutant(
        "images keep their places in the text",
        "app/worker/message_text.py",
        "        self._places.append((len(str(self)), tool_call_id))",
        "        pass",
        "tests/conversations/test_history.py::test_text_and_images_come_back_in_the_order_in_which_they_came",
    ),
    Mutant(
        "an image without a place of its own gets one as it is deleted",
        "app/attachments/service.py",
        '        await session.execute(_KEEP_PLACE, {"object_id": row.id, "message_id": row.message_id})',
        "        pass",
        "tests/conversations/test_history.py::test_a_deleted_image_that_came_after_the_text_leaves_its_place",
    ),
    Mutant(
        "who makes an image's smaller copies signals its run",
        "app/worker/tasks.py",
        "                await ctx.broker.events.signal(run_id)",
        "                pass",
        "tests/worker/test_image_reports.py::test_small_copies_are_told_while_the_run_goes_on",
    ),
    Mutant(
        "links of one window are one link",
        "app/attachments/links.py",
        "        return moment // (whole / 2) * (whole / 2), int(moment) // half * half if half else 0",
        "        return moment, int(moment)",
        "tests/attachments/test_links.py::test_a_link_lives_between_half_and_the_whole_of_its_time_however_short_that_is",
    ),
    Mutant(
        "browsers keep what Google's links serve",
        "app/storage/gcs.py",
        "        blob.cache_control = self._cache_control\n",
        "",
        "tests/attachments/test_links.py::test_a_browser_may_keep_an_image_for_as_long_as_its_link_stays_the_same",
    ),
    Mutant(
        "in development none but local origins may read answers",
        "app/cors.py",
        r'LOCAL_ORIGINS = r"http://(localhost|127\.0\.0\.1)(:[0-9]{1,5})?"',
        'LOCAL_ORIGINS = ".*"',
        "tests/openapi/test_cors.py",
    ),
    Mutant(
        "limits are judged under a lock",
        "app/runs/admission.py",
        "counters.lock(session, plan, actor.tenant_id, actor.user_id, takes_run=True, with_bytes=with_bytes)",
        "counters.look(session, plan, actor.tenant_id, actor.user_id)",
        "tests/usage/test_races.py",
    ),
    Mutant(
        "what open runs hold counts as used",
        "app/usage/counters.py",
        "coalesce(sum(reserved_images), 0)::bigint AS reserved_images",
        "0::bigint AS reserved_images",
        "tests/usage/test_races.py",
    ),
    Mutant(
        "the ledger counts what it is given",
        "migrations/versions/0007_limits.py",
        "THEN c.spent_nano + excluded.spent_nano ELSE",
        "THEN c.spent_nano ELSE",
        "tests/usage/test_limits.py::test_spending_is_refused_before_it_is_spent",
    ),
    Mutant(
        "a further call is judged",
        "app/worker/calls.py",
        "need=need if self.turn else None)",
        "need=None)",
        "tests/usage/test_limits.py::test_a_further_call_enlarges_what_is_held_or_ends_the_run",
    ),
    Mutant(
        "an image that cannot be read shows what was paid for it",
        "app/worker/run_end.py",
        "                    await _charge(session, image)",
        "                    pass",
        "tests/usage/test_ledger.py::test_every_end_books_what_was_bought",
    ),
    Mutant(
        "a lost call is booked without what earlier calls have brought",
        "app/worker/call_book.py",
        "    recall(call, written, known, settled=settled, booked=booked)",
        "    recall(call, written, known, settled=(), booked=())",
        "tests/usage/test_lost_calls.py::test_what_earlier_calls_have_brought_is_not_booked_again",
    ),
    Mutant(
        "a response that is gone is booked by what came of it",
        "app/worker/call_book.py",
        "    recall(call, written, known, settled=settled, booked=booked)\n",
        "",
        "tests/usage/test_lost_calls.py::test_a_response_that_cannot_be_resumed_is_booked_by_what_came",
    ),
    Mutant(
        "a background response is named whether or not it may draw",
        "app/worker/calls.py",
        "            if self._run.background or call.estimate.image_model:",
        "            if call.estimate.image_model:",
        "tests/usage/test_lost_calls.py::test_a_run_that_goes_without_images_is_named_to_be_resumed_nonetheless",
    ),
    Mutant(
        "a run that is stopped waits for the row of the call that it was about to send",
        "app/worker/executor.py",
        "            await self.calls.until_opened()\n",
        "",
        "tests/usage/test_lost_calls.py::test_a_call_that_was_written_down_and_not_sent_costs_nothing",
    ),
    Mutant(
        "a picture whose row comes late shows its cost",
        "app/worker/run_end.py",
        "                await _charge_late(session, rows)",
        "                pass",
        "tests/usage/test_lost_calls.py::test_a_picture_whose_row_comes_late_shows_its_cost",
    ),
    Mutant(
        "who stops a run waits until the provider has named what it goes on with",
        "app/worker/executor.py",
        "            if may_go_on and not (lost.done() or loop.done()) and self.calls.awaits_name:",
        "            if False:",
        "tests/usage/test_ledger.py::test_what_is_stopped_before_the_provider_has_named_it_is_stopped_there",
    ),
    Mutant(
        "a request that was refused costs nothing until it is sent again",
        "app/provider/model.py",
        "            self._use.meter.on_refused()\n            seconds",
        "            seconds",
        "tests/usage/test_ledger.py::test_a_run_that_is_stopped_while_the_provider_is_busy_costs_nothing",
    ),
    Mutant(
        "another worker starts again what was not accepted yet",
        "app/worker/calls.py",
        "        starts_again = call is not None and call.refused and call.number == 1",
        "        starts_again = False",
        "tests/usage/test_lost_calls.py::test_a_run_of_which_nothing_was_accepted_yet_is_started_again",
    ),
    Mutant(
        "a living worker is given the time to settle what the sweep would",
        "app/worker/settling.py",
        "if moment - since >= seconds]",
        "if True]",
        "tests/usage/test_ledger.py::test_what_nobody_has_settled_is_settled_by_a_sweep",
    ),
    Mutant(
        "what a sweep settles is added to the run that ended without it",
        "app/worker/settling.py",
        "            _add(run, call, settlement.cost)\n",
        "",
        "tests/usage/test_ledger.py::test_what_nobody_has_settled_is_settled_by_a_sweep",
    ),
    Mutant(
        "what is settled is held no more",
        "app/worker/calls.py",
        "            **without_settled(self._run, booking.settlement),\n",
        "",
        "tests/usage/test_limits.py::test_what_a_call_has_used_is_held_no_more",
    ),
    Mutant(
        "the call of a deleted run is held",
        "app/usage/counters.py",
        "AND state <> 'settled'",
        "AND false",
        "tests/usage/test_limits.py::test_a_call_of_a_deleted_run_is_held_until_it_is_settled",
    ),
    Mutant(
        "streams of a lost process count no more",
        "app/usage/counters.py",
        "s.seen_at > clock_timestamp() - :silence",
        "s.seen_at > clock_timestamp() - 10 * :silence",
        "tests/usage/test_limits.py::test_the_streams_of_a_lost_process_are_free_again_within_half_a_minute",
    ),
    Mutant(
        "uploads are judged by what is stored",
        "app/attachments/uploads.py",
        "judge(standing.states, {Limit.STORED_BYTES: size}, standing.at)",
        "pass",
        "tests/usage/test_limits.py::test_what_is_stored_counts_with_its_copies_and_refuses_uploads_and_drawing",
    ),
    Mutant(
        "images are charged after their conversation is locked",
        "app/worker/held_run.py",
        "locks_conversation=parts.charges_images",
        "locks_conversation=False",
        "tests/worker/test_locks.py",
    ),
    Mutant(
        "a refused call costs nothing",
        "app/worker/open_call.py",
        "        if self.refused:",
        "        if False:",
        "tests/usage/test_ledger.py",
    ),
    Mutant(
        "cached tokens are not booked as new ones",
        "app/usage/reports.py",
        'count_of(usage, "input_tokens") - cached - written',
        'count_of(usage, "input_tokens")',
        "tests/usage/test_reports.py",
    ),
    Mutant(
        "the call before is settled with the next one",
        "app/worker/calls.py",
        "Booking(call=row, settlement=settlement, need=need if self.turn else None)",
        "Booking(call=row, need=need if self.turn else None)",
        "tests/usage/test_ledger.py",
    ),
    Mutant(
        "a deleted conversation's call is booked",
        "app/worker/calls.py",
        "                await settle(session, settlement)",
        "                pass",
        "tests/usage/test_ledger.py::test_what_a_deleted_conversation_was_drawing_is_booked",
    ),
    Mutant(
        "what nobody has settled is settled by a sweep",
        "app/worker/housekeeping.py",
        'Job("settle_calls", REPAIR_EVERY, partial(settle_calls, ctx, Seen()), due=LEFT_OPEN),',
        "",
        "tests/usage/test_ledger.py::test_what_nobody_has_settled_is_settled_by_a_sweep",
    ),
    Mutant(
        "a response is kept at the provider until its call is booked",
        "app/erasure/leftovers.py",
        "where(PROVIDER_DUE, ~unsettled)",
        "where(PROVIDER_DUE)",
        "tests/usage/test_ledger.py::test_what_nobody_has_settled_is_settled_by_a_sweep",
    ),
    Mutant(
        "members sum up their own usage alone",
        "app/usage/service.py",
        "    return actor.user_id",
        "    return user_id",
        "tests/usage/test_usage.py",
    ),
    Mutant(
        "a cursor belongs to its question",
        "app/usage/sums.py",
        "    if found[0] != seal:",
        "    if False:",
        "tests/usage/test_usage.py",
    ),
    Mutant(
        "a run is read by its user alone",
        "app/runs/service.py",
        "    visible = visible_to(actor.user_id, Run.user_id, Run.conversation_id)",
        "    visible = Run.id == run_id",
        "tests/tenancy/test_strangers.py",
    ),
    Mutant(
        "a conversation is read by its user alone",
        "app/conversations/service.py",
        "    return (Conversation.id == conversation_id) & visible_to(reader, Conversation.user_id, Conversation.id)",
        "    return Conversation.id == conversation_id",
        "tests/tenancy/test_strangers.py",
    ),
    Mutant(
        "an attachment is read by its user alone",
        "app/attachments/service.py",
        "select(Attachment).where(Attachment.id == object_id, _visible_to(actor))",
        "select(Attachment).where(Attachment.id == object_id)",
        "tests/tenancy/test_strangers.py",
    ),
    Mutant(
        "row security is forced on every table",
        "migrations/versions/0001*.py",
        'op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")',
        "pass",
        "tests/tenancy/test_row_security.py::test_every_table_is_under_forced_row_security",
    ),
    Mutant(
        "a connection whose statement was broken off is given up",
        "app/compiled.py",
        "    return not isinstance(error, Exception)",
        "    return False",
        "tests/operation/test_compiled.py",
    ),
    Mutant(
        "the server stops a statement that is broken off",
        "app/compiled.py",
        "await session.run_sync(_give_up, error)",
        "connection.invalidate(error)",
        "tests/operation/test_compiled.py",
    ),
    Mutant(
        "a savepoint begins before its first statement",
        "app/compiled.py",
        " or session.in_nested_transaction()",
        "",
        "tests/operation/test_compiled.py",
    ),
    Mutant(
        "nothing is executed in a session that has failed",
        "app/compiled.py",
        " or not session.is_active",
        "",
        "tests/operation/test_compiled.py",
    ),
    Mutant(
        "the rate of a refused start is not waited for",
        "app/runs/rate.py",
        "TELL_SECONDS = 1.0",
        "TELL_SECONDS = 60.0",
        "tests/usage/test_limits.py::test_a_refusal_does_not_wait_for_a_rate_that_cannot_be_read",
    ),
    Mutant(
        "what a session holds is written before a compiled statement",
        "app/compiled.py",
        "    if session.new or session.dirty or session.deleted:",
        "    if False:",
        "tests/operation/test_compiled.py",
    ),
    Mutant(
        "a transaction drops to the rights of a role",
        "app/db.py",
        "_SET_RIGHTS.begin(connection, _rights(session)).one().clock",
        "now()",
        "tests/tenancy/test_tenant_sessions.py::test_each_door_has_its_role_and_leaves_it_at_the_end",
    ),
    Mutant(
        "an earlier attempt is fenced out of the events",
        "app/redis_event_log.py",
        "if attempt < fence then return -1 end",
        "",
        "tests/runs/test_event_log.py::test_an_earlier_attempt_writes_nothing_once_a_later_one_has_fenced_the_log",
    ),
    Mutant(
        "an idempotency key starts one run",
        "app/runs/idempotency.py",
        "    if found and found.expires_at > now():",
        "    if False and found:",
        "tests/runs/test_idempotency.py::test_a_replay_is_the_first_answer_though_the_run_has_ended",
    ),
    Mutant(
        "an idempotency key belongs to its body",
        "app/runs/idempotency.py",
        "    if found.fingerprint != _fingerprint(request):",
        "    if False:",
        "tests/runs/test_idempotency.py::test_a_key_with_another_body_is_refused",
    ),
    Mutant(
        "a link ends",
        "app/attachments/file_tokens.py",
        "    if expires <= now.timestamp():",
        "    if expires <= 0:",
        "tests/attachments/test_links.py::test_a_conversation_read_a_day_later_shows_every_image_though_no_link_was_kept",
    ),
    Mutant(
        "a link's token is signed",
        "app/attachments/file_tokens.py",
        "hmac.compare_digest(mac.encode(), _mac(key, payload).encode())",
        "mac",
        "tests/attachments/test_links.py::test_a_link_reads_one_object_for_minutes_and_does_nothing_else",
    ),
    Mutant(
        "a key does what its scopes allow",
        "app/identity/service.py",
        "    if scopes is not None and permission.scope not in scopes:",
        "    if False:",
        "tests/tenants/test_permissions.py::test_a_key_may_do_what_its_scope_opens_and_never_what_needs_a_user",
    ),
    Mutant(
        "a role does what the table says",
        "app/identity/service.py",
        "        if not self.role.covers(permission.role):",
        "        if False:",
        "tests/tenants/test_permissions.py::test_each_role_may_do_what_the_table_says_and_no_more",
    ),
    Mutant(
        "a suspended tenant is closed",
        "app/identity/service.py",
        "        if membership.suspended:",
        "        if False:",
        "tests/tenants/test_permissions.py::test_a_suspended_tenant_is_closed_to_its_members_and_keys",
    ),
    Mutant(
        "owners are locked before one of them goes",
        "app/tenants/service.py",
        "        .with_for_update()\n    )\n    locked",
        "    )\n    locked",
        "tests/tenants/test_members.py::test_of_owners_who_demote_each_other_at_once_one_is_left",
    ),
    Mutant(
        "what is shared is changed by its author alone",
        "app/identity/sharing.py",
        "    if user_id != actor.user_id:",
        "    if False:",
        "tests/tenancy/test_sharing.py::test_only_its_user_changes_it",
    ),
    Mutant(
        "the stream of who loses access ends",
        "app/runs/reader.py",
        "            if lost.is_set():",
        "            if False:",
        "tests/tenancy/test_sharing.py::test_the_open_stream_of_who_loses_access_ends",
    ),
    Mutant(
        "an invitation is used up",
        "app/accounts/acceptance.py",
        "    if (await session.execute(used.returning(Invitation.id))).one_or_none() is None:",
        "    if False:",
        "tests/tenants/test_invitations.py::test_every_token_that_is_not_good_is_answered_alike",
    ),
    Mutant(
        "guesses are counted",
        "app/identity/attempts.py",
        "        if exceeded:",
        "        if False:",
        "tests/accounts/test_passwords.py::test_the_eleventh_guess_of_a_minute_is_not_looked_at",
    ),
    Mutant(
        "a revoked key is refused",
        "app/identity/service.py",
        "ApiKey.secret_hash == _HASH, ApiKey.revoked_at.is_(None)",
        "ApiKey.secret_hash == _HASH",
        "tests/tenancy/test_strangers.py::test_a_revoked_key_is_refused_with_the_next_request",
    ),
    Mutant(
        "what an erased tenant's members may do ends at once",
        "app/erasure/service.py",
        "delete(Membership).returning(Membership.user_id, Membership.role)",
        "select(Membership.user_id, Membership.role)",
        "tests/erasure/test_erasure.py::test_nothing_of_an_erased_tenant_is_left_and_its_neighbour_is_as_before",
    ),
    Mutant(
        "the provider's responses are kept in mind",
        "app/worker/calls.py",
        "        self.kept[response_id] = ProviderObjectKind.RESPONSE",
        "        pass",
        "tests/erasure/test_leftovers.py::test_a_deleted_conversation_takes_what_the_provider_has_of_it",
    ),
    Mutant(
        "an upload that lands too late takes itself back",
        "app/attachments/uploads.py",
        "    if not is_there:",
        "    if False:",
        "tests/erasure/test_interruptions.py::test_an_upload_that_lands_after_its_tenant_is_gone_goes_too",
    ),
    Mutant(
        "who was removed stores no image",
        "app/attachments/uploads.py",
        "            await _require_member(session, actor)\n",
        "",
        "tests/erasure/test_interruptions.py::test_who_was_removed_while_they_sent_an_image_leaves_none",
    ),
    Mutant(
        "a stolen refresh token ends its family",
        "app/accounts/service.py",
        "    await session.execute(update(SignIn).where(SignIn.id == token.sign_in_id).values(ended_at=now()))\n",
        "",
        "tests/accounts/test_accounts.py::test_a_refresh_token_used_again_later_ends_the_whole_family",
    ),
    Mutant(
        "secrets lie in the database as hashes",
        "app/identity/credentials.py",
        "    return hashlib.sha256(secret.encode()).digest()",
        "    return secret.encode()",
        "tests/accounts/test_accounts.py::test_no_secret_lies_in_the_database",
    ),
    Mutant(
        "a wrong password is refused",
        "app/accounts/service.py",
        "    if user is None or not matches:",
        "    if user is None:",
        "tests/accounts/test_accounts.py::test_a_wrong_password_and_an_unknown_person_are_answered_alike",
    ),
    Mutant(
        "a body is counted as it comes",
        "app/middleware.py",
        "            if seen > limit.max_bytes:",
        "            if seen > 10**12:",
        "tests/attachments/test_uploads.py::test_a_file_over_the_limit_is_refused_by_its_length_and_as_it_comes",
    ),
    Mutant(
        "a refusal is small",
        "app/problems.py",
        "        if fitting and size > MAX_FAULTS_BYTES:",
        "        if False:",
        "tests/test_bad_input.py::test_the_first_faults_are_told_and_all_are_counted",
    ),
    Mutant(
        "a tenant's waiting runs are limited",
        "app/runs/service.py",
        '    _check_room("tenant", settings.tenant_queued_runs, waiting)',
        "    pass",
        "tests/test_limits.py::test_so_many_runs_of_a_tenant_wait",
    ),
    Mutant(
        "a stream releases its permit",
        "app/runs/reader.py",
        "    with permit:",
        "    if permit:",
        "tests/test_limits.py::test_a_user_follows_so_many_runs_at_once",
    ),
    Mutant(
        "strangers are counted by address",
        "app/identity/anonymous.py",
        "    if wait:",
        "    if False:",
        "tests/test_limits.py::test_one_address_signs_in_so_often_a_minute",
    ),
    Mutant(
        "only trusted proxies name a client's address",
        "app/server.py",
        "forwarded_allow_ips=settings.trusted_proxies",
        'forwarded_allow_ips="*"',
        "tests/test_limits.py::test_behind_a_trusted_proxy_each_client_has_a_bucket",
    ),
    Mutant(
        "an export is seen by who made it",
        "app/exports/service.py",
        "    seen = (Export.scope == ExportScope.ME) & (Export.user_id == actor.user_id)",
        "    seen = Export.scope == ExportScope.ME",
        "tests/tenancy/test_strangers.py",
    ),
    Mutant(
        "an export's rows are those of one moment",
        "app/exports/archive.py",
        '"isolation_level": "REPEATABLE READ"',
        '"isolation_level": "READ COMMITTED"',
        "tests/exports/test_export_workers.py::test_rows_are_those_of_one_moment",
    ),
    Mutant(
        "an attempt that lost its export ends nothing",
        "app/exports/lease.py",
        "    held = (Export.id == export.id, Export.attempt == export.attempt, Export.status == ExportStatus.RUNNING)",
        "    held = (Export.id == export.id,)",
        "tests/exports/test_export_workers.py::test_what_a_lost_worker_began_another_finishes",
    ),
    Mutant(
        "one's own archive holds what is one's own",
        "app/exports/rows.py",
        "    if export.scope == ExportScope.ME:",
        "    if False:",
        "tests/exports/test_exports.py::test_ones_own_archive_has_ones_own_conversations_and_what_belongs_to_them",
    ),
    Mutant(
        "white space inside of base64 is skipped",
        "app/provider/image_bytes.py",
        'pybase64.b64decode("".join(base64.split()), validate=True)',
        "pybase64.b64decode(base64, validate=True)",
        "tests/provider/test_wire_tap.py::test_what_was_not_tapped_is_decoded_alike",
    ),
    Mutant(
        "links go by Postgres' clock",
        "app/clock.py",
        "        self._ahead = shown - _now()",
        "        pass",
        "tests/attachments/test_links.py::test_a_process_whose_clock_is_wrong_makes_links_that_work_and_end_as_all_do",
    ),
    Mutant(
        "a large body is read from a known credential alone",
        "app/middleware.py",
        'await self._check_credential(scope["app"].state.database, headers["authorization"])',
        "None",
        "tests/test_limits.py::test_a_large_body_is_not_even_read_from_a_credential_that_nobody_has",
    ),
    Mutant(
        "what was given as a secret is not repeated",
        "app/problems.py",
        'any(part == "key" or any(word in part for word in SECRET_FIELDS) for part in location)',
        "False",
        "tests/test_bad_input.py::test_a_sign_up_that_cannot_be_is_refused_by_field",
    ),
    Mutant(
        "images that the database refuses are tried ever later",
        "app/worker/recovery.py",
        "            backoff.pause(run_id)",
        "            pass",
        "tests/worker/test_paid_images.py::test_images_that_the_database_refuses_are_tried_again_ever_later",
    ),
    Mutant(
        "only listed origins may read answers",
        "app/main.py",
        "allow_origins=settings.cors_origins",
        'allow_origins=["*"]',
        "tests/openapi/test_cors.py",
    ),
    Mutant(
        "every answer has its guards",
        "app/middleware.py",
        "    guards = [header for header in SECURITY_HEADERS if header[0] not in names]",
        "    guards = []",
        "tests/operation/test_edges.py::test_every_answer_has_the_guards",
    ),
    Mutant(
        "a migration waits for a lock in short turns",
        "app/schema_steps.py",
        "f\"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'\"",
        '"SELECT 1"',
        "tests/operation/test_migrate_traffic.py::test_who_comes_after_a_migration_does_not_wait_for_its_lock",
    ),
    Mutant(
        "a migration that got no lock tries again",
        "app/schema_steps.py",
        "not in _LOCK_NOT_AVAILABLE:",
        '!= "":',
        "tests/operation/test_migrate_traffic.py::test_who_comes_after_a_migration_does_not_wait_for_its_lock",
    ),
    Mutant(
        "a migration does no step twice",
        "app/schema_steps.py",
        "        if step.name not in done:",
        "        if True:",
        "tests/operation/test_migrate_kills.py::test_a_killed_migration_goes_on_where_it_was",
    ),
    Mutant(
        "a half built index is dropped",
        "app/schema_steps.py",
        'connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")',
        "return",
        "tests/operation/test_migrate_kills.py::test_an_index_that_was_left_half_built_is_built_anew",
    ),
    Mutant(
        "a migration sees the rows of each tenant",
        "app/schema_steps.py",
        "        _enter(connection, APP_ROLE, tenant)\n",
        "",
        "tests/operation/test_migrate_kills.py::test_an_owner_whom_row_security_binds_migrates_every_row",
    ),
    Mutant(
        "a right is given for one transaction of a migration",
        "app/schema_steps.py",
        'connection.exec_driver_sql(f"REVOKE {grant} FROM {APP_ROLE}")',
        "pass",
        "tests/operation/test_migrate_kills.py::test_an_owner_whom_row_security_binds_migrates_every_row",
    ),
    Mutant(
        "a foreign key is validated by a role that sees the rows",
        "app/schema_steps.py",
        "        if connection.execute(text(orphan)).first() is not None:",
        "        if False:",
        "tests/operation/test_migrate_kills.py::test_an_owner_whom_row_security_binds_migrates_every_row",
    ),
    Mutant(
        "what is counted already is not counted again",
        "migrations/versions/0007_limits.py",
        "  today, images - coalesce(",
        "  today, images - 0 * coalesce(",
        "tests/operation/test_migrate_kills.py::test_usage_is_counted_once_though_its_step_is_killed",
    ),
    Mutant(
        "a generated column that became plain is set by a trigger",
        "migrations/versions/0010_stored_bytes.py",
        "CREATE OR REPLACE TRIGGER set_stored_bytes\nBEFORE INSERT OR UPDATE OF",
        "CREATE OR REPLACE TRIGGER set_stored_bytes\nBEFORE UPDATE OF",
        "tests/operation/test_migrate_kills.py::test_a_generated_column_becomes_one_that_a_trigger_sets",
    ),
    Mutant(
        "an answer about a response that is no JSON is the provider's fault",
        "app/provider/stored.py",
        "    except (AttributeError, TypeError) as error:",
        "    except ZeroDivisionError as error:",
        "tests/provider/test_stored.py",
    ),
    Mutant(
        "what the provider sends is storable",
        "app/provider/texts.py",
        '    return storable(data) if "\\\\u0000" in text else data',
        "    return data",
        "tests/provider/test_wire_tap.py::test_what_utf_8_or_postgres_does_not_take_is_left_out",
    ),
    Mutant(
        "an end whose commit's answer was lost is known again",
        "app/worker/held_run.py",
        "        ended = (await _WRITTEN.execute(session, of_it)).scalar()",
        "        del of_it",
        "tests/worker/test_lost_answers.py",
    ),
    Mutant(
        "what a call held is given back once",
        "app/worker/held_run.py",
        "case((awaits_settlement(), func.greatest(column - given, 0)), else_=column)",
        "func.greatest(column - given, 0)",
        "tests/worker/test_lost_answers.py::test_what_a_call_held_is_given_back_once",
    ),
    Mutant(
        "an error of a compiled statement shows no value",
        "app/compiled.py",
        "    hide_value(error)",
        "    pass",
        "tests/operation/test_compiled.py::test_a_value_that_is_refused_is_not_in_the_log",
    ),
    Mutant(
        "an error of the session's shows no value",
        "app/pool.py",
        '    event.listen(engine.sync_engine, "handle_error", _hide_value)',
        "",
        "tests/operation/test_compiled.py::test_a_value_that_is_refused_is_not_in_the_log",
    ),
    Mutant(
        "a server that does not listen says so",
        "app/server.py",
        "            require_listening(sockets or (), self.config.host, self.config.port)",
        "            self.should_exit = True",
        "tests/operation/test_listening.py",
    ),
    Mutant(
        "a process writes the events of all its runs at once",
        "app/redis_event_log.py",
        "batch, self._pending = self._pending[:PIPELINE], self._pending[PIPELINE:]",
        "batch, self._pending = self._pending[:1], self._pending[1:]",
        "tests/runs/test_event_log.py::test_a_process_writes_and_reads_all_its_runs_at_once",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mechanism)
def test_the_list_of_mutants_is_true(mutant: Mutant) -> None:
    """Their code is there, once, and so are their tests."""
    assert len(MUTANTS) >= 20
    assert _file(ROOT, mutant).read_text().count(mutant.code) == 1
    path, _, test = mutant.tests.partition("::")
    assert f"def {test}" in (ROOT / path).read_text()


Runs = dict[str, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Runs]:
    """The tests of each mutant that was asked for, as they run: one at each processor, in a copy of its own."""
    copies: SimpleQueue[Path] = SimpleQueue()
    places = os.cpu_count() or 1
    for _ in range(places):
        copies.put(_copied(tmp_path_factory.mktemp("mutants")))
    by_name = {f"{test_without_its_mechanism_a_test_fails.__name__}[{one.mechanism}]": one for one in MUTANTS}
    with ThreadPoolExecutor(places) as pool:
        # In the order in which they are waited for, which is a random one.
        asked = [by_name[item.name] for item in request.session.items if item.name in by_name]
        yield {mutant.mechanism: pool.submit(_tested, mutant, copies) for mutant in asked}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def kills(request: pytest.FixtureRequest, results: Results) -> Generator[list[str]]:
    """The mutants that turned their tests red."""
    killed: list[str] = []
    yield killed
    name = test_without_its_mechanism_a_test_fails.__name__
    asked = sum(item.name.startswith(name) for item in request.session.items)
    results(38, "mutants", tried=f"{asked} mechanisms taken out, one at a time", kept=f"{len(killed)} noticed")


@pytest.mark.prove
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mechanism)
def test_without_its_mechanism_a_test_fails(mutant: Mutant, runs: Runs, kills: list[str]) -> None:
    done = runs[mutant.mechanism].result()
    assert done.returncode == FAILED_TESTS, done.stdout[-2000:]
    kills.append(mutant.mechanism)


def _copied(folder: Path) -> Path:
    """The project without its tests' databases and environment, to be changed at will."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def _tested(mutant: Mutant, copies: SimpleQueue[Path]) -> subprocess.CompletedProcess[str]:
    copy = copies.get()
    file = _file(copy, mutant)
    original = file.read_text()
    file.write_text(original.replace(mutant.code, mutant.changed))
    try:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutant.tests],
            cwd=copy,
            # The copy before the checkout that is installed; others are tested meanwhile.
            env={name: value for name, value in os.environ.items() if name != "EASEL_PROVE"}
            | {"PYTHONPATH": str(copy), "TEST_TIME_SCALE": "2"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    finally:
        file.write_text(original)
        copies.put(copy)


def _file(root: Path, mutant: Mutant) -> Path:
    (found,) = root.glob(mutant.file)
    return found
