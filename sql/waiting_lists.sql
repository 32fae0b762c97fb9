-- Waiting lists: who waits for what comes back, in order of joining, and what became of what they were offered. What is of
-- seats and what is of units stands in files of their own.

-- Joining ------------------------------------------------------------------------------------------------------------

-- name: lock_sale
-- The sale somebody joins for, locked: entries are numbered in the order in which they can be seen. It is over at the latest
-- when its event begins.
SELECT
  sales.opens_at, least(sales.closes_at, schedules.start_at) AS closes_at, sales.per_buyer_max, clock_timestamp() AS now
FROM sales
LEFT JOIN schedules USING (sale_id)
WHERE sale_id = $1
FOR NO KEY UPDATE OF sales;

-- name: find_entry
-- An entry, with how many wait before it: for seats of the sale, or for the same variant.
SELECT
  entries.*,
  (
    SELECT count(*)
    FROM waiting_list_entries AS before
    WHERE before.sale_id = entries.sale_id
      AND before.variant_id IS NOT DISTINCT FROM entries.variant_id
      AND before.is_waiting
      AND before.entry_no < entries.entry_no
  ) AS ahead,
  coalesce(reservations.expires_at, orders.expires_at) AS expires_at
FROM waiting_list_entries AS entries
LEFT JOIN reservations ON reservations.reservation_id = entries.hold_id AND entries.status = 'OFFERED'
LEFT JOIN orders ON orders.order_id = entries.hold_id AND entries.status = 'OFFERED'
WHERE entry_id = $1;

-- name: count_mine
-- How many entries of a user wait or are offered something.
SELECT count(*)
FROM waiting_list_entries
WHERE user_id = $2 AND sale_id = $1 AND status IN ('WAITING', 'OFFERED');

-- name: open_lists
-- What is freed is kept for who waits, from now on: a term of the sale, one version on.
UPDATE sales
SET waiting_list = true,
    version = version + 1,
    updated_at = now()
WHERE sale_id = ANY ($1::uuid[]) AND NOT waiting_list;

-- Mine ---------------------------------------------------------------------------------------------------------------

-- name: list_mine
-- A user's entries, newest first, after a cursor.
SELECT
  entries.*,
  (
    SELECT count(*)
    FROM waiting_list_entries AS before
    WHERE before.sale_id = entries.sale_id
      AND before.variant_id IS NOT DISTINCT FROM entries.variant_id
      AND before.is_waiting
      AND before.entry_no < entries.entry_no
  ) AS ahead,
  coalesce(reservations.expires_at, orders.expires_at) AS expires_at
FROM waiting_list_entries AS entries
LEFT JOIN reservations ON reservations.reservation_id = entries.hold_id AND entries.status = 'OFFERED'
LEFT JOIN orders ON orders.order_id = entries.hold_id AND entries.status = 'OFFERED'
WHERE entries.user_id = $1 AND entries.entry_no < $2
ORDER BY entries.entry_no DESC
LIMIT $3;

-- name: leave_all
-- Somebody who is no more waits for nothing.
UPDATE waiting_list_entries
SET status = 'LEFT',
    reason = 'USER',
    updated_at = now()
WHERE user_id = $1 AND status = 'WAITING';

-- name: leave
-- An entry that waits, or was offered something, waits no more.
UPDATE waiting_list_entries
SET status = 'LEFT',
    reason = 'USER',
    updated_at = now()
WHERE entry_id = $1 AND status IN ('WAITING', 'OFFERED');

-- Serving ------------------------------------------------------------------------------------------------------------

-- name: is_awaited
-- Whether anybody waits in this sale.
SELECT EXISTS (SELECT FROM waiting_list_entries WHERE sale_id = $1 AND is_waiting);

-- name: note_offers
-- These were offered what they wait for.
UPDATE waiting_list_entries
SET status = 'OFFERED',
    updated_at = now()
WHERE entry_id = ANY ($1::uuid[]) AND status = 'WAITING';

-- name: list_left
-- Which of these entries were left, whatever was offered to them since.
SELECT entry_id
FROM waiting_list_entries
WHERE entry_id = ANY ($1::uuid[]) AND status = 'LEFT';

-- name: close_list
-- What is freed is the public's again, if nobody waits any more; under the lock of the sale, so that whoever joins in
-- this moment is not overlooked.
UPDATE sales
SET waiting_list = false,
    version = version + 1,
    updated_at = now()
WHERE sale_id = $1
  AND waiting_list
  AND NOT EXISTS (
    SELECT FROM waiting_list_entries AS entries WHERE entries.sale_id = $1 AND entries.is_waiting
  );

-- name: follow
-- What became of what was offered: the reservation or the order says it. An offer of which there is neither after a minute
-- was lost with the store, and whoever it was for waits again.
UPDATE waiting_list_entries AS entries
SET status = stands.status,
    updated_at = now()
FROM (
  SELECT
    offered.entry_id,
    CASE
      WHEN coalesce(reservations.status, orders.status) = 'PENDING' THEN 'OFFERED'
      WHEN coalesce(reservations.confirmed_at, orders.paid_at) IS NOT NULL THEN 'TAKEN'
      WHEN coalesce(reservations.status, orders.status) IS NOT NULL THEN 'LAPSED'
      WHEN offered.updated_at < now() - interval '1 minute' THEN 'WAITING'
      ELSE 'OFFERED'
    END AS status
  FROM waiting_list_entries AS offered
  LEFT JOIN reservations ON reservations.reservation_id = offered.hold_id
  LEFT JOIN orders ON orders.order_id = offered.hold_id
  WHERE offered.status = 'OFFERED'
) AS stands
WHERE entries.entry_id = stands.entry_id
  AND entries.status = 'OFFERED'
  AND stands.status <> 'OFFERED'
RETURNING entries.sale_id, entries.status;

-- name: note_forgotten
-- Whoever has a reservation or an order by its entry was offered something, though nobody noted it.
UPDATE waiting_list_entries AS entries
SET status = 'OFFERED',
    updated_at = now()
WHERE entries.is_waiting
  AND (
    (SELECT reservation_id FROM reservations WHERE reservation_id = entries.hold_id) IS NOT NULL
    OR (SELECT order_id FROM orders WHERE order_id = entries.hold_id) IS NOT NULL
  );

-- name: dismiss
-- Nobody waits for an event that has begun, or is off, nor for goods whose sale is closed.
UPDATE waiting_list_entries AS entries
SET status = 'LEFT',
    reason = over.reason,
    updated_at = now()
FROM (
  SELECT
    sales.sale_id,
    CASE
      WHEN off.schedule_id IS NOT NULL THEN 'EVENT_CANCELLED'
      WHEN schedules.schedule_id IS NOT NULL THEN 'EVENT_OVER'
      ELSE 'SALE_OVER'
    END AS reason
  FROM sales
  LEFT JOIN schedules USING (sale_id)
  LEFT JOIN schedule_cancellations AS off USING (schedule_id)
  WHERE sales.waiting_list
    AND (
      schedules.start_at <= now()
      OR off.schedule_id IS NOT NULL
      OR (schedules.schedule_id IS NULL AND sales.closes_at <= now())
    )
) AS over
WHERE entries.sale_id = over.sale_id AND entries.is_waiting;
