-- Cancellations: what was bought is given back, in one transaction, and its money with it.
--
-- Locks are taken in one order: balances, payments, reservations, tickets, restores, the schedule, the claims; each by id.
-- The restores come before the claims: whoever tells Redis holds a row of restores and then asks for claims.

-- name: find_terms
-- Whose a reservation is, how it stands, and the terms under which it is given back, by the database's clock.
SELECT
  reservations.user_id,
  reservations.sale_id,
  reservations.status,
  schedules.start_at,
  sales.refund_policy,
  now() AS now,
  EXISTS (
    SELECT FROM schedule_cancellations WHERE schedule_cancellations.schedule_id = reservations.schedule_id
  ) AS is_called_off
FROM reservations
JOIN schedules USING (schedule_id)
JOIN sales ON sales.sale_id = reservations.sale_id
WHERE reservation_id = $1;

-- name: find_live_payment
-- The payment of a reservation that may still buy it.
SELECT payment_id
FROM payments
WHERE reservation_id = $1 AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT');

-- Lock ---------------------------------------------------------------------------------------------------------------

-- name: lock_balances
-- Balances of whoever these reservations belong to, locked in id order.
SELECT user_id, amount, version
FROM balances
WHERE user_id IN (SELECT user_id FROM reservations WHERE reservation_id = ANY ($1::uuid[]))
ORDER BY user_id
FOR NO KEY UPDATE;

-- name: lock_payments
-- Payments that bought these reservations or still may, locked in id order. Refunds are counted under this lock alone.
SELECT payment_id, reservation_id, status, balance_amount, card_amount, captured_amount, refunded_amount
FROM payments
WHERE reservation_id = ANY ($1::uuid[]) AND status NOT IN ('FAILED', 'VOIDED')
ORDER BY payment_id
FOR NO KEY UPDATE;

-- name: count_refunded_to_card
-- What of these payments has gone back to the card, or is on its way; read after the lock, which may have been waited
-- for.
SELECT payment_id, sum(amount)::bigint AS amount
FROM refunds
WHERE payment_id = ANY ($1::uuid[]) AND refund_to = 'CARD' AND status <> 'FAILED'
GROUP BY payment_id;

-- name: lock_reservations
-- These rows, locked in id order.
SELECT reservation_id, user_id, sale_id, fence, status
FROM reservations
WHERE reservation_id = ANY ($1::uuid[])
ORDER BY reservation_id
FOR NO KEY UPDATE;

-- name: lock_tickets
-- The seats that these reservations claim, with the tickets for them, which nobody redeems until this transaction ends.
SELECT lines.reservation_id, lines.seat_no, lines.price, tickets.status AS ticket_status
FROM reservation_seats AS lines
JOIN tickets USING (reservation_id, seat_no)
WHERE lines.reservation_id = ANY ($1::uuid[]) AND lines.status = 'CLAIMED'
ORDER BY tickets.ticket_no
FOR NO KEY UPDATE OF tickets;

-- Write --------------------------------------------------------------------------------------------------------------

-- name: add_restores
-- Seats to be made in Redis what they are here; a row that was driven before is driven again.
INSERT INTO restores (hold_id, sale_id, fence, token_goes_next)
SELECT hold_id, $1, fence, false
FROM unnest($2::uuid[], $3::bigint[]) AS given_back (hold_id, fence)
ORDER BY hold_id
ON CONFLICT (hold_id) DO UPDATE SET done_at = NULL, created_at = now();

-- name: count_given_back
-- Seats of a schedule that are available again; one that is blocked is not.
UPDATE schedules
SET
  seats_available = seats_available + (
    SELECT count(*)
    FROM seats
    WHERE seats.sale_id = $1 AND seats.seat_no = ANY ($2::text[]) AND NOT seats.blocked
  ),
  updated_at = now()
WHERE sale_id = $1;

-- name: end_claims
-- The sale of these seats is undone.
UPDATE reservation_seats AS lines
SET status = 'ENDED', updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS given_back (reservation_id, seat_no)
WHERE lines.reservation_id = given_back.reservation_id
  AND lines.seat_no = given_back.seat_no
  AND lines.status = 'CLAIMED';

