-- A cancellation is of a reservation or of an order.

ALTER TABLE cancellations
  ALTER COLUMN reservation_id DROP NOT NULL,
  ALTER COLUMN seat_nos SET DEFAULT '{}',
  ADD COLUMN order_id uuid REFERENCES orders,
  ADD COLUMN variant_ids uuid[] NOT NULL DEFAULT '{}',
  ADD COLUMN quantities bigint[] NOT NULL DEFAULT '{}',
  DROP CONSTRAINT cancellations_seat_nos_check,
  ADD CONSTRAINT cancellations_of CHECK (num_nonnulls(reservation_id, order_id) = 1),
  ADD CONSTRAINT cancellations_seats CHECK ((reservation_id IS NOT NULL) = (cardinality(seat_nos) > 0)),
  ADD CONSTRAINT cancellations_units CHECK ((order_id IS NOT NULL) = (cardinality(variant_ids) > 0)),
  ADD CONSTRAINT cancellations_quantities CHECK (
    cardinality(variant_ids) = cardinality(quantities) AND 0 < ALL (quantities)
  );
CREATE INDEX cancellations_order ON cancellations (order_id, created_at);
