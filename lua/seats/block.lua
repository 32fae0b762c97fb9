#!lua
-- Take seats off the sale for its operator: all of them, or none.
--
-- A seat of a lapsed hold is free: that whole hold ends first, with an entry of its own.
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
--   journal         stream  expired for each hold in the way
-- ARGV
--   epoch
--   seat_block_no
--   seat_nos...
-- RETURNS
--   seats_blocked           count
--   seat_taken              conflicts...
--   look_on                 at
--   superseded
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Postgres is told next, so there is no entry. A number is judged once, and a refusal spends it, too: safe to repeat, and
-- a late copy changes nothing. Who is told to look on asks the same again.
local journal = KEYS[15]
local epoch = ARGV[1]
local seat_block_no = tonumber(ARGV[2])
local seat_nos = { unpack(ARGV, 3) }

local LAPSED_MAX = 50 -- holds that one call ends
local KEPT_BACK = "BLOCKED - 0"

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local standing = #seat_nos > 0 and redis.call("HMGET", seats, unpack(seat_nos)) or {}
local records = #seat_nos > 0 and redis.call("HMGET", prices, unpack(seat_nos)) or {}
local found = sale.has_floor == "1" and {} or nil
local hold_ids = {}
for at = 1, #seat_nos do
  hold_ids[#hold_ids + 1] = standing[at] and string.match(standing[at], "^HELD (%S+)") or nil
end
local others = find_holds(hold_ids)
local free, values, conflicts, lapsed = {}, {}, {}, {}
for at, seat_no in ipairs(seat_nos) do
  local state, other_id = string.match(standing[at] or "FREE -", "^(%u+) (%S+)")
  local other = others[other_id]
  if not records[at] then
    conflicts[#conflicts + 1] = seat_no .. " unknown"
  elseif standing[at] ~= KEPT_BACK then
    free[#free + 1] = seat_no
    values[2 * #free - 1], values[2 * #free] = seat_no, KEPT_BACK
    if found then
      found[#free] = parse_seat(records[at])
    end
    if other and is_up_for_taking(other_id, other) then
      lapsed[#lapsed + 1] = other_id
    elseif standing[at] then
      conflicts[#conflicts + 1] = seat_no .. " " .. (other_id == "list" and "waiting_list" or string.lower(state))
    end
  end
end
local known_no = term("seat_block_no")
if seat_block_no < known_no or seat_block_no == known_no and #free + #conflicts > 0 then
  return { "superseded" }
end

-- Change.
if #conflicts == 0 then
  for at = 1, math.min(#lapsed, LAPSED_MAX) do
    if has_lapsed(others[lapsed[at]]) then -- it ends once, also when it stood on several of the seats
      expire_hold(journal, lapsed[at], others[lapsed[at]])
    end
  end
  if #lapsed > LAPSED_MAX then
    return { "look_on", "" }
  end
end
set_term("seat_block_no", seat_block_no)
if #conflicts > 0 then
  return { "seat_taken", unpack(conflicts) }
end
if #free > 0 then
  count_up("map_version")
  redis.call("HSET", seats, unpack(values))
  occupy(free, found)
end
return { "seats_blocked", #free }
