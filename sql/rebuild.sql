-- Rebuild: what a sale is, read from Postgres alone, to be written to Redis anew.

-- name: begin
-- From here on a crash is seen: whoever owns the sale next finds that it is not open. No row: another generation owns it.
UPDATE sales
SET store_state = CASE store_state WHEN 'new' THEN 'new' ELSE 'rebuilding' END,
    updated_at = now()
WHERE sale_id = $1
  AND EXISTS (
    SELECT FROM stream_watermarks
    WHERE sale_id = $1
      AND generation = $2
  );

-- name: lock_streams
-- Both watermarks, if they are still this generation's: fewer than two rows, and nothing may be written.
SELECT stream, epoch, n, entry_id
FROM stream_watermarks
WHERE sale_id = $1
  AND generation = $2
ORDER BY stream
FOR UPDATE;

-- name: raise_epoch
-- Nothing older than this epoch is accepted any more; the line goes on above every number that was allowed before it.
UPDATE sales
SET epoch = greatest(epoch, $2) + 1,
    store_state = 'rebuilding',
    queue_no_ceiling = queue_no_ceiling + $3,
    updated_at = now()
WHERE sale_id = $1
RETURNING epoch, queue_no_ceiling - $3 AS queue_no, queue_no_ceiling, serving;

-- name: reset_streams
-- The streams of the new epoch begin empty.
UPDATE stream_watermarks
SET epoch = $2,
    n = 0,
    entry_id = '0-0',
    held_entry_id = '0-0',
    updated_at = now()
WHERE sale_id = $1;

-- name: list_claims
-- Who has which seat; nobody has one that its operator keeps back, and so nobody may hold or pay it.
SELECT seat_no, reservation_id
FROM reservation_seats
WHERE sale_id = $1
  AND status = 'CLAIMED'
UNION ALL
SELECT seat_no, NULL
FROM seats
WHERE sale_id = $1
  AND blocked
  AND NOT sold;

-- name: list_live_payments
-- Payments that may still buy something, the first authorised first, each with the seats it is for.
SELECT payments.payment_id, payments.user_id, reservation_id, array_agg(lines.seat_no) AS seat_nos
FROM payments
JOIN reservations USING (reservation_id)
JOIN reservation_seats AS lines USING (reservation_id)
WHERE payments.sale_id = $1
  AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
  AND reservations.status = 'PENDING'
  AND lines.status = 'HELD'
GROUP BY payments.payment_id, reservation_id
ORDER BY payments.authorised_at NULLS LAST, payments.created_at, payments.payment_id;

-- name: list_unpaid
-- Reservations that nobody is paying, the oldest first, and whether their time is over.
SELECT reservation_id, expires_at <= now() AS lapsed, array_agg(lines.seat_no) AS seat_nos
FROM reservations
JOIN reservation_seats AS lines USING (reservation_id)
WHERE reservations.sale_id = $1
  AND reservations.status = 'PENDING'
  AND lines.status = 'HELD'
  AND NOT EXISTS (
    SELECT FROM payments
    WHERE payments.reservation_id = reservations.reservation_id
      AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
  )
GROUP BY reservation_id
ORDER BY reservations.created_at, reservation_id;

-- name: lock_balances
-- Balances of whoever these payments are from, in the order in which everybody locks them.
SELECT user_id
FROM balances
WHERE user_id IN (SELECT user_id FROM payments WHERE payment_id = ANY ($1::uuid[]))
ORDER BY user_id
FOR NO KEY UPDATE;

-- name: lock_payments
-- These payments, in the order in which everybody locks them.
SELECT payment_id
FROM payments
WHERE payment_id = ANY ($1::uuid[])
ORDER BY payment_id
FOR NO KEY UPDATE;

-- name: void_payments
-- What may still buy something buys nothing; answers what was set aside for each, by balance and by card.
UPDATE payments
SET status = 'VOIDED',
    reason = 'hold_ended',
    version = version + 1,
    updated_at = now()
WHERE payment_id = ANY ($1::uuid[])
  AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
RETURNING payment_id, user_id, reservation_id, balance_amount, card_amount, decline_code;

-- name: free_funds
-- Funds of voided payments are their users' again.
UPDATE balances
SET set_aside = set_aside - freed.amount,
    updated_at = now()
FROM (
  SELECT user_id, sum(amount)::bigint AS amount
  FROM unnest($1::uuid[], $2::bigint[]) AS voided (user_id, amount)
  GROUP BY user_id
) AS freed
WHERE balances.user_id = freed.user_id;

-- name: list_seats
-- The seats and places of a sale after this one, by number.
SELECT seat_no, price, blocked
FROM seats
WHERE sale_id = $1
  AND seat_no > $2
