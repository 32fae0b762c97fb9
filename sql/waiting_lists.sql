-- Waiting lists: who waits for seats that come back, in order of joining, and what became of what they were offered.

-- Joining ------------------------------------------------------------------------------------------------------------

-- name: lock_sale
-- The sale somebody joins for, locked: entries are numbered in the order in which they can be seen.
SELECT sales.opens_at, sales.closes_at, sales.per_buyer_max, schedules.start_at, clock_timestamp() AS now
FROM sales
JOIN schedules USING (sale_id)
WHERE sale_id = $1
FOR NO KEY UPDATE OF sales;

-- name: find_entry
-- An entry, with how many wait before it.
SELECT
  entries.*,
  (
    SELECT count(*)
    FROM waiting_list_entries AS before
    WHERE before.sale_id = entries.sale_id AND before.status = 'WAITING' AND before.entry_no < entries.entry_no
  ) AS ahead,
  reservations.expires_at
FROM waiting_list_entries AS entries
LEFT JOIN reservations ON reservations.reservation_id = entries.reservation_id AND entries.status = 'OFFERED'
WHERE entry_id = $1;

-- name: count_mine
-- How many entries of a user wait or are offered something, and how many seats of the sale they have.
SELECT
  (
    SELECT count(*)
    FROM waiting_list_entries
    WHERE user_id = $2 AND sale_id = $1 AND status IN ('WAITING', 'OFFERED')
  ) AS entries,
  (
    SELECT count(*)
    FROM reservations
    JOIN reservation_seats AS lines USING (reservation_id)
    WHERE reservations.user_id = $2 AND reservations.sale_id = $1 AND lines.status = 'CLAIMED'
  ) AS seats;

-- name: add_entry
-- One more who waits.
INSERT INTO waiting_list_entries (
  entry_id, sale_id, schedule_id, user_id, quantity, adjacent, category, section, price_max, accessible,
  reservation_id, status, fingerprint
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'WAITING', $12);

-- name: open_lists
-- What is freed is kept for who waits, from now on: a term of the sale, one version on.
UPDATE sales
SET waiting_list = true,
    version = version + 1,
    updated_at = now()
WHERE sale_id = ANY ($1::uuid[]) AND NOT waiting_list;

-- name: find_names
-- Whether seats of this category, and of this section, exist in a sale at all.
SELECT
  $2::text IS NULL OR EXISTS (SELECT FROM seats WHERE sale_id = $1 AND category = $2) AS category,
  $3::text IS NULL OR EXISTS (SELECT FROM seats WHERE sale_id = $1 AND section = $3) AS section;

-- name: measure
-- Of the seats that a wish may be filled with, how many there are, and how many at most side by side. Places of an area
-- are beside each other, wherever in it they are.
WITH fitting AS (
  SELECT
    section,
    row_name,
    CASE WHEN area IS NULL THEN number - row_number() OVER (PARTITION BY section, row_name ORDER BY number) END AS run
  FROM seats
  WHERE sale_id = $1
    AND ($2::text IS NULL OR category = $2)
    AND ($3::text IS NULL OR section = $3)
    AND ($4::bigint IS NULL OR price <= $4)
    AND ($5 OR NOT accessible)
    AND block IS NULL
),
runs AS (
  SELECT count(*) AS length
  FROM fitting
  GROUP BY section, row_name, run
)
SELECT coalesce(sum(length), 0)::bigint AS seats, coalesce(max(length), 0) AS adjacent
FROM runs;

-- Mine ---------------------------------------------------------------------------------------------------------------

-- name: list_mine
-- A user's entries, newest first, after a cursor.
SELECT
  entries.*,
  (
    SELECT count(*)
    FROM waiting_list_entries AS before
    WHERE before.sale_id = entries.sale_id AND before.status = 'WAITING' AND before.entry_no < entries.entry_no
  ) AS ahead,
  reservations.expires_at
FROM waiting_list_entries AS entries
LEFT JOIN reservations ON reservations.reservation_id = entries.reservation_id AND entries.status = 'OFFERED'
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
SELECT EXISTS (SELECT FROM waiting_list_entries WHERE sale_id = $1 AND status = 'WAITING');

-- name: list_waiting
-- Who waits and may be helped by seats like these, in order of joining, after an entry. Of one whose reservation is there
-- nobody could note that it was offered something.
SELECT
  entry_id, entry_no, user_id, quantity, adjacent, category, section, price_max, accessible, reservation_id,
  EXISTS (
    SELECT FROM reservations WHERE reservations.reservation_id = entries.reservation_id
  ) AS is_offered
FROM waiting_list_entries AS entries
WHERE sale_id = $1
  AND status = 'WAITING'
  AND entry_no > $2
  AND (category IS NULL OR category = ANY ($3::text[]))
  AND (section IS NULL OR section = ANY ($4::text[]))
  AND (price_max IS NULL OR price_max >= $5)
ORDER BY entry_no
LIMIT $6;

-- name: find_seats
-- What these seats are; those of a block are not for the public, nor for who waits among it.
SELECT seat_no, section, row_name, number, category, price, accessible, area
FROM seats
WHERE sale_id = $1 AND seat_no = ANY ($2::text[]) AND block IS NULL;

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
    SELECT FROM waiting_list_entries AS entries WHERE entries.sale_id = $1 AND entries.status = 'WAITING'
  );

-- name: follow
-- What became of what was offered: the reservation says it. An offer of which there is none after a minute was lost with
-- the store, and whoever it was for waits again.
UPDATE waiting_list_entries AS entries
SET status = stands.status,
    updated_at = now()
FROM (
  SELECT
    offered.entry_id,
    CASE
      WHEN reservations.status = 'PENDING' THEN 'OFFERED'
      WHEN reservations.confirmed_at IS NOT NULL THEN 'TAKEN'
      WHEN reservations.status IS NOT NULL THEN 'LAPSED'
      WHEN offered.updated_at < now() - interval '1 minute' THEN 'WAITING'
      ELSE 'OFFERED'
    END AS status
  FROM waiting_list_entries AS offered
  LEFT JOIN reservations USING (reservation_id)
  WHERE offered.status = 'OFFERED'
) AS stands
WHERE entries.entry_id = stands.entry_id
  AND entries.status = 'OFFERED'
  AND stands.status <> 'OFFERED'
RETURNING entries.sale_id, entries.status;

-- name: note_forgotten
-- Whoever has a reservation by its entry was offered something, though nobody noted it.
UPDATE waiting_list_entries AS entries
SET status = 'OFFERED',
    updated_at = now()
FROM reservations
WHERE entries.status = 'WAITING' AND reservations.reservation_id = entries.reservation_id;

-- name: dismiss
-- Nobody waits for an event that has begun, or is off.
UPDATE waiting_list_entries AS entries
SET status = 'LEFT',
    reason = over.reason,
    updated_at = now()
FROM (
  SELECT
    sales.sale_id,
    CASE WHEN off.schedule_id IS NULL THEN 'EVENT_OVER' ELSE 'EVENT_CANCELLED' END AS reason
  FROM sales
  JOIN schedules USING (sale_id)
  LEFT JOIN schedule_cancellations AS off USING (schedule_id)
  WHERE sales.waiting_list
    AND (schedules.start_at <= now() OR off.schedule_id IS NOT NULL)
) AS over
WHERE entries.sale_id = over.sale_id AND entries.status = 'WAITING';
