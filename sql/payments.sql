-- Payments: authorised in one transaction (A), settled in another (B), and read back by whoever waits.
--
-- Locks are taken in one order everywhere: watermark, balances, payments, reservations, each by id.

-- name: lock_balances
-- What is free of these users' balances, locked in id order; and which of these reservations have a row.
WITH locked AS MATERIALIZED (
  SELECT user_id, amount - set_aside AS free
  FROM balances
  WHERE user_id = ANY ($1::uuid[])
  ORDER BY user_id
  FOR NO KEY UPDATE
)
SELECT user_id AS id, free
FROM locked
UNION ALL
SELECT reservation_id, NULL
FROM reservations
WHERE reservation_id = ANY ($2::uuid[]);

-- name: lock_balances_of_payments
-- Balances of whoever pays these, locked in id order.
SELECT user_id, amount, set_aside, version
FROM balances
WHERE user_id IN (SELECT user_id FROM payments WHERE payment_id = ANY ($1::uuid[]))
ORDER BY user_id
FOR NO KEY UPDATE;

-- name: lock_payments
-- These payments, locked in id order.
SELECT
  payment_id, reservation_id, user_id, fence, status, final_amount, balance_amount, card_amount, decline_code
FROM payments
WHERE payment_id = ANY ($1::uuid[])
ORDER BY payment_id
FOR NO KEY UPDATE;

-- name: find_beside
-- What stands beside each of these payments: whether it has a row, and the seats and the live payment of its
-- reservation. Read after the locks: a statement that waited for one still sees what was before its wait.
SELECT
  asked.payment_id,
  asked.reservation_id,
  EXISTS (SELECT FROM payments WHERE payments.payment_id = asked.payment_id) AS is_known,
  (
    SELECT payments.payment_id
    FROM payments
    WHERE payments.reservation_id = asked.reservation_id
      AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) AS live_payment_id,
  ARRAY(
    SELECT lines.seat_no
    FROM reservation_seats AS lines
    WHERE lines.reservation_id = asked.reservation_id AND lines.status <> 'ENDED'
  ) AS seat_nos
FROM unnest($1::uuid[], $2::uuid[]) AS asked (payment_id, reservation_id);

-- name: add_payments
-- Payments with the outcome that was decided for each, in id order, and the funds set aside for them, by user.
WITH funds AS (
  UPDATE balances
  SET set_aside = balances.set_aside + changed.amount, updated_at = now()
  FROM unnest($1::uuid[], $2::bigint[]) AS changed (user_id, amount)
  WHERE balances.user_id = changed.user_id
)
INSERT INTO payments (
  payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method, status, reason, needed, available,
  original_amount, final_amount, balance_amount, card_amount, payment_method_id, return_url, pay_deadline, authorised_at
)
SELECT
  payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method, status, reason, needed, available,
  amount, amount, amount - card_amount, card_amount, payment_method_id, return_url,
  to_timestamp(pay_deadline_ms / 1000.0),
  CASE WHEN status = 'AUTHORISED' THEN now() END
FROM unnest(
  $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bigint[], $8::bigint[], $9::text[], $10::text[], $11::text[],
  $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::text[], $17::text[], $18::text[], $19::bigint[]
) AS decided (
  payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, status, reason, needed, available, amount,
  card_amount, method, payment_method_id, return_url, pay_deadline_ms
)
ORDER BY payment_id;

-- name: give_free
-- Funds of payments that ended are free again, by user.
UPDATE balances
SET set_aside = balances.set_aside - freed.amount, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS freed (user_id, amount)
WHERE balances.user_id = freed.user_id;

