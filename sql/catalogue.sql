-- The catalogue: concerts, their schedules, and the seats of each schedule's sale.

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
  hold_s, pay_s, schedules.fingerprint, schedules.version
FROM schedules
JOIN sales USING (sale_id)
WHERE schedule_id = $1;

-- name: list_schedules
-- The schedules of these concerts, in the order they take place.
SELECT schedule_id, concert_id, sale_id, start_at, opens_at, closes_at, seats_total, seats_available, per_buyer_max,
  hold_s, pay_s, schedules.fingerprint, schedules.version
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
-- The seats of a new schedule's sale.
INSERT INTO seats (sale_id, seat_no, section, row_name, number, category, price, accessible, blocked)
SELECT $1, *
FROM unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::bigint[], $8::boolean[], $9::boolean[]);

-- name: list_seats
-- What never changes of the seats of a sale, in reading order.
SELECT seat_no, section, row_name AS "row", number, category, price, accessible
FROM seats
WHERE sale_id = $1
ORDER BY section, row_name, number;

-- name: edit_schedule
-- No row: somebody else edited it after this version. The terms of the sale are edited beside it.
UPDATE schedules
SET
  start_at = $3,
  version = version + 1,
  updated_at = now()
WHERE schedule_id = $1
  AND version = $2;
