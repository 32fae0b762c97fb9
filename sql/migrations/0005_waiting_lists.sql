-- Who waits for seats that come back.

ALTER TABLE sales
  ADD COLUMN waiting_list boolean NOT NULL DEFAULT false,
  ADD COLUMN offer_s integer NOT NULL DEFAULT 900 CHECK (offer_s BETWEEN 1 AND 86400);

CREATE TABLE waiting_list_entries (
  entry_id uuid PRIMARY KEY,
  entry_no bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  sale_id uuid NOT NULL,
  schedule_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 20),
  adjacent boolean NOT NULL,
  category text,
  section text,
  price_max bigint CHECK (price_max >= 0),
  accessible integer NOT NULL DEFAULT 0 CHECK (accessible >= 0),
  reservation_id uuid NOT NULL UNIQUE,
  status text NOT NULL CHECK (status IN ('WAITING', 'OFFERED', 'TAKEN', 'LAPSED', 'LEFT')),
  reason text CHECK (reason IN ('USER', 'EVENT_OVER', 'EVENT_CANCELLED')),
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT waiting_list_entries_accessible CHECK (accessible <= quantity),
  CONSTRAINT waiting_list_entries_reason CHECK ((status = 'LEFT') = (reason IS NOT NULL))
);
CREATE INDEX waiting_list_entries_waiting ON waiting_list_entries (sale_id, entry_no) WHERE status = 'WAITING';
CREATE INDEX waiting_list_entries_offered ON waiting_list_entries (reservation_id) WHERE status = 'OFFERED';
CREATE INDEX waiting_list_entries_mine ON waiting_list_entries (user_id, entry_no DESC);
