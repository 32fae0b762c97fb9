-- The stock: how units of variants are taken and freed, and how holds of them end. Nothing stands on a unit: units are
-- counted, and what a hold has is in its record alone. So at every moment, of each variant,
--
--   stock + stock_freed + the units of every hold that is HELD, PAYING or SOLD = all units there ever were.
--
--   stock         variant_id -> units left, which anybody may have
--   stock_freed   variant_id -> units that were freed while there is a waiting list: they wait for whoever gives them on
--   restored      hold_id -> n variant_id:quantity,…
--                   what a sold hold that is forgotten has left since its `restored` entry n
--
-- In the record of a hold `seats` lists variant_id:quantity, each variant once, and `prices` what one unit of each costs.
--
-- It stands on sale, streams and holds. Whoever uses this file declares these keys after those of holds:
local stock = KEYS[8]
local stock_freed = KEYS[9]

-- What a hold may cost at most: up to here, and some way beyond, every sum is a whole number.
local AMOUNT_MAX = 1e15

-- Lapsed holds that one call ends for those who find too few units, however many operations it carries.
local SWEPT_MAX = 64
local swept = 0

-- Lines ----------------------------------------------------------------------------------------------------------------

-- Of lines "variant_id:quantity": each variant once, in their order, how many of it, and how many of all.
local function sum_lines(lines)
  local variant_ids, quantities, count = {}, {}, 0
  for _, line in ipairs(lines) do
    local variant_id, quantity = string.match(line, "^(.+):(%d+)$")
    if not quantities[variant_id] then
      variant_ids[#variant_ids + 1] = variant_id
      quantities[variant_id] = 0
    end
    quantities[variant_id] = quantities[variant_id] + tonumber(quantity)
    count = count + tonumber(quantity)
  end
  return variant_ids, quantities, count
end

-- The reverse; what there is none of is left out.
local function join_lines(variant_ids, quantities)
  local lines = {}
  for _, variant_id in ipairs(variant_ids) do
    if quantities[variant_id] > 0 then
      lines[#lines + 1] = variant_id .. ":" .. text(quantities[variant_id])
    end
  end
  return table.concat(lines, ",")
end

local function count_units(hold)
  local count = 0
  for quantity in string.gmatch(hold.seats, ":(%d+)") do
    count = count + tonumber(quantity)
  end
  return count
end

-- Which variants of these a hold has units of.
local function find_common(hold, quantities)
  local common = {}
  for _, variant_id in ipairs((sum_lines(split(hold.seats)))) do
    if quantities[variant_id] then
      common[#common + 1] = variant_id
    end
  end
  return common
end

-- The fields of a hash that operations of a call ask for, each read once: in a rush all of them want the same. `seen`
-- keeps them, false for one that is not there.
local function look_at(key, fields, seen)
  local unseen = {}
  for _, field in ipairs(fields) do
    if seen[field] == nil then
      unseen[#unseen + 1] = field
    end
  end
  if #unseen > 0 then
    for at, value in ipairs(redis.call("HMGET", key, unpack(unseen))) do
      seen[unseen[at]] = value
    end
  end
end

-- What one unit of each of these costs, and all of them; or why they are not on sale.
local price_of = {}
local function price_units(prices, variant_ids, quantities)
  look_at(prices, variant_ids, price_of)
  local price_list, unknown, amount = {}, {}, 0
  for at, variant_id in ipairs(variant_ids) do
    local price = price_of[variant_id]
    price_list[at] = price
    if not price or string.sub(price, 1, 1) == "-" then
      unknown[#unknown + 1] = variant_id
    else
      amount = amount + tonumber(price) * quantities[variant_id]
    end
  end
  if #unknown > 0 then
    return { "unit_unknown", unpack(unknown) }
  end
  return nil, price_list, amount
end

-- Leave a hold these quantities of what it has.
local function keep_units(hold, quantities)
  local variant_ids, price_list = sum_lines(split(hold.seats)), split(hold.prices)
  local kept_prices, amount = {}, 0
  for at, variant_id in ipairs(variant_ids) do
    if quantities[variant_id] > 0 then
      kept_prices[#kept_prices + 1] = price_list[at]
      amount = amount + tonumber(price_list[at]) * quantities[variant_id]
    end
  end
  hold.seats, hold.prices, hold.amount =
    join_lines(variant_ids, quantities), table.concat(kept_prices, ","), text(amount)
end

-- Taking and freeing ---------------------------------------------------------------------------------------------------

-- What is left for anybody is read once a call, counted here, and written once at the call's end.
local left_of = {}
local function count_left(variant_ids)
  look_at(stock, variant_ids, left_of)
  local left = {}
  for at, variant_id in ipairs(variant_ids) do
    left[at] = tonumber(left_of[variant_id] or "0")
  end
  return left
end

local function put_left(variant_id, left)
  left_of[variant_id] = left
  write_last("HSET", stock, variant_id, text(left))
end

-- Units stand under a hold now; whether so many are left was asked before.
local function take_units(variant_ids, quantities)
  for at, left in ipairs(count_left(variant_ids)) do
    put_left(variant_ids[at], left - quantities[variant_ids[at]])
  end
end

-- Units stand under no hold any more: anybody may have them, or they are the waiting list's.
local function free_units(variant_ids, quantities)
  if sale.waiting_list == "1" then
    for _, variant_id in ipairs(variant_ids) do
      redis.call("HINCRBY", stock_freed, variant_id, text(quantities[variant_id]))
    end
    return
  end
  for at, left in ipairs(count_left(variant_ids)) do
    put_left(variant_ids[at], left + quantities[variant_ids[at]])
  end
end

-- Of each variant that there is too little of "variant_id requested available".
local function find_shortages(variant_ids, quantities)
  local shortages = {}
  for at, left in ipairs(count_left(variant_ids)) do
    local wanted = quantities[variant_ids[at]]
    if left < wanted then
      shortages[#shortages + 1] = variant_ids[at] .. " " .. text(wanted) .. " " .. text(left)
    end
  end
  return shortages
end

-- Whether so many more would be too many for this buyer.
local function judge_limit(buyer, count)
  local limit = term("per_buyer_max")
  if limit == 0 then
    return nil
  end
  local have = buyer.row.sold
  for _, hold in pairs(find_holds(buyer.open)) do
    have = have + (has_lapsed(hold) and 0 or count_units(hold))
  end
  return have + count > limit and { "limit_reached", limit, have } or nil
end

-- Endings --------------------------------------------------------------------------------------------------------------

-- All of a sale but its entry, whose number is `n`.
local function sell_hold(hold_id, hold, n)
  local buyer = find_buyer(hold.buyer_id)
  buyer.sold, buyer.open = buyer.sold + count_units(hold), without(buyer.open, hold_id)
  keep_buyer(hold.buyer_id, buyer)
  write_last("ZREM", paying, hold_id)
  write_last("ZADD", ended, hold_id, now_ms)
  hold.state, hold.sold_n = "SOLD", n
  keep_hold(hold_id, hold)
end

-- A hold that is HELD or PAYING ends: its record stays for the repeat window, and what it counted for counts no more.
local function end_hold(hold_id, hold, reason)
  free_units(sum_lines(split(hold.seats)))
  local buyer = find_buyer(hold.buyer_id)
  buyer.ended, buyer.open = buyer.ended + 1, without(buyer.open, hold_id)
  keep_buyer(hold.buyer_id, buyer)
  redis.call("ZREM", hold.state == "HELD" and deadlines or paying, hold_id)
  write_last("ZADD", ended, hold_id, now_ms)
  hold.state, hold.reason = "ENDED", reason
  keep_hold(hold_id, hold)
end

-- End at most `most` holds whose units may be had by others, the longest over first, each with a number and an entry of
-- its own; answers how many.
local function expire_lapsed(journal, most)
  local hold_ids = redis.call("ZRANGEBYSCORE", deadlines, "-inf", now_ms, "LIMIT", 0, most)
  local lapsed = find_holds(hold_ids)
  for _, hold_id in ipairs(hold_ids) do
    local n = next_number("journal")
    end_hold(hold_id, lapsed[hold_id], "EXPIRED")
    append(journal, n, "expired", "hold_id", hold_id, "fence", lapsed[hold_id].fence, "at_ms", now_ms)
  end
  return #hold_ids
end

-- Lapsed holds end for one who finds too few units: how many did, and whether others wait for another call. While there is
-- a waiting list it has the first claim on them, and a sweep brings them to it.
local function take_over(journal)
  if sale.waiting_list == "1" then
    return 0, false
  end
  local count = swept < SWEPT_MAX and expire_lapsed(journal, SWEPT_MAX - swept) or 0
  swept = swept + count
  return count, redis.call("ZCOUNT", deadlines, "-inf", now_ms) > 0
end
