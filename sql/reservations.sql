-- Reservations: rows that the journal, a payment or an ending writes; a row that has ended is never revived.

-- name: add_reservations
-- PENDING rows of these holds, in id order; those that are there already stay as they are.
INSERT INTO reservations (
  reservation_id, sale_id, schedule_id, user_id, epoch, fence, queue_no, fingerprint, status, amount, expires_at,
  created_at
)
SELECT
  held.reservation_id, held.sale_id, held.schedule_id, held.user_id, held.epoch, held.fence,
  nullif(held.queue_no, 0), held.fingerprint, 'PENDING', held.amount, to_timestamp(held.expires_at_ms / 1000.0),
  to_timestamp(held.created_at_ms / 1000.0)
FROM unnest(
  $1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::bigint[],
  $10::bigint[], $11::bigint[]
) AS held (
  reservation_id, sale_id, schedule_id, user_id, epoch, fence, queue_no, fingerprint, amount, expires_at_ms,
  created_at_ms
)
ORDER BY held.reservation_id
ON CONFLICT (reservation_id) DO NOTHING
RETURNING reservation_id;

-- name: add_lines
-- The seats of rows that were just added.
INSERT INTO reservation_seats (reservation_id, seat_no, sale_id, price, tier, status)
SELECT line.reservation_id, line.seat_no, line.sale_id, line.price, line.tier, 'HELD'
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::text[])
  AS line (reservation_id, seat_no, sale_id, price, tier)
ORDER BY line.reservation_id, line.seat_no;

-- name: lock_reservations
-- These rows, locked in id order. What belongs to them is read after it: a statement that waited for a lock still sees
-- what was before its wait.
SELECT reservation_id, user_id, status, fence
FROM reservations
WHERE reservation_id = ANY ($1::uuid[])
ORDER BY reservation_id
FOR NO KEY UPDATE;

-- name: find_lines
-- The seats that these rows hold or claim, each with the reservation that claims it now.
SELECT
  lines.reservation_id,
  lines.seat_no,
  (
    SELECT claims.reservation_id
    FROM reservation_seats AS claims
    WHERE claims.sale_id = lines.sale_id AND claims.seat_no = lines.seat_no AND claims.is_claimed
  ) AS claimed_by
FROM reservation_seats AS lines
WHERE lines.reservation_id = ANY ($1::uuid[]) AND lines.status <> 'ENDED'
ORDER BY lines.reservation_id, lines.seat_no;

-- name: list_forgotten
-- PENDING rows long past their deadline that no live payment keeps: something ended them and was not heard.
SELECT reservation_id
FROM reservations
WHERE sale_id = $1
  AND is_pending
  AND expires_at < now() - make_interval(secs => $2)
  AND (
    SELECT payment_id
    FROM payments
    WHERE payments.hold_id = reservations.reservation_id
      AND payments.is_live AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) IS NULL
ORDER BY expires_at
LIMIT $3;

-- name: extend_reservations
-- New deadlines of rows that still wait.
UPDATE reservations
SET expires_at = to_timestamp(extended.expires_at_ms / 1000.0), version = version + 1, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS extended (reservation_id, expires_at_ms)
WHERE reservations.reservation_id = extended.reservation_id AND reservations.status = 'PENDING';

-- name: end_lines
-- Seats that were given back.
UPDATE reservation_seats AS lines
SET status = 'ENDED', updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS released (reservation_id, seat_no)
WHERE lines.reservation_id = released.reservation_id AND lines.seat_no = released.seat_no AND lines.status = 'HELD';

-- name: sum_lines
-- What is left of rows that gave seats back.
UPDATE reservations
SET
  amount = (
    SELECT coalesce(sum(price), 0)
    FROM reservation_seats
    WHERE reservation_seats.reservation_id = reservations.reservation_id AND reservation_seats.status = 'HELD'
  ),
  version = version + 1,
  updated_at = now()
WHERE reservation_id = ANY ($1::uuid[]) AND status = 'PENDING';

-- name: end_reservations
-- Rows that end, each with its reason; one that has ended or is confirmed stays as it is.
UPDATE reservations
SET status = 'CANCELLED', reason = ending.reason, ended_at = now(), version = version + 1, updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS ending (reservation_id, reason)
WHERE reservations.reservation_id = ending.reservation_id AND reservations.status = 'PENDING'
RETURNING reservations.reservation_id;

-- name: end_lines_of
-- The seats of rows that ended.
UPDATE reservation_seats
SET status = 'ENDED', updated_at = now()
WHERE reservation_id = ANY ($1::uuid[]) AND status = 'HELD';

-- name: find_reservation
-- One row with its seats, their tickets, and its latest payment.
SELECT
  reservations.*,
  now() AS server_time,
  (
    SELECT coalesce(
      jsonb_agg(
        jsonb_build_object(
          'seat_no', lines.seat_no, 'price', lines.price, 'tier', lines.tier, 'status', lines.status,
          'ticket_no', tickets.ticket_no
        ) ORDER BY lines.seat_no
      ), '[]'
    )
    FROM reservation_seats AS lines
    LEFT JOIN tickets USING (reservation_id, seat_no)
    WHERE lines.reservation_id = reservations.reservation_id
  ) AS lines,
  -- Each of the two has an index of its own (payments_live, payments_ended).
  coalesce(
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = reservations.reservation_id AND payments.is_live
    ),
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = reservations.reservation_id AND NOT payments.is_live
      ORDER BY created_at DESC
      LIMIT 1
    )
  ) AS payment_id,
  EXISTS (
    SELECT FROM payments
    WHERE payments.hold_id = reservations.reservation_id
      AND is_live AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) AS payment_live
