-- Copies of sales of seats: who has which seat and which holds stand, read from Postgres alone.

-- name: list_claims
-- Who has which seat; nobody has one that its operator keeps back, and so nobody may hold or pay it.
SELECT seat_no, reservation_id
FROM reservation_seats
WHERE sale_id = $1
  AND is_claimed
UNION ALL
SELECT seat_no, NULL
FROM seats
WHERE sale_id = $1
  AND blocked
  AND NOT sold;

-- name: list_live_payments
-- Payments that may still buy something, the first authorised first, each with the seats it is for.
SELECT payments.payment_id, payments.hold_id, array_agg(lines.seat_no) AS seat_nos
FROM payments
JOIN reservations USING (reservation_id)
JOIN reservation_seats AS lines USING (reservation_id)
WHERE payments.sale_id = $1
  AND payments.is_unsettled
  AND reservations.status = 'PENDING'
  AND lines.status = 'HELD'
GROUP BY payments.payment_id, payments.hold_id
ORDER BY payments.authorised_at NULLS LAST, payments.created_at, payments.payment_id;

-- name: list_unpaid
-- Reservations that nobody is paying, the oldest first, and whether their time is over.
SELECT reservation_id AS hold_id, expires_at <= now() AS lapsed, array_agg(lines.seat_no) AS seat_nos
FROM reservations
JOIN reservation_seats AS lines USING (reservation_id)
WHERE reservations.sale_id = $1
  AND reservations.is_pending
  AND lines.status = 'HELD'
  AND NOT EXISTS (
    SELECT FROM payments
    WHERE payments.hold_id = reservations.reservation_id
      AND payments.is_live AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
  )
GROUP BY reservation_id
ORDER BY reservations.created_at, reservation_id;

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
    AND is_claimed
  UNION
  SELECT reservation_id
  FROM reservations
  WHERE sale_id = $1
    AND is_pending
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
  ON live.hold_id = reservations.reservation_id
  AND live.is_live
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
  WHERE over.hold_id = reservations.reservation_id
    AND NOT over.is_live
) AS over ON true
ORDER BY reservations.created_at, reservations.reservation_id;
