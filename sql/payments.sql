-- Payments: authorised in one transaction (A), settled in another (B), and read back by whoever waits.
--
-- Locks are taken in one order everywhere: watermark, balances, payments, reservations, each by id.

-- name: lock_balances
-- Balances of these users, locked in id order.
SELECT user_id, amount, set_aside, version
FROM balances
WHERE user_id = ANY ($1::uuid[])
ORDER BY user_id
FOR NO KEY UPDATE;

-- name: lock_balances_of_payments
-- Balances of whoever pays these, locked in id order.
SELECT user_id, amount, set_aside, version
FROM balances
WHERE user_id IN (SELECT user_id FROM payments WHERE payment_id = ANY ($1::uuid[]))
ORDER BY user_id
FOR NO KEY UPDATE;

-- name: lock_payments
-- These payments, locked in id order.
SELECT payment_id, reservation_id, user_id, fence, status, final_amount, balance_amount
FROM payments
WHERE payment_id = ANY ($1::uuid[])
ORDER BY payment_id
FOR NO KEY UPDATE;

-- name: find_live_payments
-- The live payment of each of these reservations.
SELECT reservation_id, payment_id
FROM payments
WHERE reservation_id = ANY ($1::uuid[]) AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS');

-- name: add_payments
-- Payments with the outcome that was decided for each, in id order.
INSERT INTO payments (
  payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method, status, reason, needed, available,
  original_amount, final_amount, balance_amount, pay_deadline, authorised_at
)
SELECT
  payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, 'BALANCE', status, reason, needed, available,
  amount, amount, amount, to_timestamp(pay_deadline_ms / 1000.0),
  CASE WHEN status = 'AUTHORISED' THEN now() END
FROM unnest(
  $1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::text[],
  $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[]
) AS decided (
  payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, status, reason, needed, available, amount,
  pay_deadline_ms
)
ORDER BY payment_id;

-- name: set_aside
-- Funds set aside for payments, or given free again, by user.
UPDATE balances
SET set_aside = balances.set_aside + changed.amount, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS changed (user_id, amount)
WHERE balances.user_id = changed.user_id;

-- name: find_claims
-- Who has a live claim on these seats.
SELECT seat_no, reservation_id
FROM reservation_seats
WHERE sale_id = $1 AND seat_no = ANY ($2::text[]) AND status = 'CLAIMED';

-- name: claim_lines
-- The sale itself: a seat that somebody else claims makes this statement fail.
UPDATE reservation_seats
SET status = 'CLAIMED', updated_at = now()
WHERE reservation_id = ANY ($1::uuid[]) AND status = 'HELD';

-- name: mark_sold
-- The claimed seats, as the seat map of the catalogue says it.
UPDATE seats
SET sold = true, updated_at = now()
WHERE sale_id = $1 AND seat_no = ANY ($2::text[]);

-- name: confirm_reservations
-- Rows whose sale stands.
UPDATE reservations
SET status = 'CONFIRMED', confirmed_at = now(), version = version + 1, updated_at = now()
WHERE reservation_id = ANY ($1::uuid[]) AND status = 'PENDING';

-- name: add_tickets
-- One ticket for each claimed seat.
INSERT INTO tickets (reservation_id, seat_no, sale_id, user_id)
SELECT lines.reservation_id, lines.seat_no, lines.sale_id, reservations.user_id
FROM reservation_seats AS lines
JOIN reservations USING (reservation_id)
WHERE lines.reservation_id = ANY ($1::uuid[]) AND lines.status = 'CLAIMED'
ORDER BY lines.reservation_id, lines.seat_no;

-- name: succeed_payments
-- Payments whose money is taken now.
UPDATE payments
SET status = 'SUCCESS', paid_at = now(), version = version + 1, updated_at = now()
WHERE payment_id = ANY ($1::uuid[]) AND status = 'AUTHORISED';

-- name: end_payments
-- Payments that end without money taken, each as FAILED or VOIDED and with its reason.
UPDATE payments
SET status = ended.status, reason = ended.reason, version = version + 1, updated_at = now()
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS ended (payment_id, status, reason)
WHERE payments.payment_id = ended.payment_id AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
RETURNING payments.payment_id, payments.user_id, payments.balance_amount;

-- name: doubt_payment
-- A payment whose fact could not be applied: an operator decides.
UPDATE payments
SET status = 'IN_DOUBT', version = version + 1, updated_at = now()
WHERE payment_id = $1 AND status = 'AUTHORISED';

-- name: set_balances
-- Balances after the money of their payments was taken or given free.
UPDATE balances
SET amount = after.amount, set_aside = after.set_aside, version = after.version, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]) AS after (user_id, amount, set_aside, version)
WHERE balances.user_id = after.user_id;