-- name: mark_unsold
-- These seats, as the seat map of the catalogue says it.
UPDATE seats
SET sold = false, updated_at = now()
WHERE sale_id = $1 AND seat_no = ANY ($2::text[]);

-- name: cancel_tickets
-- Tickets for these seats open no door any more.
UPDATE tickets
SET status = 'CANCELLED', updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS given_back (reservation_id, seat_no)
WHERE tickets.reservation_id = given_back.reservation_id AND tickets.seat_no = given_back.seat_no;

-- name: cancel_reservations
-- Rows that gave seats back: one with a reason gave its last and ends, the others stay CONFIRMED.
UPDATE reservations
SET
  status = CASE WHEN given_back.reason IS NULL THEN status ELSE 'CANCELLED' END,
  reason = given_back.reason,
  ended_at = CASE WHEN given_back.reason IS NULL THEN ended_at ELSE now() END,
  version = version + 1,
  updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS given_back (reservation_id, reason)
WHERE reservations.reservation_id = given_back.reservation_id AND reservations.status = 'CONFIRMED';

-- name: refund_payments
-- Payments of which so much more is given back, or is on its way. One that was never collected stays so.
UPDATE payments
SET
  refunded_amount = refunded_amount + given_back.amount,
  status = CASE
    WHEN status = 'UNCOLLECTED' THEN status
    WHEN refunded_amount + given_back.amount = final_amount THEN 'REFUNDED'
    ELSE 'PARTIALLY_REFUNDED'
  END,
  version = version + 1,
  updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS given_back (payment_id, amount)
WHERE payments.payment_id = given_back.payment_id;

-- name: set_balances
-- Balances after what was given back; what is set aside is not touched.
UPDATE balances
SET amount = after.amount, version = after.version, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS after (user_id, amount, version)
WHERE balances.user_id = after.user_id;

-- name: add_history
-- History of money given back: one row a refund, each with the balance after it.
INSERT INTO balance_history (user_id, type, amount, balance_after, version, reason, ref_type, ref_id, payment_id)
SELECT user_id, 'REFUND', amount, balance_after, version, reason, 'refund', refund_id, payment_id
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[])
  AS given_back (refund_id, payment_id, user_id, amount, balance_after, version, reason)
ORDER BY user_id, version;

-- name: add_cancellations
-- What was cancelled, and what it came to.
INSERT INTO cancellations (
  cancellation_id, reservation_id, user_id, seat_nos, reason, refund_amount, kept_amount, refund_to, fingerprint
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: add_refunds
-- Money that goes back: to a balance it has gone with this transaction, to a card a gateway must be told.
INSERT INTO refunds (refund_id, payment_id, cancellation_id, user_id, amount, refund_to, status, reason, done_at)
SELECT
  refund_id, payment_id, cancellation_id, user_id, amount, refund_to,
  CASE refund_to WHEN 'BALANCE' THEN 'DONE' ELSE 'PENDING' END,
  reason,
  CASE refund_to WHEN 'BALANCE' THEN now() END
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::text[], $7::text[])
  AS given_back (refund_id, payment_id, cancellation_id, user_id, amount, refund_to, reason);

-- name: void_captures
-- Captures that were never sent, of card legs that go back whole: nothing is taken, so nothing has to be given back.
UPDATE gateway_operations
SET kind = 'VOID', operation_id = voided.operation_id, due_at = now(), updated_at = now()
FROM unnest($1::uuid[], $2::uuid[]) AS voided (payment_id, operation_id)
WHERE gateway_operations.payment_id = voided.payment_id
  AND gateway_operations.kind = 'CAPTURE'
  AND gateway_operations.status = 'PENDING'
  AND gateway_operations.attempts = 0
RETURNING gateway_operations.payment_id;

-- name: add_refund_operations
-- Refunds that a gateway must be told of.
INSERT INTO gateway_operations (operation_id, payment_id, kind, refund_id, amount)
SELECT operation_id, payment_id, 'REFUND', refund_id, amount
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[]) AS wanted (operation_id, payment_id, refund_id, amount);

-- Read ---------------------------------------------------------------------------------------------------------------

