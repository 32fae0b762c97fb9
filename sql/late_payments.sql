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
INSERT INTO late_payments (gateway_ref, payment_id, sale_id, user_id, amount, new_reservation_id, new_payment_id)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING;

-- name: find_late_payment
-- What became of money that was reported late, by the gateway's name for it.
SELECT * FROM late_payments WHERE gateway_ref = $1;

-- name: find_of_payments
-- What became of money that was reported late for these payments.
SELECT * FROM late_payments WHERE payment_id = ANY ($1::uuid[]) ORDER BY created_at;

-- name: list_pending
-- Late payments of a sale that nobody has decided yet, the oldest first.
SELECT *
FROM late_payments
WHERE sale_id = $1 AND status = 'PENDING'
ORDER BY created_at
LIMIT $2;

-- name: list_late_payments
-- Late payments, the newest first, after a cursor.
SELECT *
FROM late_payments
WHERE (created_at, new_payment_id) < ($1::timestamptz, $2::uuid)
ORDER BY created_at DESC, new_payment_id DESC
LIMIT $3;

-- name: find_lines
-- What a payment was for: the lines that were given back before it are no part of it.
SELECT lines.seat_no, lines.price, lines.tier, seats.area
FROM payments
JOIN reservation_seats AS lines USING (reservation_id)
JOIN seats ON seats.sale_id = lines.sale_id AND seats.seat_no = lines.seat_no
WHERE payments.payment_id = $1
  AND (lines.status <> 'ENDED' OR lines.updated_at > payments.created_at)
ORDER BY lines.seat_no;

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
