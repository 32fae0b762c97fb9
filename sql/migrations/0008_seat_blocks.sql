-- Seats that an operator takes off a running sale, and puts on it again.

CREATE TABLE seat_blocks (
  seat_block_id uuid PRIMARY KEY,
  seat_block_no bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  sale_id uuid NOT NULL REFERENCES sales,
  seat_nos text[] NOT NULL,
  blocked boolean NOT NULL,
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz
);
CREATE UNIQUE INDEX seat_blocks_unfinished ON seat_blocks (sale_id) WHERE done_at IS NULL;
