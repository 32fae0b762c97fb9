-- The hall: how seats are taken and freed, and all that follows from it. Every script that changes what a seat is to the
-- public does so by `occupy` and `free_seats`, so that nothing here can be left behind:
--
--   map_changes   each seat of the map, scored by the version of its last change. Neither places in an area, which the
--                 map shows as a count, nor seats of a block, which are BLOCKED to the public whatever they are.
--   floor         one byte a position: F free, A free and accessible, T neither
--   bounds        one byte a unit: 64 + the longest run of free seats it may have, at most 60; and 128 more in a block.
--                 An upper bound: taking leaves it, freeing sets it to the highest, whoever looks at the unit corrects it.
--   places        the free places of areas, scored by area_no * 10^7 + number
--   tier_counts   tier|category_no -> seats held, being paid and sold in it
--   freed         what was freed while there is a waiting list, scored by when: BLOCKED for it, whoever gives it on
--
-- A sale that was written without a floor (`has_floor` is not 1) has prices and map_changes alone. In all others a
-- record of `prices` is price|category_no|block_no|position|unit_no|kind: kind F or A as on the floor; of a place it is
-- P, its position is empty, and its score stands in place of a unit.
--
-- It stands on sale, streams and holds. Whoever uses this file declares these keys after those of holds:
local prices = KEYS[8]
local map_changes = KEYS[9]
local floor = KEYS[10]
local bounds = KEYS[11]
local places = KEYS[12]
local tier_counts = KEYS[13]
local freed = KEYS[14]

-- What stands on a seat that the waiting list has.
local SHELVED = "BLOCKED list 0"

local SEAT = "^(%d+)|(%d+)|(%d+)|(%d*)|(%d+)|([FAP])$"
-- Price and position of a seat that is in no block; no place in an area is like that.
local PUBLIC_SEAT = "^(%d+)|%d+|0|(%d+)|"
local HIGHEST, HIGHEST_IN_BLOCK = string.char(64 + 60), string.char(128 + 64 + 60)

local function parse_seat(record)
  local price, category_no, block_no, position, unit_no, kind = string.match(record, SEAT)
  return {
    price = price, category_no = category_no, block_no = block_no, position = tonumber(position), unit_no = unit_no,
    kind = kind,
  }
end

-- What is known of these seats, which must exist; nil in a sale without a floor.
local function read_seats(seat_nos)
  if sale.has_floor ~= "1" then
    return nil
  end
  local found = {}
  if #seat_nos == 0 then
    return found
  end
  for at, record in ipairs(redis.call("HMGET", prices, unpack(seat_nos))) do
    found[at] = parse_seat(record)
  end
  return found
end

-- What follows -------------------------------------------------------------------------------------------------------

local function tell_changes(seat_nos, found)
  local version = sale.map_version
  for at, seat_no in ipairs(seat_nos) do
    if not found or found[at].block_no == "0" and found[at].kind ~= "P" then
      write_last("ZADD", map_changes, seat_no, version)
    end
  end
end

-- One write for each run of adjacent seats.
local function mark_floor(found, are_free)
  local first, last, bytes, raised
  for at = 1, #found + 1 do
    local seat = found[at]
    local position = seat and seat.position
    if first and position ~= last + 1 then
      redis.call("SETRANGE", floor, first, bytes)
      first = nil
    end
    if position then
      local byte = are_free and seat.kind or "T"
      if first then
        bytes = bytes .. byte
      else
        first, bytes = position, byte
      end
      last = position
      if are_free and raised ~= seat.unit_no then
        raised = seat.unit_no
        redis.call("SETRANGE", bounds, raised, seat.block_no == "0" and HIGHEST or HIGHEST_IN_BLOCK)
      end
    end
  end
end

