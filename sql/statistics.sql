-- Statistics: what was sold of each product, by days of the installation's time zone and by intervals.

-- name: count_sold
-- Units of orders that this very transaction has paid, on the day of their `paid_at`: a row a product and day, locked in
-- this order, and one for the next interval run. Without the zone's row, a day is null and is refused.
WITH sold AS (
  SELECT
    product_variants.product_id,
    (orders.paid_at AT TIME ZONE (SELECT value FROM installation WHERE name = 'time_zone'))::date AS day,
    sum(order_items.quantity)::bigint AS quantity,
    count(DISTINCT orders.order_id) AS orders,
    sum(order_items.total_price)::bigint AS amount
  FROM orders
  JOIN order_items USING (order_id)
  JOIN product_variants USING (variant_id)
  WHERE orders.order_id = ANY ($1::uuid[])
  GROUP BY 1, 2
), counted AS (
  INSERT INTO product_daily_sales AS days (product_id, day, sold_quantity, orders, amount)
  SELECT product_id, day, quantity, orders, amount
  FROM sold
  ORDER BY product_id, day
  ON CONFLICT (product_id, day) DO UPDATE
  SET
    sold_quantity = days.sold_quantity + excluded.sold_quantity,
    orders = days.orders + excluded.orders,
    amount = days.amount + excluded.amount,
    aggregated_at = now(),
    updated_at = now()
)
INSERT INTO unaggregated_sales (product_id, day, sold_quantity)
SELECT product_id, day, quantity
FROM sold;

-- name: count_refunded
-- What is given back of lines, written down and counted today; a cancellation that comes twice is refused by its key.
WITH refunded AS (
  INSERT INTO order_item_refunds (cancellation_id, order_id, variant_id, quantity, amount)
  SELECT *
  FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[])
  RETURNING variant_id, quantity, amount, created_at
)
INSERT INTO product_daily_sales AS days (product_id, day, refunded_quantity, refunded_amount)
SELECT
  product_variants.product_id,
  (refunded.created_at AT TIME ZONE (SELECT value FROM installation WHERE name = 'time_zone'))::date AS day,
  sum(refunded.quantity),
  sum(refunded.amount)
FROM refunded
JOIN product_variants USING (variant_id)
GROUP BY 1, 2
ORDER BY 1, 2
ON CONFLICT (product_id, day) DO UPDATE
SET
  refunded_quantity = days.refunded_quantity + excluded.refunded_quantity,
  refunded_amount = days.refunded_amount + excluded.refunded_amount,
  aggregated_at = now(),
  updated_at = now();

-- name: lock_aggregation
-- Where the next interval begins, locked: one run at a time.
SELECT aggregated_to
FROM sales_aggregation
FOR NO KEY UPDATE;

-- name: aggregate
-- Take everything that was committed and is in no interval yet into one that begins at $1 and ends now.
WITH run AS (
  UPDATE sales_aggregation
  SET aggregated_to = greatest(clock_timestamp(), $1::timestamptz + interval '1 microsecond'), updated_at = now()
  RETURNING aggregated_to
), claimed AS (
  DELETE FROM unaggregated_sales
  RETURNING product_id, day, sold_quantity
)
INSERT INTO product_interval_sales (product_id, day, aggregated_from, aggregated_to, sold_quantity)
SELECT product_id, day, $1, aggregated_to, sum(sold_quantity)
FROM claimed
CROSS JOIN run
GROUP BY product_id, day, aggregated_to
HAVING sum(sold_quantity) <> 0;

-- name: find_today
-- What time it is, and which day in the zone of the installation.
SELECT
  now() AS now,
  (now() AT TIME ZONE (SELECT value FROM installation WHERE name = 'time_zone'))::date AS today;

-- name: list_best_sellers
-- Products in one of these states by what was sold from one day to another less what was given back then, at most $4.
SELECT product_id, name, sold.quantity AS sold_quantity, sold.amount
FROM (
  SELECT
    product_id,
    sum(sold_quantity - refunded_quantity)::bigint AS quantity,
    sum(amount - refunded_amount)::bigint AS amount
  FROM product_daily_sales
  WHERE day BETWEEN $1 AND $2
  GROUP BY product_id
) AS sold
JOIN products USING (product_id)
WHERE sold.quantity > 0
  AND status = ANY ($3::text[])
ORDER BY sold.quantity DESC, sold.amount DESC, product_id
LIMIT $4;

-- name: list_days
-- From one day to another, of all products or of one, the newest day first; from below a place in that order on.
SELECT product_id, day, sold_quantity, orders, amount, refunded_quantity, refunded_amount, aggregated_at
FROM product_daily_sales
WHERE day BETWEEN $1 AND $2
  AND ($3::uuid IS NULL OR product_id = $3)
  AND ($4::date IS NULL OR (day, product_id) < ($4, $5::uuid))
ORDER BY day DESC, product_id DESC
LIMIT $6;

-- name: list_intervals
-- Units of days from one to another, of all products or of one, the newest interval first; from below a place on.
SELECT product_id, day, aggregated_from, aggregated_to, sold_quantity
FROM product_interval_sales
WHERE day BETWEEN $1 AND $2
  AND ($3::uuid IS NULL OR product_id = $3)
  AND ($4::timestamptz IS NULL OR (aggregated_from, product_id, day) < ($4, $5::uuid, $6::date))
