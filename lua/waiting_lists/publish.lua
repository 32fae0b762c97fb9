#!lua flags=allow-oom
-- Give the public what was freed and nobody who waits is to have.
--
-- USES
--   sale
--   streams
--   room
--   holds
--   hall
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    seat_no -> state hold_id fence
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying          zset    hold_id of what is PAYING
--   ended           zset    hold_id of what ended or was sold
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
--   prices          hash    seat_no -> price, or its record
--   map_changes     zset    seat_no, scored by the map_version of its last change
--   floor           string  a byte a position
--   bounds          string  a byte a unit
--   places          zset    free places of areas
--   tier_counts     hash    tier|category_no -> held, being paid and sold
--   freed           zset    what the waiting list has
-- ARGV
--   epoch
--   seat_nos...
-- RETURNS
--   published               count
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Postgres never heard that these were anything but free, so there is no entry. Safe to repeat: what the waiting list
-- does not have is left alone.
local epoch = ARGV[1]
local seat_nos = { unpack(ARGV, 2) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local shelved = {}
if #seat_nos > 0 then
  for at, value in ipairs(redis.call("HMGET", seats, unpack(seat_nos))) do
    shelved[#shelved + 1] = value == SHELVED and seat_nos[at] or nil
  end
end

-- Change.
if #seat_nos > 0 then
  redis.call("ZREM", freed, unpack(seat_nos))
end
if #shelved > 0 then
  count_up("map_version")
  local found = read_seats(shelved)
  open_up(shelved, found)
  tell_changes(shelved, found)
end
return { "published", #shelved }