FROM reservations
WHERE reservation_id = $1 AND user_id = $2;

-- name: list_reservations
-- A user's rows with their seats, newest first, after a cursor.
SELECT
  reservations.*,
  now() AS server_time,
  (
    SELECT coalesce(
      jsonb_agg(
        jsonb_build_object(
          'seat_no', lines.seat_no, 'price', lines.price, 'tier', lines.tier, 'status', lines.status,
          'ticket_no', tickets.ticket_no
        ) ORDER BY lines.seat_no
      ), '[]'
    )
    FROM reservation_seats AS lines
    LEFT JOIN tickets USING (reservation_id, seat_no)
    WHERE lines.reservation_id = reservations.reservation_id
  ) AS lines,
  -- Each of the two has an index of its own (payments_live, payments_ended).
  coalesce(
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = reservations.reservation_id AND payments.is_live
    ),
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = reservations.reservation_id AND NOT payments.is_live
      ORDER BY created_at DESC
      LIMIT 1
    )
  ) AS payment_id,
  EXISTS (
    SELECT FROM payments
    WHERE payments.hold_id = reservations.reservation_id
      AND is_live AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) AS payment_live
FROM reservations
WHERE user_id = $1 AND (created_at, reservation_id) < ($2::timestamptz, $3::uuid)
ORDER BY created_at DESC, reservation_id DESC
LIMIT $4;

-- name: find_beside
-- What stands beside each of these payments: whether it has a row, and the seats and the live payment of its
-- reservation. Read after the locks: a statement that waited for one still sees what was before its wait.
SELECT
  asked.payment_id,
  asked.reservation_id,
  (SELECT payments.payment_id FROM payments WHERE payments.payment_id = asked.payment_id) IS NOT NULL AS is_known,
  (
    SELECT payments.payment_id
    FROM payments
    WHERE payments.hold_id = asked.reservation_id
      AND payments.is_live AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) AS live_payment_id,
  ARRAY(
    SELECT lines.seat_no
    FROM reservation_seats AS lines
    WHERE lines.reservation_id = asked.reservation_id AND lines.status <> 'ENDED'
  ) AS seat_nos
FROM unnest($1::uuid[], $2::uuid[]) AS asked (payment_id, reservation_id);

-- name: keep_lines
-- Seats of these reservations that are not among those they keep.
UPDATE reservation_seats AS lines
SET status = 'ENDED', updated_at = now()
WHERE lines.reservation_id = ANY ($1::uuid[])
  AND lines.status = 'HELD'
  AND NOT EXISTS (
    SELECT FROM unnest($2::uuid[], $3::text[]) AS kept (reservation_id, seat_no)
    WHERE kept.reservation_id = lines.reservation_id AND kept.seat_no = lines.seat_no
  );

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
  WHERE sale_id = $1 AND seat_no = ANY (ARRAY(SELECT seat_no FROM claimed))
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

-- name: confirm_reservations
-- Reservations whose sale stands, and their payments, whose money is taken now. Each is looked up by its id: by what is
-- PENDING or unsettled, all that was so since the last vacuum would be looked at for every batch.
WITH confirmed AS (
  UPDATE reservations
  SET status = 'CONFIRMED', confirmed_at = now(), version = version + 1, updated_at = now()
  FROM unnest($1::uuid[]) AS sold (reservation_id)
  WHERE reservations.reservation_id = sold.reservation_id AND reservations.status = 'PENDING'
)
UPDATE payments
SET status = 'SUCCESS', paid_at = now(), version = version + 1, updated_at = now()
FROM unnest($2::uuid[]) AS taken (payment_id)
WHERE payments.payment_id = taken.payment_id AND payments.status = 'AUTHORISED';

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
WHERE claims.sale_id = $1 AND claims.seat_no = ANY ($2::text[]) AND claims.is_claimed
ORDER BY claims.seat_no
FOR SHARE OF claims;

-- name: find_wanted
-- What a payment was for: the lines that were given back before it are no part of it.
SELECT lines.seat_no, lines.price, lines.tier, seats.area
FROM payments
JOIN reservation_seats AS lines USING (reservation_id)
JOIN seats ON seats.sale_id = lines.sale_id AND seats.seat_no = lines.seat_no
WHERE payments.payment_id = $1
  AND (lines.status <> 'ENDED' OR lines.updated_at > payments.created_at)
ORDER BY lines.seat_no;

-- name: find_reason
-- Why a user's reservation is over, or SOLD.
SELECT coalesce(reason, 'SOLD')
FROM reservations
WHERE reservation_id = $1 AND user_id = $2;

-- name: find_claimed_lines
-- What each seat of these reservations cost, in an order that is always the same.
SELECT reservation_id, seat_no, price
FROM reservation_seats
WHERE reservation_id = ANY ($1::uuid[]) AND status = 'CLAIMED'
ORDER BY reservation_id, seat_no;

-- name: discount_lines
-- Each seat's share of what a coupon took off.
UPDATE reservation_seats AS lines
SET discount_amount = shared.share, updated_at = now()
FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS shared (reservation_id, seat_no, share)
WHERE lines.reservation_id = shared.reservation_id AND lines.seat_no = shared.seat_no;