-- name: sell_seats
-- The sale itself: a seat that somebody else claims makes this statement fail. The catalogue's map and what is left of
-- the schedule (its version is the operator's, and stays) say the same, and each seat gets a ticket.
WITH claimed AS (
  UPDATE reservation_seats
  SET status = 'CLAIMED', updated_at = now()
  WHERE reservation_id = ANY ($2::uuid[]) AND status = 'HELD'
  RETURNING reservation_id, seat_no
), marked AS (
  UPDATE seats
  SET sold = true, updated_at = now()
  FROM claimed
  WHERE seats.sale_id = $1 AND seats.seat_no = claimed.seat_no
), counted AS (
  UPDATE schedules
  SET seats_available = seats_available - (SELECT count(*) FROM claimed), updated_at = now()
  WHERE sale_id = $1
)
INSERT INTO tickets (reservation_id, seat_no, sale_id, user_id)
SELECT claimed.reservation_id, claimed.seat_no, $1, bought.user_id
FROM claimed
JOIN unnest($2::uuid[], $3::uuid[]) AS bought (reservation_id, user_id) USING (reservation_id)
ORDER BY claimed.reservation_id, claimed.seat_no;

-- name: confirm_sales
-- Reservations whose sale stands, and their payments, whose money is taken now.
WITH confirmed AS (
  UPDATE reservations
  SET status = 'CONFIRMED', confirmed_at = now(), version = version + 1, updated_at = now()
  WHERE reservation_id = ANY ($1::uuid[]) AND status = 'PENDING'
)
UPDATE payments
SET status = 'SUCCESS', paid_at = now(), version = version + 1, updated_at = now()
WHERE payment_id = ANY ($2::uuid[]) AND status = 'AUTHORISED';

-- name: end_payments
-- Payments that end without money taken, each as FAILED or VOIDED and with its reason.
UPDATE payments
SET
  status = ended.status,
  reason = CASE WHEN decline_code IS NULL THEN ended.reason ELSE 'card_declined' END,
  action_url = NULL, version = version + 1, updated_at = now()
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS ended (payment_id, status, reason)
WHERE payments.payment_id = ended.payment_id AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
RETURNING
  payments.payment_id, payments.user_id, payments.balance_amount, payments.card_amount, payments.decline_code;

-- name: doubt_payment
-- A payment whose fact could not be applied: an operator decides.
UPDATE payments
SET status = 'IN_DOUBT', version = version + 1, updated_at = now()
WHERE payment_id = $1 AND status = 'AUTHORISED';

-- name: settle_balances
-- Balances after the money of their payments was taken or given free, and the history of what was taken: one row a
-- payment, each with the balance after it.
WITH settled AS (
  UPDATE balances
  SET amount = after.amount, set_aside = after.set_aside, version = after.version, updated_at = now()
  FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]) AS after (user_id, amount, set_aside, version)
  WHERE balances.user_id = after.user_id
)
INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id, payment_id)
SELECT user_id, 'USE', amount, balance_after, version, 'payment', payment_id, payment_id
FROM unnest($5::uuid[], $6::uuid[], $7::bigint[], $8::bigint[], $9::bigint[])
  AS used (payment_id, user_id, amount, balance_after, version)
ORDER BY user_id, version;

-- name: add_restores
-- Seats to be made in Redis what they are here.
INSERT INTO restores (hold_id, sale_id, fence, token_goes_next)
SELECT hold_id, $1, fence, true
FROM unnest($2::uuid[], $3::bigint[]) AS given_back (hold_id, fence)
ON CONFLICT (hold_id) DO UPDATE SET done_at = NULL;

-- name: find_payments
-- Payments by id.
SELECT
  payment_id, sale_id, reservation_id, user_id, fence, fingerprint, method, status, reason, needed, available,
  original_amount, discount_amount, final_amount, refunded_amount, balance_amount, card_amount, payment_method_id,
  return_url, gateway_ref, action_url, decline_code, pay_deadline, created_at, paid_at, version
FROM payments
WHERE payment_id = ANY ($1::uuid[]);

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
-- Payments of a sale that have not moved for a while: authorised, or past their deadline where no gateway has a word.
SELECT payment_id, reservation_id, user_id, epoch, fence, status, pay_deadline
FROM payments
WHERE sale_id = $1
  AND (status = 'AUTHORISED' OR (status = 'PENDING' AND card_amount = 0 AND pay_deadline < now()))
  AND updated_at < now() - make_interval(secs => $2)
ORDER BY updated_at
LIMIT $3;

-- name: lock_restores
-- Seats of a sale that are still to be given back, oldest first, and that nobody else is giving back this moment.
SELECT
  restores.hold_id, restores.fence, restores.token_goes_next, reservations.user_id, reservations.reason
FROM restores
JOIN reservations ON reservations.reservation_id = restores.hold_id
WHERE restores.sale_id = $1 AND restores.done_at IS NULL
ORDER BY restores.created_at
LIMIT $2
FOR UPDATE OF restores SKIP LOCKED;

-- name: find_all_lines
-- Every seat that these reservations ever had.
SELECT reservation_id, seat_no, tier
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
UPDATE restores SET done_at = now(), attempts = attempts + 1 WHERE hold_id = $1;

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
