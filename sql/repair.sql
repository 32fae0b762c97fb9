-- What an operator's repair counts anew.

-- name: lock_schedules
-- Nobody counts seats meanwhile.
SELECT schedule_id FROM schedules ORDER BY schedule_id FOR NO KEY UPDATE;

-- name: mark_seats
-- A seat is sold exactly if somebody has a live claim on it.
UPDATE seats
SET sold = NOT sold, updated_at = now()
WHERE sold <> EXISTS (
  SELECT FROM reservation_seats AS claims
  WHERE claims.sale_id = seats.sale_id AND claims.seat_no = seats.seat_no AND claims.is_claimed
);

-- name: count_seats
-- What is left of each schedule: what is neither sold nor kept back.
UPDATE schedules
SET seats_available = counted.available, updated_at = now()
FROM (
  SELECT sale_id, count(*) FILTER (WHERE NOT sold AND NOT blocked)::integer AS available
  FROM seats
  GROUP BY sale_id
) AS counted
WHERE schedules.sale_id = counted.sale_id AND schedules.seats_available <> counted.available;
