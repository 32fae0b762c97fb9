-- What is on offer beside numbered seats: places without a number, prices for some people, seats kept for some people.

ALTER TABLE sales
  ADD COLUMN release_jitter_s integer NOT NULL DEFAULT 0 CHECK (release_jitter_s BETWEEN 0 AND 3600);

CREATE TABLE blocks (
  sale_id uuid NOT NULL REFERENCES sales,
  block text NOT NULL,
  block_no integer NOT NULL CHECK (block_no >= 1),
  access_code text,
  channel text,
  opens_at timestamptz,
  closes_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, block),
  CONSTRAINT blocks_no UNIQUE (sale_id, block_no),
  CONSTRAINT blocks_for CHECK (num_nonnulls(access_code, channel) = 1),
  CONSTRAINT blocks_window CHECK (opens_at < closes_at)
);

CREATE TABLE areas (
  sale_id uuid NOT NULL REFERENCES sales,
  area text NOT NULL,
  area_no integer NOT NULL CHECK (area_no >= 1),
  category text NOT NULL,
  price bigint NOT NULL CHECK (price BETWEEN 0 AND 1000000000000),
  quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 100000),
  block text,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, area),
  CONSTRAINT areas_no UNIQUE (sale_id, area_no),
  FOREIGN KEY (sale_id, block) REFERENCES blocks
);

CREATE TABLE tiers (
  sale_id uuid NOT NULL REFERENCES sales,
  tier text NOT NULL,
  category text NOT NULL,
  tier_no integer NOT NULL CHECK (tier_no >= 1),
  price bigint NOT NULL CHECK (price BETWEEN 0 AND 1000000000000),
  max integer CHECK (max >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, tier, category),
  CONSTRAINT tiers_no UNIQUE (sale_id, tier_no)
);

ALTER TABLE seats
  ADD COLUMN area text,
  ADD COLUMN block text,
  ADD COLUMN listed_no integer NOT NULL DEFAULT 0 CHECK (listed_no >= 0),
  ADD CONSTRAINT seats_place CHECK (area IS NULL OR (section = area AND row_name = 'GA' AND NOT accessible)),
  ADD FOREIGN KEY (sale_id, area) REFERENCES areas,
  ADD FOREIGN KEY (sale_id, block) REFERENCES blocks;
CREATE INDEX seats_places ON seats (sale_id, area) WHERE area IS NOT NULL;

-- Seats of earlier schedules stand in reading order: nobody said which are the better ones.
UPDATE seats
SET listed_no = placed.listed_no
FROM (
  SELECT sale_id, seat_no, row_number() OVER (PARTITION BY sale_id ORDER BY section, row_name, number) AS listed_no
  FROM seats
) AS placed
WHERE seats.sale_id = placed.sale_id
  AND seats.seat_no = placed.seat_no;

ALTER TABLE reservation_seats
  ADD COLUMN tier text;
