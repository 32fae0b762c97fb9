#!lua
-- Hold again, for the same buyer and at the same prices, what a payment was for that came too late: all of it, or nothing.
--
-- No place in line is asked for: this buyer was in. Whatever else has changed meanwhile says no: the sale is over, the
-- seats are somebody's or kept for others, the buyer has as many as one may have, or a price is another.
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
--   prices        hash    seat_no -> its record
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
--   areas         hash    area -> area_no|category_no|block_no|quantity
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   fingerprint
--   wanted_prices
--   lines...
-- RETURNS
--   held_lines              expires_at_ms fence amount created_at_ms seats prices tiers
--   hold_known              state
--   idempotency_key_reused
--   seat_taken              conflicts...
--   seat_unknown            seat_nos...
--   offer_unknown           names...
--   sold_out                shortages...
--   look_on                 at
--   limit_reached           limit have
--   price_changed
--   sale_not_open           opens_at_ms
--   sale_closed
--   busy                    retry_after_ms
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Lines are those of `seats/hold`; `wanted_prices` are theirs, joined by commas, the seats' first and then those of each
-- place. Safe to repeat: an id holds once, and the same request again learns the state of its hold.
local areas = KEYS[20]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local fingerprint = ARGV[4]
local wanted_prices = ARGV[5]
local lines = { unpack(ARGV, 6) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local known = find_hold(hold_id)
if known then
  if known.buyer_id ~= buyer_id or known.fingerprint ~= fingerprint then
    return { "idempotency_key_reused" }
  end
  return { "hold_known", (state_of(known)) }
end
if now_ms < term("opens_at_ms") then
  return { "sale_not_open", sale.opens_at_ms }
end
if sale.room == "closed" or term("closes_at_ms") > 0 and now_ms >= term("closes_at_ms") then
  return { "sale_closed" }
end
if backlogged() then
  return { "busy", 1000 }
end
local wish = read_wish(lines)
local seat_nos = wish.seat_nos
local row = find_buyer(buyer_id)
local buyer = { id = buyer_id, queue_no = "0", row = row, open = split(row.open) }

local records = #seat_nos > 0 and redis.call("HMGET", prices, unpack(seat_nos)) or {}
local standing = #seat_nos > 0 and redis.call("HMGET", seats, unpack(seat_nos)) or {}
local hold_ids, found, conflicts, lapsed = { unpack(buyer.open) }, {}, {}, {}
for at, seat_no in ipairs(seat_nos) do
  found[at] = records[at] and parse_seat(records[at])
  if not found[at] or not found[at].kind or found[at].kind == "P" then
    return { "seat_unknown", seat_no }
  end
  hold_ids[#hold_ids + 1] = standing[at] and string.match(standing[at], " (%S+) ") or nil
end
local refused = judge_offer(wish, found, false, areas, conflicts)
if refused then return refused end
local others = find_holds(hold_ids)
for at, seat_no in ipairs(seat_nos) do
  local state, other_id = string.match(standing[at] or "", "(%u+) (%S+)")
  local other = others[other_id or ""]
  if found[at].block_no ~= "0" then
    conflicts[#conflicts + 1] = seat_no .. " blocked" -- who was let in by a code does not show it now
  elseif other and is_up_for_taking(other_id, other) then
    lapsed[#lapsed + 1] = other_id
  elseif state then
    local yours = other and other.buyer_id == buyer_id
    conflicts[#conflicts + 1] = seat_no .. " " .. (yours and "yours" or string.lower(state))
  end
end
if #conflicts > 0 then
  return { "seat_taken", unpack(conflicts) }
end
refused = judge_limit(buyer, #seat_nos + wish.places, others)
if refused then return refused end
refused = wish.places > 0 and pick_places(wish, found)
if refused then return refused end
local price_list
refused, price_list = price_lines(found, wish.tiers)
if refused then return refused end
if table.concat(price_list, ",") ~= wanted_prices then
  return { "price_changed" }
end

-- Change.
for _, other_id in ipairs(lapsed) do
  if has_lapsed(others[other_id]) then -- it ends once, also when it stood on several of the seats
    expire_hold(journal, other_id, others[other_id])
  end
end
local hold = hold_seats(hold_id, buyer, fingerprint, seat_nos, price_list, wish.tiers, found, #lapsed > 0)
return { "held_lines", hold.expires_at_ms, hold.fence, hold.amount, now_ms, hold.seats, hold.prices, hold.tiers }
