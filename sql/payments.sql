-- Payments: authorised in one transaction (A), settled in another (B), and read back by whoever waits.
--
-- Locks are taken in one order everywhere: watermark, balances, payments, reservations or orders, each by id;
-- the coupons that payments name come before the balances.

-- name: lock_balances
-- What is free of these users' balances, locked in id order; and which of these holds have a row.
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
WHERE reservation_id = ANY ($2::uuid[])
UNION ALL
SELECT order_id, NULL
FROM orders
WHERE order_id = ANY ($3::uuid[]);

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
  payment_id, hold_id, user_id, fence, status, discount_amount, final_amount, balance_amount, card_amount, decline_code,
  user_coupon_id
FROM payments
WHERE payment_id = ANY ($1::uuid[])
ORDER BY payment_id
FOR NO KEY UPDATE;

-- name: add_payments
-- Payments with the outcome that was decided for each, in id order, and the funds set aside for them, by user.
WITH funds AS (
  UPDATE balances
  SET set_aside = balances.set_aside + changed.amount, updated_at = now()
  FROM unnest($1::uuid[], $2::bigint[]) AS changed (user_id, amount)
  WHERE balances.user_id = changed.user_id
)
INSERT INTO payments (
  payment_id, sale_id, reservation_id, order_id, user_id, epoch, fence, fingerprint, method, status, reason, needed,
  available, original_amount, discount_amount, final_amount, balance_amount, card_amount, payment_method_id, return_url,
  user_coupon_id, coupon_reason, pay_deadline, authorised_at
)
SELECT
  payment_id, sale_id, reservation_id, order_id, user_id, epoch, fence, fingerprint, method, status, reason, needed,
  available, amount, discount, amount - discount, amount - discount - card_amount, card_amount, payment_method_id,
  return_url, user_coupon_id, coupon_reason, to_timestamp(pay_deadline_ms / 1000.0),
  CASE WHEN status = 'AUTHORISED' THEN now() END
FROM unnest(
  $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bigint[], $8::bigint[], $9::text[], $10::text[], $11::text[],
  $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::text[], $17::text[], $18::text[], $19::bigint[],
  $20::uuid[], $21::bigint[], $22::uuid[], $23::text[]
) AS decided (
  payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, status, reason, needed, available, amount,
  card_amount, method, payment_method_id, return_url, pay_deadline_ms, order_id, discount, user_coupon_id, coupon_reason
)
ORDER BY payment_id;

-- name: give_free
-- Funds of payments that ended are free again, by user.
UPDATE balances
SET set_aside = balances.set_aside - freed.amount, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS freed (user_id, amount)
WHERE balances.user_id = freed.user_id;

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
  payment_id, sale_id, reservation_id, order_id, hold_id, user_coupon_id, coupon_reason, user_id, fence, fingerprint, method, status, reason, needed, available,
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
SELECT payment_id, hold_id, user_id, epoch, fence, status, pay_deadline
FROM payments
WHERE sale_id = $1
  AND is_unsettled
  AND (status = 'AUTHORISED' OR (status = 'PENDING' AND card_amount = 0 AND pay_deadline < now()))
  AND updated_at < now() - make_interval(secs => $2)
ORDER BY updated_at
LIMIT $3;

-- name: find_unfinished
-- Which of these sales may have anything for the reconciler: what has not moved for $2 seconds, what waits to be given back
-- or blocked, money that came late, and rows more than $3 seconds past their deadline.
SELECT sale_id FROM payments
WHERE is_unsettled AND updated_at < now() - make_interval(secs => $2) AND sale_id = ANY ($1::uuid[])
UNION
SELECT sale_id FROM restores WHERE done_at IS NULL AND sale_id = ANY ($1)
UNION
SELECT sale_id FROM seat_blocks WHERE done_at IS NULL AND sale_id = ANY ($1)
UNION
SELECT sale_id FROM late_payments WHERE status = 'PENDING' AND sale_id = ANY ($1)
UNION
SELECT sale_id FROM unnest($1) AS asked (sale_id)
WHERE (
  SELECT true
  FROM reservations
  WHERE reservations.sale_id = asked.sale_id AND is_pending AND expires_at < now() - make_interval(secs => $3)
  LIMIT 1
)
UNION
SELECT sale_id FROM unnest($1) AS asked (sale_id)
WHERE (
  SELECT true
  FROM orders
  WHERE orders.sale_id = asked.sale_id AND is_pending AND expires_at < now() - make_interval(secs => $3)
  LIMIT 1
);

-- name: finish_restores
-- Redis says of these what Postgres says.
UPDATE restores SET done_at = now(), attempts = attempts + 1 WHERE hold_id = ANY ($1::uuid[]);

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
