-- Late payments: money that a gateway reports for a payment that has ended, and what becomes of it.
--
-- Whoever decides on one locks its row first, then balances and payments as everybody does.

-- name: lock_ended
-- A payment that has ended, and whether its money was known before; what stands beside it is read once it is locked.
SELECT authorised_at IS NOT NULL AS was_known
FROM payments
WHERE payment_id = $1
FOR NO KEY UPDATE;

-- name: find_bars
-- What decides beforehand that the money of this payment goes back: its void is on its way, an operator has said so, its
-- event is off.
SELECT
  EXISTS (
    SELECT FROM gateway_operations
    WHERE gateway_operations.payment_id = $1 AND kind = 'VOID' AND gateway_operations.status = 'PENDING'
  ) AS being_voided,
  EXISTS (SELECT FROM payment_resolutions WHERE payment_id = $1 AND resolution = 'FAILED') AS given_up,
  EXISTS (SELECT FROM schedule_cancellations WHERE sale_id = $2) AS event_cancelled;

-- name: add_late_payment
-- Money that is reported late, once by the gateway's name for it; nothing when it is known already.
INSERT INTO late_payments (gateway_ref, payment_id, sale_id, user_id, amount, new_hold_id, new_payment_id)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING;

-- name: find_late_payment
-- What became of money that was reported late, by the gateway's name for it.
SELECT late_payments.*, payments.order_id IS NOT NULL AS is_order
FROM late_payments
JOIN payments USING (payment_id)
WHERE late_payments.gateway_ref = $1;

-- name: find_of_payments
-- What became of money that was reported late for these payments.
SELECT late_payments.*, payments.order_id IS NOT NULL AS is_order
FROM late_payments
JOIN payments USING (payment_id)
WHERE payment_id = ANY ($1::uuid[])
ORDER BY late_payments.created_at;

-- name: list_pending
-- Late payments of a sale that nobody has decided yet, the oldest first.
SELECT late_payments.*, payments.order_id IS NOT NULL AS is_order
FROM late_payments
JOIN payments USING (payment_id)
WHERE late_payments.sale_id = $1 AND late_payments.status = 'PENDING'
ORDER BY late_payments.created_at
LIMIT $2;

-- name: list_late_payments
-- Late payments, the newest first, after a cursor.
SELECT late_payments.*, payments.order_id IS NOT NULL AS is_order
FROM late_payments
JOIN payments USING (payment_id)
WHERE (late_payments.created_at, new_payment_id) < ($1::timestamptz, $2::uuid)
ORDER BY late_payments.created_at DESC, new_payment_id DESC
LIMIT $3;

-- name: is_ordered_again
-- Whether the same buyer has paid for units of the same variants since, or is about to; a seat is its one buyer's anyway.
SELECT EXISTS (
  SELECT
  FROM payments AS ended
  JOIN order_items AS wanted ON wanted.order_id = ended.order_id
  JOIN payments AS since
    ON since.user_id = ended.user_id AND since.sale_id = ended.sale_id AND since.created_at > ended.created_at
  JOIN order_items AS lines ON lines.order_id = since.order_id AND lines.variant_id = wanted.variant_id
  WHERE ended.payment_id = $1
    AND since.payment_id <> $2
    AND since.status NOT IN ('FAILED', 'VOIDED', 'REFUNDED')
    AND lines.status <> 'ENDED'
);

-- name: lock_pending
-- Whether nobody has decided on it yet; nobody does until this transaction ends.
SELECT true FROM late_payments WHERE gateway_ref = $1 AND status = 'PENDING' FOR UPDATE;

-- name: find_carrier
-- The payment that this money belongs to now, and how it stands.
SELECT payment_id, status FROM payments WHERE gateway_ref = $1;

-- name: release_ref
-- The payment that ended is no longer what the gateway means.
UPDATE payments SET gateway_ref = NULL, updated_at = now() WHERE payment_id = $1 AND gateway_ref = $2;

-- name: take_ref
-- The new payment is what the gateway means: it is led on as any other, and is never asked for by a name of its own.
UPDATE payments SET gateway_ref = $2, updated_at = now() WHERE payment_id = $1 AND status = 'PENDING';

-- name: finish
-- What became of it; nothing when that was decided before.
UPDATE late_payments
SET status = $2, reason = $3, done_at = now(), updated_at = now()
WHERE gateway_ref = $1 AND status = 'PENDING';
