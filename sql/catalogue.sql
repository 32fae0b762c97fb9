-- The catalogue: concerts, their schedules, and what each schedule's sale offers: seats, areas, tiers, blocks.

-- name: add_concert
-- A new concert; a repeat changes nothing.
INSERT INTO concerts (concert_id, title, description, artist, venue, poster_image_url, fingerprint)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (concert_id) DO NOTHING
RETURNING concert_id;

-- name: find_concert
-- One concert.
SELECT concert_id, title, description, artist, venue, poster_image_url, fingerprint, version, created_at
FROM concerts
WHERE concert_id = $1;

-- name: list_concerts
-- Newest first, from below a place in that order on.
SELECT concert_id, title, description, artist, venue, poster_image_url, fingerprint, version, created_at
FROM concerts
WHERE $1::timestamptz IS NULL
  OR (created_at, concert_id) < ($1, $2::uuid)
ORDER BY created_at DESC, concert_id DESC
LIMIT $3;

-- name: edit_concert
-- No row: somebody else edited it after this version.
UPDATE concerts
SET
  title = $3,
  description = $4,
  artist = $5,
  venue = $6,
  poster_image_url = $7,
  version = version + 1,
  updated_at = now()
WHERE concert_id = $1
  AND version = $2
RETURNING version;

-- name: find_schedule
-- One schedule with its sale's terms.
SELECT schedule_id, concert_id, sale_id, start_at, opens_at, closes_at, seats_total, seats_available, per_buyer_max,
  hold_s, pay_s, release_jitter_s, offer_s, refund_policy, schedules.fingerprint, schedules.version
FROM schedules
JOIN sales USING (sale_id)
WHERE schedule_id = $1;

-- name: list_schedules
-- The schedules of these concerts, in the order they take place.
SELECT schedule_id, concert_id, sale_id, start_at, opens_at, closes_at, seats_total, seats_available, per_buyer_max,
  hold_s, pay_s, release_jitter_s, offer_s, refund_policy, schedules.fingerprint, schedules.version
FROM schedules
JOIN sales USING (sale_id)
WHERE concert_id = ANY ($1::uuid[])
ORDER BY start_at, schedule_id;

-- name: add_schedule
-- A new schedule; a repeat answers no row.
INSERT INTO schedules (schedule_id, concert_id, sale_id, start_at, seats_total, seats_available, fingerprint)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (schedule_id) DO NOTHING
RETURNING schedule_id;

-- name: add_seats
-- Numbered seats of a new schedule's sale, in the operator's order after the first $2.
INSERT INTO seats (
  sale_id, seat_no, section, row_name, number, category, price, accessible, blocked, block, listed_no
)
SELECT $1, seat_no, section, row_name, number, category, price, accessible, blocked, block, $2::integer + listed_no
FROM unnest(
  $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::bigint[], $9::boolean[], $10::boolean[], $11::text[]
)
  WITH ORDINALITY
  AS listed (seat_no, section, row_name, number, category, price, accessible, blocked, block, listed_no);

-- name: add_areas
-- The areas of a new schedule's sale, in the operator's order.
INSERT INTO areas (sale_id, area, category, price, quantity, block, area_no)
SELECT $1, *
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::integer[], $6::text[]) WITH ORDINALITY;

-- name: add_places
-- A row for each place of a sale's areas.
INSERT INTO seats (sale_id, seat_no, section, row_name, number, category, price, area, block)
SELECT sale_id, area || '-GA-' || number, area, 'GA', number, category, price, area, block
FROM areas
CROSS JOIN generate_series(1, quantity) AS number
WHERE sale_id = $1;

-- name: add_tiers
-- The tiers of a new schedule's sale, in the operator's order.
INSERT INTO tiers (sale_id, tier, category, price, max, tier_no)
SELECT $1, *
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::integer[]) WITH ORDINALITY;

-- name: add_blocks
-- The blocks of a new schedule's sale, in the operator's order.
INSERT INTO blocks (sale_id, block, access_code, channel, opens_at, closes_at, block_no)
SELECT $1, *
FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[]) WITH ORDINALITY;

