-- Seats that an operator takes off a running sale, and puts on it again: what is to be done, and what was.

-- name: lock_sale
-- The copy of a sale that counts, and its schedule: neither changes until this transaction ends. In the order in which an
-- edit of a schedule locks them.
SELECT sales.epoch, sales.store_state
FROM schedules
JOIN sales USING (sale_id)
WHERE schedules.sale_id = $1
FOR NO KEY UPDATE;

-- name: find_seat_block
-- One of them.
SELECT seat_block_id, seat_block_no, sale_id, seat_nos, blocked, fingerprint, created_at, done_at
FROM seat_blocks
WHERE seat_block_id = $1;

-- name: find_unfinished
-- The one of a sale that is not done, with the copy of the sale for which that was read.
SELECT seat_block_id, seat_block_no, sale_id, seat_nos, blocked, seat_blocks.fingerprint, seat_blocks.created_at, done_at,
  sales.epoch
FROM seat_blocks
JOIN sales USING (sale_id)
WHERE sale_id = $1
  AND done_at IS NULL;

-- name: list_seats
-- These seats of a sale, as far as an operator may ask for them.
SELECT seat_no, area IS NOT NULL AS is_place, block IS NOT NULL AS is_kept, blocked
FROM seats
WHERE sale_id = $1
  AND seat_no = ANY ($2::text[]);

-- name: list_section
-- The numbered seats of a section, in reading order.
SELECT seat_no, false AS is_place, block IS NOT NULL AS is_kept, blocked
FROM seats
WHERE sale_id = $1
  AND section = $2
  AND area IS NULL
ORDER BY row_name, number;

-- name: add_seat_block
-- What is to be done.
INSERT INTO seat_blocks (seat_block_id, sale_id, seat_nos, blocked, fingerprint)
VALUES ($1, $2, $3, $4, $5);

-- name: finish
-- Both stores have it. No row: somebody else said so, or it was refused.
UPDATE seat_blocks
SET done_at = now()
WHERE seat_block_id = $1
  AND done_at IS NULL
RETURNING seat_block_id;

-- name: remove
-- Redis refused it: nothing was changed, and nothing is remembered.
DELETE FROM seat_blocks
WHERE seat_block_id = $1
  AND done_at IS NULL;

-- name: mark_seats
-- Seats are kept back, or not any more; what is sold counts as available neither way.
WITH marked AS (
  UPDATE seats
  SET blocked = $3, updated_at = now()
  WHERE sale_id = $1
    AND seat_no = ANY ($2::text[])
    AND blocked <> $3
  RETURNING sold
)
UPDATE schedules
SET
  seats_available = seats_available
    + (CASE WHEN $3 THEN -1 ELSE 1 END) * (SELECT count(*) FROM marked WHERE NOT sold)::integer,
  updated_at = now()
WHERE sale_id = $1;
