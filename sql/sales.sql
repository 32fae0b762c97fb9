-- Sales: their rows, their terms, the settings of their waiting rooms.

-- name: find_sales
-- Sales by id, each with the schedule it was made for.
SELECT sales.*, schedules.schedule_id
FROM sales
LEFT JOIN schedules USING (sale_id)
WHERE sales.sale_id = ANY ($1::uuid[]);

-- name: find_sales_of_schedules
-- The sales of these schedules.
SELECT sales.*, schedules.schedule_id
FROM schedules
JOIN sales USING (sale_id)
WHERE schedules.schedule_id = ANY ($1::uuid[]);

-- name: list_changed_sales
-- Sales that were made or changed since a moment, the last change last.
SELECT sales.*, schedules.schedule_id
FROM sales
LEFT JOIN schedules USING (sale_id)
WHERE sales.updated_at >= $1
ORDER BY sales.updated_at, sales.sale_id;

-- name: list_newest_sales
-- The sales that were made last, the newest first, each with what is left of it.
SELECT sales.sale_id, sales.name, sales.room, sales.store_state, sales.opens_at, sales.closes_at,
  schedules.seats_available, schedules.seats_total, schedules.schedule_id
FROM sales
LEFT JOIN schedules USING (sale_id)
WHERE sales.kind <> 'coupon'
ORDER BY sales.created_at DESC, sales.sale_id DESC
LIMIT $1;

-- name: add_sale
-- A new sale; a repeat changes nothing. From $4 on its terms, in their order.
INSERT INTO sales (
  sale_id, kind, fingerprint, name, opens_at, closes_at, per_buyer_max, hold_s, hold_max_s, extensions_max, pay_s,
  refund_policy, room, active_max, admitted_per_minute_max, entry_s, session_s, recall_s, draining_no, release_jitter_s,
  offer_s
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
ON CONFLICT (sale_id) DO NOTHING;

-- name: add_watermarks
-- Where the streams of a new sale begin: nothing applied, in an epoch before the first.
INSERT INTO stream_watermarks (sale_id, stream, epoch, n, entry_id)
SELECT $1, stream, 0, 0, '0-0'
FROM unnest(ARRAY['outbox', 'journal']) AS stream
ON CONFLICT (sale_id, stream) DO NOTHING;

-- name: lock_sale
-- A sale, for an edit that depends on what it says.
SELECT sales.*, schedules.schedule_id
FROM sales
LEFT JOIN schedules USING (sale_id)
WHERE sales.sale_id = $1
FOR UPDATE OF sales;

-- name: is_called_off
-- Whether the event of this sale is off: it sells nothing any more.
SELECT EXISTS (SELECT FROM schedule_cancellations WHERE sale_id = $1);

-- name: edit_sale
-- The terms of a sale, in their order, one version on.
UPDATE sales
SET name = $2,
    opens_at = $3,
    closes_at = $4,
    per_buyer_max = $5,
    hold_s = $6,
    hold_max_s = $7,
    extensions_max = $8,
    pay_s = $9,
    refund_policy = $10,
    room = $11,
    active_max = $12,
    admitted_per_minute_max = $13,
    entry_s = $14,
    session_s = $15,
    recall_s = $16,
    draining_no = $17,
    release_jitter_s = $18,
    offer_s = $19,
    version = version + 1,
    updated_at = now()
WHERE sale_id = $1
RETURNING version;

-- name: keep_checkpoint
-- How far the line of this copy has come, and with $4 above 0 how many numbers it is allowed; both only rise. No row:
-- there was nothing to keep.
UPDATE sales
SET serving = greatest(serving, $3),
    queue_no_ceiling = greatest(queue_no_ceiling, $4),
    updated_at = now()
WHERE sale_id = $1
  AND epoch = $2
  AND (serving < $3 OR $4 > 0)
RETURNING queue_no_ceiling;
