#!lua flags=allow-oom
-- Put seats on the sale again that its operator took off it: the public has them, or the waiting list where there is one.
--
-- USES
--   sale
--   streams
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
--   seat_block_no
--   seat_nos...
-- RETURNS
--   seats_unblocked         count
--   superseded
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Postgres was told before, so there is no entry. Safe to repeat: what the operator does not keep is left alone, and a late
-- copy, after a higher number, changes nothing.
local epoch = ARGV[1]
local seat_block_no = tonumber(ARGV[2])
local seat_nos = { unpack(ARGV, 3) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
if seat_block_no < term("seat_block_no") then
  return { "superseded" }
end
local kept = {}
for at, value in ipairs(#seat_nos > 0 and redis.call("HMGET", seats, unpack(seat_nos)) or {}) do
  kept[#kept + 1] = value == "BLOCKED - 0" and seat_nos[at] or nil
end

-- Change.
set_term("seat_block_no", seat_block_no)
if #kept > 0 then
  count_up("map_version")
  free_seats(kept)
end
return { "seats_unblocked", #kept }