ORDER BY seat_no
LIMIT $3;

-- name: list_holds
-- Everything that is held, being paid or sold, and what ended within the last $2 seconds, as records of a hold.
WITH wanted AS (
  SELECT DISTINCT reservation_id
  FROM reservation_seats
  WHERE sale_id = $1
    AND status = 'CLAIMED'
  UNION
  SELECT reservation_id
  FROM reservations
  WHERE sale_id = $1
    AND status = 'PENDING'
  UNION
  SELECT reservation_id
  FROM reservations
  WHERE sale_id = $1
    AND status = 'CANCELLED'
    AND ended_at > now() - make_interval(secs => $2)
)
SELECT
  reservations.reservation_id AS hold_id,
  CASE
    WHEN reservations.status = 'CONFIRMED' THEN 'SOLD'
    WHEN reservations.status = 'CANCELLED' THEN 'ENDED'
    WHEN live.payment_id IS NULL THEN 'HELD'
    ELSE 'PAYING'
  END AS state,
  reservations.user_id AS buyer_id,
  reservations.fence,
  coalesce(reservations.queue_no, 0) AS queue_no,
  reservations.fingerprint,
  floor(extract(epoch FROM reservations.created_at) * 1000)::bigint AS created_at_ms,
  floor(extract(epoch FROM reservations.expires_at) * 1000)::bigint AS expires_at_ms,
  live.payment_id,
  floor(extract(epoch FROM live.pay_deadline) * 1000)::bigint AS pay_deadline_ms,
  coalesce(reservations.reason, '') AS reason,
  -- Of what was bought a part may have been given back: the record then counts what is left.
  CASE reservations.status WHEN 'CONFIRMED' THEN lines.amount ELSE reservations.amount END AS amount,
  lines.seat_nos,
  lines.prices,
  lines.tiers,
  coalesce(over.payment_ids, '{}') AS ended_payment_ids,
  floor(extract(epoch FROM coalesce(reservations.ended_at, reservations.confirmed_at)) * 1000)::bigint AS ended_at_ms,
  reservations.status <> 'CONFIRMED' OR reservations.confirmed_at > now() - make_interval(secs => $2) AS remembered
FROM wanted
JOIN reservations USING (reservation_id)
LEFT JOIN payments AS live
  ON live.reservation_id = reservations.reservation_id
  AND live.status NOT IN ('FAILED', 'VOIDED')
CROSS JOIN LATERAL (
  SELECT
    array_agg(seat_no ORDER BY seat_no) AS seat_nos,
    array_agg(price ORDER BY seat_no) AS prices,
    array_agg(tier ORDER BY seat_no) AS tiers,
    sum(price)::bigint AS amount
  FROM reservation_seats AS lines
  WHERE lines.reservation_id = reservations.reservation_id
    AND (
      reservations.status = 'CANCELLED'
      OR lines.status = CASE reservations.status WHEN 'CONFIRMED' THEN 'CLAIMED' ELSE 'HELD' END
    )
) AS lines
LEFT JOIN LATERAL (
  SELECT array_agg(payment_id) AS payment_ids
  FROM payments AS over
  WHERE over.reservation_id = reservations.reservation_id
    AND over.status IN ('FAILED', 'VOIDED')
) AS over ON true
ORDER BY reservations.created_at, reservations.reservation_id;

-- name: list_ended_tokens
-- Numbers of the line after this one that ended within the last hour, and all with which somebody has bought: these are
-- remembered for another hour, because a token of the lost copy may be shown again.
SELECT
  queue_no,
  status,
  owner,
  floor(
    extract(epoch FROM CASE WHEN ended_at > now() - interval '1 hour' THEN ended_at ELSE now() END) * 1000
  )::bigint AS ended_at_ms
FROM queue_tokens
WHERE sale_id = $1
  AND queue_no > $2
  AND (
    status = 'PROCESSED'
    OR (status IN ('EXPIRED', 'LEFT') AND ended_at > now() - interval '1 hour')
  )
ORDER BY queue_no
LIMIT $3;

-- name: list_user_coupons
-- Who after this one has a coupon of a source.
SELECT user_id
FROM user_coupons
WHERE coupon_id = $1
  AND user_id > $2
ORDER BY user_id
LIMIT $3;

-- name: finish
-- The copy of this epoch is open: what every process was told by Redis, Postgres says too.
UPDATE sales
SET store_state = 'open',
    frozen_reason = NULL,
    updated_at = now()
WHERE sale_id = $1
  AND epoch = $2
  AND store_state = 'rebuilding';