local function mark_places(seat_nos, found, are_free)
  local members = {}
  for at, seat_no in ipairs(seat_nos) do
    if found[at].kind == "P" then
      if are_free then
        members[#members + 1] = found[at].unit_no
      end
      members[#members + 1] = seat_no
    end
  end
  if #members > 0 then
    redis.call(are_free and "ZADD" or "ZREM", places, unpack(members))
  end
end

-- `line_tiers` are those of the seats, in their order, or nothing.
local function count_tiers(found, line_tiers, by)
  if not line_tiers then
    return
  end
  local counts = {}
  for at, tier in ipairs(line_tiers) do
    if tier ~= "-" then
      local key = tier .. "|" .. found[at].category_no
      counts[key] = (counts[key] or 0) + by
    end
  end
  for key, count in pairs(counts) do
    redis.call("HINCRBY", tier_counts, key, count)
  end
end

-- Taking and freeing ---------------------------------------------------------------------------------------------------

-- These seats stand under a hold: nobody picks them.
local function close_off(seat_nos, found)
  if found then
    mark_floor(found, false)
    mark_places(seat_nos, found, false)
  end
end

-- Seats that nobody had stand under a hold now. Their own state is written by the caller, whose version is counted up.
-- Of public seats `found.positions` is all that is known and needed.
local function occupy(seat_nos, found)
  if sale.waiting_list == "1" then
    redis.call("ZREM", freed, unpack(seat_nos))
  end
  local positions = found and found.positions
  if not positions then
    close_off(seat_nos, found)
    return tell_changes(seat_nos, found)
  end
  local first, length = positions[1], 1
  for at = 2, #positions + 1 do
    if positions[at] == first + length then
      length = length + 1
    else
      redis.call("SETRANGE", floor, first, string.rep("T", length))
      first, length = positions[at], 1
    end
  end
  tell_changes(seat_nos)
end

-- The public may have these seats.
local function open_up(seat_nos, found)
  redis.call("HDEL", seats, unpack(seat_nos))
  if found then
    mark_floor(found, true)
    mark_places(seat_nos, found, true)
  end
end

-- The waiting list has these seats, until somebody gives them on.
local function shelve(seat_nos)
  local standing, scores = {}, {}
  for at, seat_no in ipairs(seat_nos) do
    standing[2 * at - 1], standing[2 * at] = seat_no, SHELVED
    scores[2 * at - 1], scores[2 * at] = now_ms, seat_no
  end
  redis.call("HSET", seats, unpack(standing))
  redis.call("ZADD", freed, unpack(scores))
end

-- Seats stand under no hold any more: they are FREE, or the waiting list's. The caller's version is counted up.
local function free_seats(seat_nos, line_tiers)
  if #seat_nos == 0 then
    return
  end
  local found = read_seats(seat_nos)
  count_tiers(found, line_tiers, -1)
  if sale.waiting_list == "1" then
    shelve(seat_nos)
  else
    open_up(seat_nos, found)
  end
  tell_changes(seat_nos, found)
end

-- Endings --------------------------------------------------------------------------------------------------------------

-- The tiers of these seats of a hold, in their order; nil when the hold has none.
local function tiers_of(hold, seat_nos)
  if hold.tiers == "" then
    return nil
  end
  local tier_list, tier_of, wanted = split(hold.tiers), {}, {}
  for at, seat_no in ipairs(split(hold.seats)) do
    tier_of[seat_no] = tier_list[at]
  end
  for at, seat_no in ipairs(seat_nos) do
    wanted[at] = tier_of[seat_no]
  end
  return wanted
end

-- Take seats out of a hold that keeps others.
local function drop_seats(hold, seat_nos)
  local dropped, price_list, tier_list = table.concat(seat_nos, ","), split(hold.prices), split(hold.tiers)
  local kept_seats, kept_prices, kept_tiers, amount = {}, {}, {}, 0
  for at, seat_no in ipairs(split(hold.seats)) do
    if not includes(dropped, seat_no) then
      kept_seats[#kept_seats + 1] = seat_no
      kept_prices[#kept_prices + 1] = price_list[at]
      kept_tiers[#kept_tiers + 1] = tier_list[at]
      amount = amount + tonumber(price_list[at])
    end
  end
  hold.seats, hold.prices, hold.amount = table.concat(kept_seats, ","), table.concat(kept_prices, ","), amount
  hold.tiers = table.concat(kept_tiers, ",")
end

-- All of a sale but its seats; `n` is the number of its entry, 0 when Postgres has it already.
local function sell_record(hold_id, hold, n)
  local buyer = find_buyer(hold.buyer_id)
  buyer.sold, buyer.open = buyer.sold + #split(hold.seats), without(buyer.open, hold_id)
  keep_buyer(hold.buyer_id, buyer)
  write_last("ZREM", hold.state == "HELD" and deadlines or paying, hold_id)
  write_last("ZADD", ended, hold_id, now_ms)
  hold.state, hold.sold_n = "SOLD", n
  keep_hold(hold_id, hold)
end

-- All of an ending but its seats: the record stays for the repeat window, and what it counted for counts no more.
local function end_record(hold_id, hold, reason)
  local buyer = find_buyer(hold.buyer_id)
  if hold.state == "SOLD" then
    buyer.sold = buyer.sold - #split(hold.seats)
  else
    redis.call("ZREM", hold.state == "HELD" and deadlines or paying, hold_id)
    buyer.open = without(buyer.open, hold_id)
  end
  buyer.ended = buyer.ended + 1
  keep_buyer(hold.buyer_id, buyer)
  write_last("ZADD", ended, hold_id, now_ms)
  hold.state, hold.reason = "ENDED", reason
  keep_hold(hold_id, hold)
end

local function end_hold(hold_id, hold, reason)
  local seat_nos = split(hold.seats)
  free_seats(seat_nos, tiers_of(hold, seat_nos))
  end_record(hold_id, hold, reason)
end

-- A lapsed hold ends whole, with a number and an entry of its own, whoever found it.
local function expire_hold(journal, hold_id, hold)
  local n = next_number("journal", "map_version")
  end_hold(hold_id, hold, "EXPIRED")
  append(journal, n, "expired", "hold_id", hold_id, "fence", hold.fence, "at_ms", now_ms)
end

-- End at most `most` holds whose seats may be had by others, the longest over first; answers how many.
local function expire_lapsed(journal, most)
  local hold_ids = redis.call("ZRANGEBYSCORE", deadlines, "-inf", now_ms, "LIMIT", 0, most)
  local lapsed = find_holds(hold_ids)
  for _, hold_id in ipairs(hold_ids) do
    expire_hold(journal, hold_id, lapsed[hold_id])
  end
  return #hold_ids
end
