-- Seats of a reservation are given back; locks are taken in the order that sql/cancellations.sql says.

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

-- name: lock_reservations
-- These rows, locked in id order.
SELECT reservation_id AS hold_id, user_id, sale_id, fence, status
FROM reservations
WHERE reservation_id = ANY ($1::uuid[])
ORDER BY reservation_id
FOR NO KEY UPDATE;

-- name: lock_tickets
-- The seats that these reservations claim, with the tickets for them, which nobody redeems until this transaction ends.
SELECT
  lines.reservation_id, lines.seat_no, lines.price - lines.discount_amount AS price, tickets.status AS ticket_status
FROM reservation_seats AS lines
JOIN tickets USING (reservation_id, seat_no)
WHERE lines.reservation_id = ANY ($1::uuid[]) AND lines.status = 'CLAIMED'
ORDER BY tickets.ticket_no
FOR NO KEY UPDATE OF tickets;

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

-- name: add_cancellations
-- What was cancelled, and what it came to.
INSERT INTO cancellations (
  cancellation_id, reservation_id, user_id, seat_nos, reason, refund_amount, kept_amount, refund_to, fingerprint
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

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
    WHERE claims.sale_id = schedules.sale_id AND claims.is_claimed
  ) + (
    SELECT count(*)
    FROM reservations
    WHERE reservations.sale_id = schedules.sale_id AND reservations.is_pending
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
  WHERE sale_id = $1 AND is_claimed
  ORDER BY seat_no
  LIMIT $2
) AS claims
UNION
SELECT reservation_id
FROM (
  SELECT reservation_id
  FROM reservations
  WHERE sale_id = $1
    AND is_pending
    AND (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = reservations.reservation_id
        AND payments.is_live AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
    ) IS NULL
  ORDER BY expires_at
  LIMIT $2
) AS unpaid;

-- name: is_standing
-- Whether anything of a sale is still held, being paid or bought.
SELECT
  EXISTS (SELECT FROM reservation_seats WHERE sale_id = $1 AND is_claimed)
  OR EXISTS (SELECT FROM reservations WHERE sale_id = $1 AND is_pending);

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
