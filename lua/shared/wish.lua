-- A wish to hold: whether this buyer may, what it costs, and the one way in which a new hold is written. It stands on
-- sale, streams, room, holds and hall.
--
-- RECORDS
--   tiers     tier|category_no -> price|max               an empty max is no cap
--   blocks    block_no -> code hash|channel|opens_at_ms|closes_at_ms     one of the first two is empty; 0: no such bound
--
-- Whoever uses this file declares these keys after those of hall:
local tiers = KEYS[15]
local blocks = KEYS[16]
local journal = KEYS[17]
local tokens = KEYS[18]
local active = KEYS[19]

-- Lapsed holds that one call ends for those who find too few free seats, however many operations it carries.
local SWEPT_MAX = 64
local swept = 0

-- As text once a call: all its operations are of one moment and one sale.
local held_at, held_until = text(now_ms), text(now_ms + term("hold_ms"))

-- What the lines of a request want: { seat_nos, records, tiers, areas, places, access, is_plain }. `records` and `tiers`
-- are those of the seats, tiers nil when none is named; `places` is how many the areas are asked for.
local NOTHING = {}
local plain_wish = { areas = NOTHING, places = 0, access = "", is_plain = true }
local function read_wish(lines)
  local records = redis.call("HMGET", prices, unpack(lines))
  local is_plain = true
  for at = 1, #lines do
    is_plain = is_plain and records[at]
  end
  if is_plain then
    -- What has a price is a seat's number and nothing else. The one table serves nearly every hold.
    plain_wish.seat_nos, plain_wish.records = lines, records
    return plain_wish
  end
  local wish = { seat_nos = {}, areas = {}, places = 0, access = "" }
  local line_tiers, named = {}, false
  for _, line in ipairs(lines) do
    local area, quantity, area_tier = string.match(line, "^=([^=|]+)|(%d+)|(.*)$")
    local seat_no, tier = string.match(line, "^([^=|][^|]*)|?(.*)$")
    named = named or (tier or area_tier or "") ~= ""
    if area then
      wish.areas[#wish.areas + 1] =
        { area = area, quantity = tonumber(quantity), tier = area_tier == "" and "-" or area_tier }
      wish.places = wish.places + tonumber(quantity)
    elseif seat_no then
      wish.seat_nos[#wish.seat_nos + 1] = seat_no
      line_tiers[#line_tiers + 1] = tier == "" and "-" or tier
    else
      wish.access = string.sub(line, 3)
    end
  end
  wish.tiers = named and line_tiers or nil
  wish.records = #wish.seat_nos > 0 and redis.call("HMGET", prices, unpack(wish.seat_nos)) or {}
  return wish
end

-- All that a hold needs to know of seats which the public may have, by their records; nil where one is another's.
local function read_public(records)
  local price_list, positions = {}, {}
  for at, record in ipairs(records) do
    local price, position = string.match(record, PUBLIC_SEAT)
    if not price then
      return nil
    end
    price_list[at], positions[at] = price, tonumber(position)
  end
  return { price_list = price_list, positions = positions }
end

-- Which seats of a wish do not exist, and what is known of all: nothing in a sale without a floor.
local function look_up(wish)
  local found = sale.has_floor == "1" and (wish.is_plain and read_public(wish.records) or {}) or nil
  if wish.is_plain and (not found or found.positions) then
    return NOTHING, found
  end
  local unknown = {}
  for at, seat_no in ipairs(wish.seat_nos) do
    if found and wish.records[at] then
      found[at] = parse_seat(wish.records[at])
    end
    if not wish.records[at] or found and found[at].kind == "P" then -- places are picked, not named
      unknown[#unknown + 1] = seat_no
    end
  end
  return unknown, found
end

-- What may begin at all: nil and what is known of the buyer, or why not. With `early` the sale need not have begun;
-- without a `queue_no` (an empty one) no place in line is asked for.
local function judge_buyer(buyer_id, queue_no, early)
  if now_ms < term("opens_at_ms") and not early then
    return { "sale_not_open", sale.opens_at_ms }
  end
  if term("closes_at_ms") > 0 and now_ms >= term("closes_at_ms") then
    return { "sale_closed" }
  end
  if backlogged() then
    return { "busy", 1000 }
  end
  local buyer = { id = buyer_id, queue_no = "0" }
  if queue_no ~= "" and room_is_on() then
    buyer.token, buyer.token_deadline_ms = active_token(tokens, active, buyer_id, queue_no)
    if not buyer.token then
      return { "not_admitted" }
    end
    buyer.queue_no = queue_no
  end
  local row = find_buyer(buyer_id)
  local open = split(row.open)
  if row.ended + #open >= ENDED_MAX then
    -- Spread evenly, one of them is forgotten in every hundredth of the window.
    return { "slow_down", math.ceil(term("repeat_window_ms") / ENDED_MAX) }
  end
  buyer.row, buyer.open = row, open
  return nil, buyer
end

-- Whether `count` more would be too many; `known` has the buyer's open holds where there is a limit.
local function judge_limit(buyer, count, known)
  local limit = term("per_buyer_max")
  if limit == 0 then
    return nil
  end
  local have = buyer.row.sold
  for _, hold_id in ipairs(buyer.open) do
    have = have + (has_lapsed(known[hold_id]) and 0 or #split(known[hold_id].seats))
  end
  return have + count > limit and { "limit_reached", limit, have } or nil
end

-- Whether a block is open to who shows this code or comes through this channel ("code hash|channel"), now.
local function is_open(block_no, access)
  if block_no == "0" then
    return true
  end
  local code, channel, opens_at_ms, closes_at_ms =
    string.match(redis.call("HGET", blocks, block_no) or "", "^([^|]*)|([^|]*)|(%d+)|(%d+)$")
  if not code or now_ms < tonumber(opens_at_ms) or (closes_at_ms ~= "0" and now_ms >= tonumber(closes_at_ms)) then
    return false
  end
  local shown_code, shown_channel = string.match(access, "^([^|]*)|([^|]*)$")
  return code ~= "" and code == shown_code or channel ~= "" and channel == shown_channel
end

-- Whether any block is open to who shows this: then a sale may begin before it opens.
local function any_is_open(access)
  if access ~= "" then
    for _, block_no in ipairs(redis.call("HKEYS", blocks)) do
      if is_open(block_no, access) then
        return true
      end
    end
  end
  return false
end

-- End lapsed holds, some now and so many in one call at most.
local function sweep(most)
  most = math.min(most, SWEPT_MAX - swept)
  if most > 0 and sale.waiting_list ~= "1" then
    swept = swept + expire_lapsed(journal, most)
  end
end

-- Fewer are free than are wanted: for each that falls short "wanted free kind name". While there are lapsed holds
-- this is no answer yet: some of them end now, and the same request is judged again.
local function fall_short(shortages)
  local lapsed = sale.waiting_list ~= "1" and redis.call("ZCOUNT", deadlines, "-inf", now_ms) or 0
  if lapsed == 0 then
    return { "sold_out", unpack(shortages) }
  end
  sweep(SWEPT_MAX)
  return { "look_on", "" }
end

-- What a request names beside seats is on offer, and the sale has begun for all of it: nil, or why not. Areas of a block
-- that is not open to it are conflicts.
local function judge_offer(wish, found, early, areas, conflicts)
  local unknown, all_early = {}, true
  for _, line in ipairs(wish.areas) do
    local block_no
    line.area_no, block_no = string.match(redis.call("HGET", areas, line.area) or "", "^(%d+)|%d+|(%d+)|%d+$")
    if not line.area_no then
      unknown[#unknown + 1] = "area " .. line.area
    elseif not is_open(block_no, wish.access) then
      conflicts[#conflicts + 1] = line.area .. " blocked"
    end
    all_early = all_early and block_no ~= "0" and #conflicts == 0
  end
  for _, tier in ipairs(found and {} or wish.tiers or {}) do
    unknown[#unknown + 1] = tier ~= "-" and "tier " .. tier or nil
  end
  if #unknown > 0 then
    return { "offer_unknown", unpack(unknown) }
  end
  for _, seat in ipairs(found or {}) do
    all_early = all_early and seat.block_no ~= "0" and is_open(seat.block_no, wish.access)
  end
  if early and not (found and all_early) then
    return { "sale_not_open", sale.opens_at_ms }
  end
  return nil
end

-- Any free places of the areas, added to the wish's seats and to what is found of them: nil, or what is left.
local function pick_places(wish, found)
  local wanted, free, shortages = {}, {}, {}
  for _, line in ipairs(wish.areas) do
    wanted[line.area] = (wanted[line.area] or 0) + line.quantity
  end
  for _, line in ipairs(wish.areas) do
    if not free[line.area] then
      local first = line.area_no * 10000000
      free[line.area] =
        redis.call("ZRANGEBYSCORE", places, first, first + 9999999, "LIMIT", 0, wanted[line.area])
      if #free[line.area] < wanted[line.area] then
        shortages[#shortages + 1] = wanted[line.area] .. " " .. #free[line.area] .. " area " .. line.area
      end
    end
  end
  if #shortages > 0 then
    return fall_short(shortages)
  end
  for _, line in ipairs(wish.areas) do
    local picked = {}
    for at = 1, line.quantity do
      picked[at] = table.remove(free[line.area], 1)
      wish.seat_nos[#wish.seat_nos + 1] = picked[at]
      if wish.tiers then
        wish.tiers[#wish.seat_nos] = line.tier
      end
    end
    for _, place in ipairs(read_seats(picked)) do
      found[#found + 1] = place
    end
  end
  return nil
end

-- What these seats cost in their tiers: nil and the prices, or why not. A cap counts all that is held, being paid and
-- sold in a tier.
local function price_lines(found, line_tiers)
  local price_list, wanted, order = {}, {}, {}
  for at, seat in ipairs(found) do
    price_list[at] = seat.price
    local tier = line_tiers and line_tiers[at] or "-"
    if tier ~= "-" then
      local key = tier .. "|" .. seat.category_no
      if not wanted[key] then
        wanted[key] = { tier = tier, count = 0, price = false, max = "" }
        order[#order + 1] = key
      end
      wanted[key].count = wanted[key].count + 1
    end
  end
  if #order == 0 then
    return nil, price_list
  end
  local unknown, shortages = {}, {}
  local records, counts = redis.call("HMGET", tiers, unpack(order)), redis.call("HMGET", tier_counts, unpack(order))
  for at, key in ipairs(order) do
    local each = wanted[key]
    each.price, each.max = string.match(records[at] or "", "^(%d+)|(%d*)$")
    local left = tonumber(each.max or "") and math.max(0, each.max - tonumber(counts[at] or "0"))
    if not each.price then
      unknown[#unknown + 1] = "tier " .. each.tier
    elseif left and left < each.count then
      shortages[#shortages + 1] = each.count .. " " .. text(left) .. " tier " .. each.tier
    end
  end
  if #unknown > 0 then
    return { "offer_unknown", unpack(unknown) }
  end
  if #shortages > 0 then
    return fall_short(shortages)
  end
  for at, seat in ipairs(found) do
    local tier = line_tiers[at]
    price_list[at] = tier ~= "-" and wanted[tier .. "|" .. seat.category_no].price or price_list[at]
  end
  return nil, price_list
end

-- A new hold of seats that are free, and what is known of them, if anything. With `took_over` holds have just ended for
-- it; with `until_ms` its time is another than the sale gives to all.
local function hold_seats(hold_id, buyer, fingerprint, seat_nos, price_list, line_tiers, found, took_over, until_ms)
  local amount, ends_at = 0, until_ms or held_until
  for _, price in ipairs(price_list) do
    amount = amount + tonumber(price)
  end
  amount = price_list[2] and text(amount) or price_list[1]
  local n = next_number("journal", "fence", "map_version")
  local hold = {
    state = "HELD",
    buyer_id = buyer.id,
    fence = text(sale.fence),
    queue_no = buyer.queue_no,
    fingerprint = fingerprint,
    created_at_ms = held_at,
    expires_at_ms = ends_at,
    amount = amount,
    seats = table.concat(seat_nos, ","),
    prices = table.concat(price_list, ","),
    tiers = line_tiers and table.concat(line_tiers, ",") or "",
  }
  set_seats(hold_id, hold, "HELD", seat_nos)
  occupy(seat_nos, found)
  keep_hold(hold_id, hold)
  write_last("ZADD", deadlines, hold_id, free_at_ms(hold_id, hold))
  local row = took_over and find_buyer(buyer.id) or buyer.row -- one of them may have been this buyer's own
  row.open = with(row.open, hold_id)
  keep_buyer(buyer.id, row)
  if buyer.token then
    renew_token(tokens, active, buyer.id, buyer.token, buyer.token_deadline_ms)
  end
  count_tiers(found, line_tiers, 1)
  append(
    journal, n, "held", "hold_id", hold_id, "buyer_id", buyer.id, "fence", hold.fence, "queue_no", buyer.queue_no,
    "fingerprint", fingerprint, "seats", hold.seats, "prices", hold.prices, "amount", amount,
    "created_at_ms", held_at, "expires_at_ms", ends_at, unpack(line_tiers and { "tiers", hold.tiers } or NOTHING)
  )
  return hold
end
