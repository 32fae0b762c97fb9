-- What late money buys may be an order: its hold is named as everywhere else.

ALTER TABLE late_payments RENAME COLUMN new_reservation_id TO new_hold_id;
-- Some servers name what must not be null, and after the column as it was called then.
ALTER TABLE late_payments ALTER COLUMN new_hold_id DROP NOT NULL;
ALTER TABLE late_payments ALTER COLUMN new_hold_id SET NOT NULL;
