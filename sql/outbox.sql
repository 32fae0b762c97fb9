-- The outbox: who reads a sale's streams, how far they were applied, and what could not be.

-- name: take_ownership
-- Take sales that nobody owns or whose owner went silent, of $4 or of all; the generation fences who owned them before.
WITH free AS (
  SELECT sales.sale_id
  FROM sales
  LEFT JOIN stream_owners USING (sale_id)
  WHERE (stream_owners.sale_id IS NULL OR stream_owners.until < now())
    AND ($4::uuid[] IS NULL OR sales.sale_id = ANY ($4))
  ORDER BY sales.sale_id
  LIMIT $2
)
INSERT INTO stream_owners AS owners (sale_id, owner, generation, until)
SELECT sale_id, $1, 1, now() + make_interval(secs => $3)
FROM free
ON CONFLICT (sale_id) DO UPDATE
SET
  owner = EXCLUDED.owner,
  generation = owners.generation + 1,
  until = EXCLUDED.until,
  updated_at = now()
WHERE owners.until < now()
RETURNING sale_id, generation;

-- name: fence_watermarks
-- From here on only this generation may move these watermarks.
UPDATE stream_watermarks AS watermarks
SET generation = taken.generation, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS taken (sale_id, generation)
WHERE watermarks.sale_id = taken.sale_id AND watermarks.generation < taken.generation;

-- name: renew_ownership
-- Keep owning these sales, as long as nobody has taken them.
UPDATE stream_owners AS owners
SET until = now() + make_interval(secs => $4), updated_at = now()
FROM unnest($2::uuid[], $3::bigint[]) AS mine (sale_id, generation)
WHERE owners.sale_id = mine.sale_id AND owners.generation = mine.generation AND owners.owner = $1
RETURNING owners.sale_id, owners.generation;

-- name: give_back_ownership
-- Stop owning these sales, so that another worker takes them at once.
UPDATE stream_owners AS owners
SET until = now() - interval '1 millisecond', updated_at = now()
FROM unnest($2::uuid[], $3::bigint[]) AS mine (sale_id, generation)
WHERE owners.sale_id = mine.sale_id AND owners.generation = mine.generation AND owners.owner = $1;

-- name: find_watermark
-- How far a stream was applied.
SELECT epoch, generation, n, entry_id, held_entry_id
FROM stream_watermarks
WHERE sale_id = $1 AND stream = $2;

-- name: lock_watermark
-- The watermark, if it still stands where its owner left it: no row, nothing may be written.
SELECT n
FROM stream_watermarks
WHERE sale_id = $1 AND stream = $2 AND epoch = $3 AND generation = $4 AND entry_id = $5
FOR UPDATE;

-- name: move_watermark
-- The stream was applied up to here; one row for each applied batch says its range of numbers.
WITH moved AS (
  UPDATE stream_watermarks
  SET n = $5, entry_id = $6, held_entry_id = $7, updated_at = now()
  WHERE sale_id = $1 AND stream = $2
)
INSERT INTO applied_batches (sale_id, stream, epoch, first_n, last_n, count)
VALUES ($1, $2, $3, $4, $5, $5 - $4 + 1);

-- name: add_dead_letter
-- An entry that Postgres refuses whatever surrounds it, kept for an operator.
INSERT INTO dead_letters (sale_id, stream, epoch, n, entry_id, kind, fields, error, payment_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: freeze_sale
-- The stream and Postgres disagree: the sale stands still until it is rebuilt.
UPDATE sales
SET store_state = 'frozen', frozen_reason = $3, updated_at = now()
WHERE sale_id = $1 AND epoch = $2 AND store_state = 'open';