-- name: find_cancellation
-- A cancellation by its id: what a repeat is answered with.
SELECT
  cancellation_id, reservation_id, user_id, seat_nos, reason, refund_amount, kept_amount, refund_to, fingerprint,
  created_at
FROM cancellations
WHERE cancellation_id = $1;

-- name: list_refunds_of
-- Where the money of a cancellation goes, the card first.
SELECT refund_id, payment_id, user_id, amount, refund_to, status, reason, created_at, done_at
FROM refunds
WHERE cancellation_id = $1
ORDER BY refund_to DESC;

-- name: find_refund
-- One refund of a user.
SELECT refund_id, payment_id, user_id, amount, refund_to, status, reason, created_at, done_at
FROM refunds
WHERE refund_id = $1 AND user_id = $2;

-- name: list_refunds
-- A user's refunds, newest first, after a cursor.
SELECT refund_id, payment_id, user_id, amount, refund_to, status, reason, created_at, done_at
FROM refunds
WHERE user_id = $1 AND (created_at, refund_id) < ($2::timestamptz, $3::uuid)
ORDER BY created_at DESC, refund_id DESC
LIMIT $4;

-- An event that is off -----------------------------------------------------------------------------------------------

-- name: add_call_off
-- The event is off; no row when it was already. Its total is what is held or bought at this moment.
INSERT INTO schedule_cancellations (schedule_id, sale_id, total, fingerprint)
SELECT
  schedule_id,
  sale_id,
  (
    SELECT count(DISTINCT reservation_id)
    FROM reservation_seats AS claims
    WHERE claims.sale_id = schedules.sale_id AND claims.status = 'CLAIMED'
  ) + (
    SELECT count(*)
    FROM reservations
    WHERE reservations.sale_id = schedules.sale_id AND reservations.status = 'PENDING'
  ),
  ''
FROM schedules
WHERE schedule_id = $1
ON CONFLICT (schedule_id) DO NOTHING
RETURNING sale_id, now() AS now;

-- name: find_call_off
-- How far an event that is off has come.
SELECT schedule_id, sale_id, total, done, created_at, finished_at
FROM schedule_cancellations
WHERE schedule_id = $1;

-- name: list_unfinished
-- Events that are off and have reservations left, the oldest first.
SELECT schedule_id, sale_id
FROM schedule_cancellations
WHERE finished_at IS NULL
ORDER BY created_at;

-- name: lock_unfinished
-- The right to do the next batch of an event that is off; no row while somebody else does one.
SELECT schedule_id
FROM schedule_cancellations
WHERE schedule_id = $1 AND finished_at IS NULL
FOR NO KEY UPDATE SKIP LOCKED;

-- name: list_standing
-- Reservations of a sale that can be ended now: those that own some of the next $2 seats, and those that nobody pays.
SELECT reservation_id
FROM (
  SELECT reservation_id
  FROM reservation_seats
  WHERE sale_id = $1 AND status = 'CLAIMED'
  ORDER BY seat_no
  LIMIT $2
) AS claims
UNION
SELECT reservation_id
FROM (
  SELECT reservation_id
  FROM reservations
  WHERE sale_id = $1
    AND status = 'PENDING'
    AND NOT EXISTS (
      SELECT FROM payments
      WHERE payments.reservation_id = reservations.reservation_id
        AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
    )
  ORDER BY expires_at
  LIMIT $2
) AS unpaid;

-- name: is_standing
-- Whether anything of a sale is still held, being paid or bought.
SELECT
  EXISTS (SELECT FROM reservation_seats WHERE sale_id = $1 AND status = 'CLAIMED')
  OR EXISTS (SELECT FROM reservations WHERE sale_id = $1 AND status = 'PENDING');

-- name: count_called_off
-- So many more are done; more than were foreseen if some were still on their way here.
UPDATE schedule_cancellations
SET done = done + $2, total = greatest(total, done + $2), updated_at = now()
WHERE schedule_id = $1;

-- name: finish_call_off
-- Nothing is left; what ended by itself meanwhile is not counted.
UPDATE schedule_cancellations
SET total = done, finished_at = now(), updated_at = now()
WHERE schedule_id = $1;