-- name: list_seats
-- What never changes of the numbered seats of a sale, in reading order.
SELECT seat_no, section, row_name AS "row", number, category, price, accessible
FROM seats
WHERE sale_id = $1
  AND area IS NULL
ORDER BY section, row_name, number;

-- name: list_hidden_seats
-- Places of areas, which no map draws, and seats of blocks, which the public never sees as anything but BLOCKED.
SELECT seat_no, area IS NOT NULL AS is_place
FROM seats
WHERE sale_id = $1
  AND (area IS NOT NULL OR block IS NOT NULL);

-- name: list_seats_in_order
-- The numbered seats of a sale, the best first: in the operator's order, and in reading order where there is none.
SELECT section, row_name AS "row", number, category, price, accessible, blocked, block
FROM seats
WHERE sale_id = $1
  AND area IS NULL
ORDER BY listed_no, section, row_name, number;

-- name: list_every_seat
-- All that is known of the seats and places of a sale after this one, by number.
SELECT section, row_name AS "row", number, category, price, accessible, blocked, block, area, sold
FROM seats
WHERE sale_id = $1
  AND seat_no > $2
ORDER BY seat_no
LIMIT $3;

-- name: list_areas
-- The areas of these sales, each with what is neither sold nor blocked of it.
SELECT sale_id, area, category, price, quantity, block, (
  SELECT count(*)
  FROM seats
  WHERE seats.sale_id = areas.sale_id
    AND seats.area = areas.area
    AND NOT (sold OR blocked)
) AS available
FROM areas
WHERE sale_id = ANY ($1::uuid[])
ORDER BY sale_id, area_no;

-- name: list_tiers
-- The tiers of these sales.
SELECT sale_id, tier, category, price, max
FROM tiers
WHERE sale_id = ANY ($1::uuid[])
ORDER BY sale_id, tier_no;

-- name: list_categories
-- The categories of a sale in the order in which scripts number them: as its seats name them, and then its areas.
SELECT category
FROM (
  SELECT category, 0 AS after_seats, min(listed_no) AS named_no
  FROM seats
  WHERE sale_id = $1
    AND area IS NULL
  GROUP BY category
  UNION ALL
  SELECT category, 1, min(area_no)
  FROM areas
  WHERE sale_id = $1
  GROUP BY category
) AS named
GROUP BY category
ORDER BY min(after_seats), min(named_no) FILTER (WHERE after_seats = 0), min(named_no);

-- name: list_blocks
-- The blocks of these sales.
SELECT sale_id, block, access_code, channel, opens_at, closes_at
FROM blocks
WHERE sale_id = ANY ($1::uuid[])
ORDER BY sale_id, block_no;

-- name: count_blocks
-- How many seats each block of a sale keeps back.
SELECT block, count(*) AS seats
FROM seats
WHERE sale_id = $1
  AND block IS NOT NULL
GROUP BY block;

-- name: edit_tiers
-- Other caps for tiers of a sale.
UPDATE tiers
SET
  max = edited.max,
  updated_at = now()
FROM unnest($2::text[], $3::text[], $4::integer[]) AS edited (tier, category, max)
WHERE tiers.sale_id = $1
  AND tiers.tier = edited.tier
  AND tiers.category = edited.category;

-- name: edit_blocks
-- For whom blocks of a sale are kept, and when.
UPDATE blocks
SET
  access_code = edited.access_code,
  channel = edited.channel,
  opens_at = edited.opens_at,
  closes_at = edited.closes_at,
  updated_at = now()
FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
  AS edited (block, access_code, channel, opens_at, closes_at)
WHERE blocks.sale_id = $1
  AND blocks.block = edited.block;

-- name: edit_schedule
-- No row: somebody else edited it after this version. The terms of the sale are edited beside it.
UPDATE schedules
SET
  start_at = $3,
  version = version + 1,
  updated_at = now()
WHERE schedule_id = $1
  AND version = $2;
