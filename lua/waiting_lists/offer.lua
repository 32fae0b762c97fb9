#!lua
-- Offer seats that were freed to one who waits for them: a hold of all of them, or none.
--
-- It is a hold like any other, with a time of its own and without a place in line: who waited has stood in line already.
--
-- USES
--   sale
--   streams
--   room
--   holds
--   hall
--   wish
-- KEYS
--   sale          hash    the sale's terms and counters
--   seats         hash    seat_no -> state hold_id fence
--   holds         hash    hold_id -> record
--   deadlines     zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying        zset    hold_id of what is PAYING
--   ended         zset    hold_id of what ended or was sold
--   buyers        hash    buyer_id -> sold ended hold_id,hold_id…
--   prices        hash    seat_no -> price, or its record
--   map_changes   zset    seat_no, scored by the map_version of its last change
--   floor         string  a byte a position
--   bounds        string  a byte a unit
--   places        zset    free places of areas
--   tier_counts   hash    tier|category_no -> held, being paid and sold
--   freed         zset    what the waiting list has
--   tiers         hash    tier|category_no -> price|max
--   blocks        hash    block_no -> for whom and when
--   journal       stream  expired for each hold taken over, held
--   tokens        hash    owner -> called token
--   active        zset    owner of each ACTIVE token
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   fingerprint
--   seat_nos...
-- RETURNS
--   offered                 expires_at_ms fence amount
--   hold_known              state
--   seat_taken              conflicts...
--   seat_unknown            seat_nos...
--   limit_reached           limit have
--   sale_not_open           opens_at_ms
--   sale_closed
--   slow_down               retry_after_ms
--   busy                    retry_after_ms
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Safe to repeat: one who waits is offered something once, under an id that does not change.
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local fingerprint = ARGV[4]
local seat_nos = { unpack(ARGV, 5) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local known = find_hold(hold_id)
if known then
  return { "hold_known", (state_of(known)) }
end
local refused, buyer = judge_buyer(buyer_id, "", false)
if refused then return refused end
local price_list, found = redis.call("HMGET", prices, unpack(seat_nos)), sale.has_floor == "1" and {} or nil
local standing = redis.call("HMGET", seats, unpack(seat_nos))
local unknown, conflicts = {}, {}
for at, seat_no in ipairs(seat_nos) do
  if not price_list[at] then
    unknown[#unknown + 1] = seat_no
  elseif standing[at] ~= SHELVED then
    conflicts[#conflicts + 1] = seat_no .. " " .. string.lower(string.match(standing[at] or "FREE", "%u+"))
  elseif found then
    found[at] = parse_seat(price_list[at])
  end
end
if #unknown > 0 then
  return { "seat_unknown", unpack(unknown) }
end
if #conflicts > 0 then
  return { "seat_taken", unpack(conflicts) }
end
refused = judge_limit(buyer, #seat_nos, find_holds(buyer.open))
if refused then return refused end
if found then
  refused, price_list = price_lines(found, nil)
  if refused then return refused end
end

-- Change.
redis.call("ZREM", freed, unpack(seat_nos)) -- also when the last who waited has left and the list is over
local hold = hold_seats(
  hold_id, buyer, fingerprint, seat_nos, price_list, nil, found, false, text(now_ms + term("offer_ms"))
)
return { "offered", hold.expires_at_ms, hold.fence, hold.amount }
