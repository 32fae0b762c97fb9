-- Cancellations: what was bought is given back, in one transaction, and its money with it.
--
-- Locks are taken in one order: user coupons, balances, payments, reservations or orders, tickets, restores, and then what
-- is sold: the schedule and the claims, or the variants and the lines; each by id. The restores come before claims and lines:
-- whoever tells Redis holds a row of restores and then asks for those.

-- name: find_live_payment
-- The payment of a hold that may still buy it.
SELECT payment_id
FROM payments
WHERE hold_id = $1 AND is_live AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT');

-- Lock ---------------------------------------------------------------------------------------------------------------

-- name: lock_balances
-- Balances of whoever these reservations or orders belong to, locked in id order.
SELECT user_id, amount, version
FROM balances
WHERE user_id IN (
  SELECT user_id FROM reservations WHERE reservation_id = ANY ($1::uuid[])
  UNION ALL
  SELECT user_id FROM orders WHERE order_id = ANY ($1::uuid[])
)
ORDER BY user_id
FOR NO KEY UPDATE;

-- name: lock_payments
-- Payments that bought these holds or still may, locked in id order. Refunds are counted under this lock alone.
SELECT payment_id, hold_id, status, balance_amount, card_amount, captured_amount, refunded_amount
FROM payments
WHERE hold_id = ANY ($1::uuid[]) AND is_live
ORDER BY payment_id
FOR NO KEY UPDATE;

-- name: count_refunded_to_card
-- What of these payments has gone back to the card, or is on its way; read after the lock, which may have been waited
-- for.
SELECT payment_id, sum(amount)::bigint AS amount
FROM refunds
WHERE payment_id = ANY ($1::uuid[]) AND refund_to = 'CARD' AND status <> 'FAILED'
GROUP BY payment_id;

-- Write --------------------------------------------------------------------------------------------------------------

-- name: add_restores
-- Holds to be made in Redis what they are here; a row that was driven before is driven again.
INSERT INTO restores (hold_id, sale_id, fence, token_goes_next)
SELECT hold_id, $1, fence, false
FROM unnest($2::uuid[], $3::bigint[]) AS given_back (hold_id, fence)
ORDER BY hold_id
ON CONFLICT (hold_id) DO UPDATE SET done_at = NULL, created_at = now();

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
  cancellation_id, reservation_id, order_id, user_id, seat_nos, variant_ids, quantities, reason, refund_amount,
  kept_amount, refund_to, fingerprint, created_at
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
