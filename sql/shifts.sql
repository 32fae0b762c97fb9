-- Shifts: which workers live, and what is swept away once it is old.

-- name: keep_worker
-- A worker says that it lives and how many sales it owns.
INSERT INTO workers (worker, sales)
VALUES ($1, $2)
ON CONFLICT (worker) DO UPDATE
SET sales = EXCLUDED.sales, updated_at = now();

-- name: remove_worker
-- A worker went home.
DELETE FROM workers
WHERE worker = $1;

-- name: count_shares
-- How many sales there are, and how many workers were alive within the last $1 seconds.
SELECT
  (SELECT count(*) FROM sales) AS sales,
  (SELECT count(*) FROM workers WHERE updated_at > now() - make_interval(secs => $1)) AS workers;

-- name: list_workers
-- Workers that were alive within the last $1 seconds, the oldest first.
SELECT worker, sales, created_at, updated_at
FROM workers
WHERE updated_at > now() - make_interval(secs => $1)
ORDER BY created_at, worker;

-- name: forget_workers
-- Workers that died without a word, after a day.
DELETE FROM workers
WHERE updated_at < now() - interval '1 day';

-- name: forget_queue_tokens
-- Rows of the line that are older than $1 days, at most $2 of them.
DELETE FROM queue_tokens
WHERE (sale_id, queue_no) IN (
  SELECT sale_id, queue_no
  FROM queue_tokens
  WHERE created_at < now() - make_interval(days => $1)
  LIMIT $2
);
