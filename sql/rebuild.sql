-- Rebuild: a new epoch of a sale, and its line, read from Postgres alone, to be written to Redis anew.

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

-- name: answer_letters
-- What could not be applied was not so: the copy that said it is gone, and the new one is written from the rows. A payment
-- in doubt still waits for an operator's word.
UPDATE dead_letters
SET resolution = 'REBUILT',
    resolved_at = now()
WHERE sale_id = $1
  AND resolution IS NULL
  AND (SELECT status FROM payments WHERE payments.payment_id = dead_letters.payment_id) IS DISTINCT FROM 'IN_DOUBT';

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

-- name: finish
-- The copy of this epoch is open: what every process was told by Redis, Postgres says too.
UPDATE sales
SET store_state = 'open',
    frozen_reason = NULL,
    updated_at = now()
WHERE sale_id = $1
  AND epoch = $2
  AND store_state = 'rebuilding';
