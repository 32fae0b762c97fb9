-- Who waits for seats, what they wish for, and what of it is there.

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

-- name: count_bought
-- How many seats of a sale a user has bought.
SELECT count(*)
FROM reservations
JOIN reservation_seats AS lines USING (reservation_id)
WHERE reservations.user_id = $2 AND reservations.sale_id = $1 AND lines.status = 'CLAIMED';

-- name: add_entry
-- One more who waits.
INSERT INTO waiting_list_entries (
  entry_id, sale_id, schedule_id, user_id, quantity, adjacent, category, section, price_max, accessible,
  hold_id, status, fingerprint
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'WAITING', $12);

-- name: list_waiting
-- Who waits and may be helped by seats like these, in order of joining, after an entry. Of one whose reservation is there
-- nobody could note that it was offered something.
SELECT
  entry_id, entry_no, user_id, quantity, adjacent, category, section, price_max, accessible, hold_id,
  (SELECT reservation_id FROM reservations WHERE reservation_id = entries.hold_id) IS NOT NULL AS is_offered
FROM waiting_list_entries AS entries
WHERE sale_id = $1
  AND is_waiting
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