-- name: add_uses
-- History of money taken: one row a payment, each with the balance after it.
INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id, payment_id)
SELECT user_id, 'USE', amount, balance_after, version, 'payment', payment_id, payment_id
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[])
  AS used (payment_id, user_id, amount, balance_after, version)
ORDER BY user_id, version;

-- name: count_sold
-- Seats of a schedule that are no longer available. Its version is the operator's, and stays.
UPDATE schedules
SET seats_available = seats_available - $2, updated_at = now()
WHERE sale_id = $1;

-- name: add_restores
-- Seats to be made in Redis what they are here.
INSERT INTO restores (reservation_id, sale_id, fence, token_goes_next)
SELECT reservation_id, $1, fence, true
FROM unnest($2::uuid[], $3::bigint[]) AS given_back (reservation_id, fence)
ON CONFLICT (reservation_id) DO UPDATE SET done_at = NULL;

-- name: find_payments
-- Payments by id.
SELECT * FROM payments WHERE payment_id = ANY ($1::uuid[]);

-- name: find_payment
-- One payment of a user.
SELECT * FROM payments WHERE payment_id = $1 AND user_id = $2;

-- name: list_payments
-- A user's payments, newest first, after a cursor.
SELECT *
FROM payments
WHERE user_id = $1 AND (created_at, payment_id) < ($2::timestamptz, $3::uuid)
ORDER BY created_at DESC, payment_id DESC
LIMIT $4;

-- name: list_payments_in_state
-- Payments in one inner state, for an operator, newest first, after a cursor.
SELECT *
FROM payments
WHERE status = $1 AND (created_at, payment_id) < ($2::timestamptz, $3::uuid)
ORDER BY created_at DESC, payment_id DESC
LIMIT $4;

-- name: list_unsettled
-- Payments of a sale that have not moved for a while: authorised, or past their deadline.
SELECT payment_id, reservation_id, user_id, epoch, fence, status, pay_deadline
FROM payments
WHERE sale_id = $1
  AND (status = 'AUTHORISED' OR (status = 'PENDING' AND pay_deadline < now()))
  AND updated_at < now() - make_interval(secs => $2)
ORDER BY updated_at
LIMIT $3;

-- name: lock_restores
-- Seats of a sale that are still to be given back, oldest first, and that nobody else is giving back this moment.
SELECT
  restores.reservation_id, restores.fence, restores.token_goes_next, reservations.user_id, reservations.reason
FROM restores
JOIN reservations USING (reservation_id)
WHERE restores.sale_id = $1 AND restores.done_at IS NULL
ORDER BY restores.created_at
LIMIT $2
FOR UPDATE OF restores SKIP LOCKED;

-- name: find_all_lines
-- Every seat that these reservations ever had.
SELECT reservation_id, seat_no
FROM reservation_seats
WHERE reservation_id = ANY ($1::uuid[])
ORDER BY reservation_id, seat_no;

-- name: lock_claims
-- Whose these seats are; they stay so until this transaction ends.
SELECT claims.seat_no, claims.reservation_id, reservations.fence
FROM reservation_seats AS claims
JOIN reservations USING (reservation_id)
WHERE claims.sale_id = $1 AND claims.seat_no = ANY ($2::text[]) AND claims.status = 'CLAIMED'
ORDER BY claims.seat_no
FOR SHARE OF claims;

-- name: finish_restore
-- Redis says what Postgres says.
UPDATE restores SET done_at = now(), attempts = attempts + 1 WHERE reservation_id = $1;

-- name: lock_copy
-- Whether this epoch of the sale is the one that counts, and open; it stays so until this transaction ends.
SELECT true
FROM sales
WHERE sale_id = $1 AND epoch = $2 AND store_state = 'open'
FOR SHARE;

-- name: lock_outbox
-- Nobody applies this outbox until this transaction ends.
SELECT n
FROM stream_watermarks
WHERE sale_id = $1 AND stream = 'outbox'
FOR UPDATE;

-- name: find_letter
-- The oldest fact about a payment that could not be applied and that nobody has resolved.
SELECT epoch, n, entry_id, kind, fields
FROM dead_letters
WHERE sale_id = $1 AND stream = 'outbox' AND payment_id = $2 AND resolution IS NULL
ORDER BY epoch, n
LIMIT 1
FOR UPDATE;

-- name: authorise_doubtful
-- Resolved as good: it stands where it stood before its fact failed.
UPDATE payments
SET status = 'AUTHORISED', version = version + 1, updated_at = now()
WHERE payment_id = $1 AND status = 'IN_DOUBT';

-- name: resolve_letter
-- The operator's word on a fact.
UPDATE dead_letters
SET resolution = $4, resolved_at = now()
WHERE sale_id = $1 AND stream = 'outbox' AND epoch = $2 AND n = $3;
