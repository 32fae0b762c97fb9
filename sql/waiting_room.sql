-- The waiting room: what the journal says of people in line, for operators and for a line that was lost.

-- name: keep_tokens
-- Numbers that were given out, each as it stands at the end of the batch; one that has ended stays ended.
INSERT INTO queue_tokens AS kept (
  sale_id, queue_no, epoch, owner, status, created_at, admitted_at, ended_at
)
SELECT
  $1, queue_no, $2, owner, status, to_timestamp(created_at_ms / 1000.0), to_timestamp(admitted_at_ms / 1000.0),
  to_timestamp(ended_at_ms / 1000.0)
FROM unnest($3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[])
  AS token (queue_no, owner, status, created_at_ms, admitted_at_ms, ended_at_ms)
ORDER BY queue_no
ON CONFLICT (sale_id, queue_no) DO UPDATE
SET
  epoch = EXCLUDED.epoch,
  owner = EXCLUDED.owner,
  status = EXCLUDED.status,
  admitted_at = coalesce(EXCLUDED.admitted_at, kept.admitted_at),
  ended_at = EXCLUDED.ended_at,
  updated_at = now()
WHERE kept.status IN ('WAITING', 'ACTIVE');

-- name: edit_tokens
-- What became of numbers that were given out before; null leaves a column as it is. A number that is returned lives
-- again, but not one that has bought: the outbox may be ahead of the journal.
UPDATE queue_tokens AS kept
SET
  owner = coalesce(token.owner, kept.owner),
  status = coalesce(token.status, kept.status),
  admitted_at = coalesce(to_timestamp(token.admitted_at_ms / 1000.0), kept.admitted_at),
  ended_at = to_timestamp(token.ended_at_ms / 1000.0),
  updated_at = now()
FROM unnest($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::boolean[])
  AS token (queue_no, owner, status, admitted_at_ms, ended_at_ms, returned)
WHERE kept.sale_id = $1
  AND kept.queue_no = ANY ($2::bigint[])
  AND kept.queue_no = token.queue_no
  AND (kept.status IN ('WAITING', 'ACTIVE') OR (token.returned AND kept.status <> 'PROCESSED'));

-- name: process_tokens
-- Numbers whose owners have bought; the row may not have come by the journal yet.
INSERT INTO queue_tokens AS kept (sale_id, queue_no, epoch, owner, status, created_at, ended_at)
SELECT $1, queue_no, $2, owner, 'PROCESSED', now(), now()
FROM unnest($3::bigint[], $4::text[]) AS token (queue_no, owner)
ORDER BY queue_no
ON CONFLICT (sale_id, queue_no) DO UPDATE
SET status = 'PROCESSED', ended_at = now(), updated_at = now()
WHERE kept.status <> 'PROCESSED';

-- name: find_ends
-- How numbers ended, and whether within the hour for which they answer. A visitor's number that stands under a user is
-- the one that was tied.
SELECT token.at, kept.status, kept.ended_at > now() - interval '1 hour' AS lately
FROM unnest($1::uuid[], $2::bigint[], $3::text[]) WITH ORDINALITY AS token (sale_id, queue_no, owner, at)
JOIN queue_tokens AS kept USING (sale_id, queue_no)
WHERE kept.status IN ('PROCESSED', 'EXPIRED', 'LEFT')
  AND (kept.owner = token.owner OR (token.owner LIKE 'v%' AND kept.owner NOT LIKE 'v%'));
