-- Tickets: written with the sale (sql/payments.sql), cancelled with it (sql/cancellations.sql), redeemed at the door.

-- name: list_tickets
-- A user's tickets, newest first, after a cursor.
SELECT tickets.ticket_no, tickets.reservation_id, schedules.schedule_id, tickets.seat_no, tickets.status
FROM tickets
JOIN schedules USING (sale_id)
WHERE tickets.user_id = $1 AND tickets.ticket_no < $2
ORDER BY tickets.ticket_no DESC
LIMIT $3;

-- name: find_ticket
-- One ticket by its number.
SELECT tickets.ticket_no, tickets.reservation_id, schedules.schedule_id, tickets.seat_no, tickets.status
FROM tickets
JOIN schedules USING (sale_id)
WHERE tickets.ticket_no = $1;

-- name: redeem_ticket
-- The ticket opens the door; no row: it did so before, was cancelled, or is none.
UPDATE tickets
SET
  status = 'REDEEMED',
  redemption_id = $2,
  redemption_fingerprint = $3,
  redeemed_by = $4,
  redeemed_at = now(),
  updated_at = now()
FROM schedules
WHERE tickets.ticket_no = $1 AND tickets.status = 'VALID' AND schedules.sale_id = tickets.sale_id
RETURNING tickets.ticket_no, schedules.schedule_id, tickets.seat_no, tickets.status, tickets.redeemed_at AS at;

-- name: find_redemption
-- A ticket that opens no door any more, and what redeemed it if anything did.
SELECT
  tickets.ticket_no, schedules.schedule_id, tickets.seat_no, tickets.status, tickets.redeemed_at AS at,
  tickets.redemption_id, tickets.redemption_fingerprint
FROM tickets
JOIN schedules USING (sale_id)
WHERE tickets.ticket_no = $1;

-- name: add_ticket_key
-- The key that signs tickets, unless another process was quicker.
INSERT INTO installation (name, value)
VALUES ('ticket_key', $1)
ON CONFLICT (name) DO NOTHING;

-- name: find_ticket_key
-- The key that signs tickets.
SELECT value
FROM installation
WHERE name = 'ticket_key';