ORDER BY aggregated_from DESC, product_id DESC, day DESC
LIMIT $7;

-- name: compare_days
-- Days from one to another that say something else than the rows of orders and refunds: five figures each.
WITH counted AS (
  SELECT
    product_id,
    day,
    ARRAY[sum(sold), sum(orders), sum(amount), sum(refunded), sum(refunded_amount)]::bigint[] AS figures
  FROM (
    SELECT
      product_variants.product_id,
      (orders.paid_at AT TIME ZONE (SELECT value FROM installation WHERE name = 'time_zone'))::date AS day,
      sum(order_items.quantity) AS sold,
      count(DISTINCT orders.order_id) AS orders,
      sum(order_items.total_price) AS amount,
      0 AS refunded,
      0 AS refunded_amount
    FROM orders
    JOIN order_items USING (order_id)
    JOIN product_variants USING (variant_id)
    WHERE orders.paid_at IS NOT NULL
    GROUP BY 1, 2
    UNION ALL
    SELECT
      product_variants.product_id,
      (refunds.created_at AT TIME ZONE (SELECT value FROM installation WHERE name = 'time_zone'))::date AS day,
      0,
      0,
      0,
      sum(refunds.quantity),
      sum(refunds.amount)
    FROM order_item_refunds AS refunds
    JOIN product_variants USING (variant_id)
    GROUP BY 1, 2
  ) AS parts
  WHERE day BETWEEN $1 AND $2
  GROUP BY product_id, day
), kept AS (
  SELECT product_id, day, ARRAY[sold_quantity, orders, amount, refunded_quantity, refunded_amount] AS figures
  FROM product_daily_sales
  WHERE day BETWEEN $1 AND $2
)
SELECT
  product_id,
  day,
  coalesce(kept.figures, '{0,0,0,0,0}') AS kept,
  coalesce(counted.figures, '{0,0,0,0,0}') AS counted
FROM counted
FULL JOIN kept USING (product_id, day)
WHERE kept.figures IS DISTINCT FROM counted.figures
ORDER BY day, product_id;

-- name: compare_intervals
-- Days from one to another to whose sold units the intervals, and what waits for the next, do not add up.
WITH aggregated AS (
  SELECT product_id, day, sum(sold_quantity)::bigint AS quantity
  FROM (
    SELECT product_id, day, sold_quantity
    FROM product_interval_sales
    UNION ALL
    SELECT product_id, day, sold_quantity
    FROM unaggregated_sales
  ) AS parts
  WHERE day BETWEEN $1 AND $2
  GROUP BY product_id, day
), kept AS (
  SELECT product_id, day, sold_quantity AS quantity
  FROM product_daily_sales
  WHERE day BETWEEN $1 AND $2
)
SELECT product_id, day, coalesce(aggregated.quantity, 0) AS aggregated, coalesce(kept.quantity, 0) AS counted
FROM kept
FULL JOIN aggregated USING (product_id, day)
WHERE coalesce(aggregated.quantity, 0) <> coalesce(kept.quantity, 0)
ORDER BY day, product_id;

-- name: lock_days
-- Nobody counts until this transaction ends: what waits for it reads the days only then.
LOCK TABLE product_daily_sales IN SHARE ROW EXCLUSIVE MODE;

-- name: put_days_right
-- Days as they should be.
INSERT INTO product_daily_sales
  (product_id, day, sold_quantity, orders, amount, refunded_quantity, refunded_amount)
SELECT *
FROM unnest($1::uuid[], $2::date[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
ON CONFLICT (product_id, day) DO UPDATE
SET
  sold_quantity = excluded.sold_quantity,
  orders = excluded.orders,
  amount = excluded.amount,
  refunded_quantity = excluded.refunded_quantity,
  refunded_amount = excluded.refunded_amount,
  aggregated_at = now(),
  updated_at = now();

-- name: put_intervals_right
-- What the next interval has to make up for.
INSERT INTO unaggregated_sales (product_id, day, sold_quantity)
SELECT *
FROM unnest($1::uuid[], $2::date[], $3::bigint[]);

-- name: find_unlike_refunds
-- Lines of which something else was given back than their cancellations say.
SELECT order_id, variant_id, refunded_quantity AS kept, coalesce(refunds.quantity, 0) AS counted
FROM order_items
LEFT JOIN (
  SELECT order_id, variant_id, sum(quantity)::bigint AS quantity
  FROM order_item_refunds
  GROUP BY order_id, variant_id
) AS refunds USING (order_id, variant_id)
WHERE refunded_quantity <> coalesce(refunds.quantity, 0)
ORDER BY order_id, variant_id;

-- name: find_overlapping_intervals
-- Intervals that begin before the one before them ended.
SELECT aggregated_from, aggregated_to
FROM (
  SELECT
    aggregated_from,
    aggregated_to,
    lag(aggregated_to) OVER (ORDER BY aggregated_from, aggregated_to) AS ended
  FROM (SELECT DISTINCT aggregated_from, aggregated_to FROM product_interval_sales) AS runs
) AS runs
WHERE aggregated_from < ended
ORDER BY aggregated_from;
