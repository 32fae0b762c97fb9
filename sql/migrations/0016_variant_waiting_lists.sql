-- Who waits for units of a variant waits in the same list as who waits for seats: what is offered is a hold of either kind.

-- By a column of its own, because the names of constraints that came with a column do not follow it.
ALTER TABLE waiting_list_entries ADD COLUMN hold_id uuid;
UPDATE waiting_list_entries SET hold_id = reservation_id;
ALTER TABLE waiting_list_entries
  DROP COLUMN reservation_id,
  ALTER COLUMN hold_id SET NOT NULL,
  ADD UNIQUE (hold_id),
  ALTER COLUMN schedule_id DROP NOT NULL,
  ALTER COLUMN adjacent DROP NOT NULL,
  ADD COLUMN variant_id uuid,
  DROP CONSTRAINT waiting_list_entries_quantity_check,
  DROP CONSTRAINT waiting_list_entries_reason_check,
  ADD CONSTRAINT waiting_list_entries_reason_check
    CHECK (reason IN ('USER', 'EVENT_OVER', 'EVENT_CANCELLED', 'SALE_OVER')),
  ADD CONSTRAINT waiting_list_entries_for CHECK (num_nonnulls(schedule_id, variant_id) = 1),
  ADD CONSTRAINT waiting_list_entries_quantity
    CHECK (quantity BETWEEN 1 AND CASE WHEN variant_id IS NULL THEN 20 ELSE 1000 END),
  ADD CONSTRAINT waiting_list_entries_seats CHECK ((schedule_id IS NOT NULL) = (adjacent IS NOT NULL)),
  ADD CONSTRAINT waiting_list_entries_units
    CHECK (variant_id IS NULL OR (num_nonnulls(category, section, price_max) = 0 AND accessible = 0));
CREATE INDEX waiting_list_entries_offered ON waiting_list_entries (hold_id) WHERE status = 'OFFERED';
CREATE INDEX waiting_list_entries_variant ON waiting_list_entries (variant_id, entry_no) WHERE status = 'WAITING';
