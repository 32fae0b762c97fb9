-- A hold's record, and what is kept of its buyer. How seats are taken and freed is in hall.
--
-- RECORD, a field of `holds`: these joined by |, lists inside by ,
--   state                        HELD | PAYING | SOLD | ENDED
--   buyer_id fence queue_no      queue_no is 0 for a hold made without a place in line
--   fingerprint                  of the request that made it
--   created_at_ms expires_at_ms
--   payment_id pay_deadline_ms   of the payment that runs, or that bought it
--   reason                       why it is ENDED: EXPIRED | USER | LATE_UNFULFILLABLE | …
--   sold_n                       the number of its entry `confirmed`
--   amount seats prices          what it holds, or held when it ended
--   extensions releases          id:fingerprint of each, so that a late copy does nothing
--   payments                     ids of payments that have ended
--   tiers                        of the seats, in their order, - for a seat at its own price; nothing when all are
--
-- A seat stands under the hold that lists it for as long as that hold is HELD, PAYING or SOLD.
--
-- Whoever uses this file declares these keys first, in this order: sale, then
local seats = KEYS[2]
local holds = KEYS[3]
local deadlines = KEYS[4]
local paying = KEYS[5]
local ended = KEYS[6]
local buyers = KEYS[7]

local FIELDS = {
  "state", "buyer_id", "fence", "queue_no", "fingerprint", "created_at_ms", "expires_at_ms", "payment_id",
  "pay_deadline_ms", "reason", "sold_n", "amount", "seats", "prices", "extensions", "releases", "payments", "tiers",
}
-- A record of the time before tiers ends one field earlier.
local RECORD = string.rep("([^|]*)|", #FIELDS - 2) .. "([^|]*)|?([^|]*)"

-- At most this many holds that ended within the repeat window are remembered of one buyer; those still running
-- count, because each of them will end.
local ENDED_MAX = 100
-- At most this many times may a part of one hold be given back: the hold remembers each.
local RELEASES_MAX = 100
-- At most this many payments of one hold may end without having bought it: the hold remembers each.
local PAYMENTS_MAX = 20

-- A whole number as text; joined to a string as it is, it would cost twice as much and be rounded from 10^14 on.
local function text(number)
  return string.format("%d", number)
end

-- Lists ----------------------------------------------------------------------------------------------------------

local function split(list)
  local items = {}
  if list == "" then
    return items
  end
  for item in string.gmatch(list, "[^,]+") do
    items[#items + 1] = item
  end
  return items
end

local function includes(list, item)
  return string.find("," .. list .. ",", "," .. item .. ",", 1, true) ~= nil
end

local function with(list, item)
  return list == "" and item or list .. "," .. item
end

local function without(list, item)
  local kept = {}
  for each in string.gmatch(list, "[^,]+") do
    if each ~= item then
      kept[#kept + 1] = each
    end
  end
  return table.concat(kept, ",")
end

-- Whether `list` of id:fingerprint has this request: "new", "repeated", or "reused" with another fingerprint.
local function judge_repeat(list, id, fingerprint)
  if not string.find("," .. list, "," .. id .. ":", 1, true) then
    return "new"
  end
  return includes(list, id .. ":" .. fingerprint) and "repeated" or "reused"
end

-- Holds ----------------------------------------------------------------------------------------------------------

local function parse_hold(record)
  local values = { string.match(record, RECORD) }
  local hold = {}
  for at, field in ipairs(FIELDS) do
    hold[field] = values[at]
  end
  return hold
end

local function find_hold(hold_id)
  local record = redis.call("HGET", holds, hold_id)
  return record and parse_hold(record)
end

-- The holds of these ids, by id; what is not known is missing.
local function find_holds(hold_ids)
  local found = {}
  if #hold_ids > 0 then
    for at, record in ipairs(redis.call("HMGET", holds, unpack(hold_ids))) do
      found[hold_ids[at]] = record and parse_hold(record) or nil
    end
  end
  return found
end

local function own_hold(hold_id, buyer_id)
  local hold = find_hold(hold_id)
  return hold and hold.buyer_id == buyer_id and hold or nil
end

-- What a new hold lacks is written as nothing, or 0.
local function keep_hold(hold_id, hold)
  -- One expression: a loop over FIELDS took twice the time, and every hold passes here.
  local record = hold.state .. "|" .. hold.buyer_id .. "|" .. hold.fence .. "|" .. hold.queue_no .. "|"
    .. hold.fingerprint .. "|" .. hold.created_at_ms .. "|" .. hold.expires_at_ms .. "|"
    .. (hold.payment_id or "") .. "|" .. (hold.pay_deadline_ms or "0") .. "|" .. (hold.reason or "") .. "|"
    .. (hold.sold_n or "0") .. "|" .. hold.amount .. "|" .. hold.seats .. "|" .. hold.prices .. "|"
    .. (hold.extensions or "") .. "|" .. (hold.releases or "") .. "|" .. (hold.payments or "") .. "|"
    .. (hold.tiers or "")
  redis.call("HSET", holds, hold_id, record)
end

local function has_lapsed(hold)
  return hold.state == "HELD" and tonumber(hold.expires_at_ms) <= now_ms
end

-- The state and the reason as a reader is told them: from its deadline on a hold has ended, sweep or not.
local function state_of(hold)
  if has_lapsed(hold) then
    return "ENDED", "EXPIRED"
  end
  return hold.state, hold.reason
end

-- When the seats of a hold become free if nobody buys them: at its deadline or, where the sale releases them by and by,
-- up to the jitter later. Its buyer can tell neither the fence nor, from it, the moment.
local function free_at_ms(hold_id, hold)
  local jitter_ms = term("release_jitter_ms")
  if jitter_ms == 0 then
    return hold.expires_at_ms
  end
  local drawn = (tonumber(string.sub(hold_id, -7), 16) or 0) + tonumber(hold.fence) % 1000003 * 7919
  return text(tonumber(hold.expires_at_ms) + drawn % (jitter_ms + 1))
end

-- Whether somebody else may take the seats of this hold: not while a waiting list has the first claim on them.
local function is_up_for_taking(hold_id, hold)
  return has_lapsed(hold) and tonumber(free_at_ms(hold_id, hold)) <= now_ms and sale.waiting_list ~= "1"
end

-- Put every seat of a hold into one state; `seat_nos` are these seats, where somebody has them as a list. Nothing stands
-- on a unit of stock.
local function set_seats(hold_id, hold, state, seat_nos)
  if sale.kind == "stock" then
    return
  end
  local value = state .. " " .. hold_id .. " " .. hold.fence
  local changes = {}
  for at, seat_no in ipairs(seat_nos or split(hold.seats)) do
    changes[2 * at - 1], changes[2 * at] = seat_no, value
  end
  redis.call("HSET", seats, unpack(changes))
end

-- Buyers ---------------------------------------------------------------------------------------------------------

-- sold: seats bought. ended: holds that ended within the window. open: ids of holds that are HELD or PAYING.
local function find_buyer(buyer_id)
  local row = redis.call("HGET", buyers, buyer_id)
  if not row then
    return { sold = 0, ended = 0, open = "" }
  end
  local sold, ended_holds, open = string.match(row, "(%d+) (%d+) (.*)")
  return { sold = tonumber(sold), ended = tonumber(ended_holds), open = open }
end

local function keep_buyer(buyer_id, buyer)
  if buyer.sold == 0 and buyer.ended == 0 and buyer.open == "" then
    redis.call("HDEL", buyers, buyer_id)
  else
    -- Nearly all are 0, and a number that is joined to a string is printed as a fraction would be.
    local sold = buyer.sold == 0 and "0 " or text(buyer.sold) .. " "
    local ended_holds = buyer.ended == 0 and "0 " or text(buyer.ended) .. " "
    redis.call("HSET", buyers, buyer_id, sold .. ended_holds .. buyer.open)
  end
end

local function count_sold(buyer_id, by)
  local buyer = find_buyer(buyer_id)
  buyer.sold = math.max(0, buyer.sold + by)
  keep_buyer(buyer_id, buyer)
end

-- The record of an ended or sold hold goes; from here on only Postgres knows its id.
local function forget_hold(hold_id, hold)
  redis.call("HDEL", holds, hold_id)
  redis.call("ZREM", ended, hold_id)
  if hold.state == "ENDED" then
    local buyer = find_buyer(hold.buyer_id)
    buyer.ended = buyer.ended - 1
    keep_buyer(hold.buyer_id, buyer)
  end
end
