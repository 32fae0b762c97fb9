-- Who wants to hold units, whether this buyer may, and the hold. It stands on sale, streams, room, holds and units.

-- As text once a call: all its operations are of one moment and one sale.
local held_at, held_until = text(now_ms), text(now_ms + term("hold_ms"))

-- Why nobody may begin anything now, or nil.
local function judge_moment()
  if now_ms < term("opens_at_ms") then
    return { "sale_not_open", sale.opens_at_ms }
  end
  if term("closes_at_ms") > 0 and now_ms >= term("closes_at_ms") then
    return { "sale_closed" }
  end
  if backlogged() then
    return { "busy", 1000 }
  end
  return nil
end

-- What may begin at all: nil and what is known of the buyer, or why not. Without a `queue_no` (an empty one) no place in
-- line is asked for.
local function judge_buyer(tokens, active, buyer_id, queue_no)
  local refusal = judge_moment()
  if refusal then return refusal end
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

-- Why a buyer cannot have these units, or nil. Where too little is left, lapsed holds end first.
local function judge_stock(journal, buyer, variant_ids, quantities)
  local shortages = find_shortages(variant_ids, quantities)
  if #shortages == 0 then
    return nil
  end
  local taken_over, more = take_over(journal)
  if taken_over > 0 then
    shortages = find_shortages(variant_ids, quantities)
    buyer.row = find_buyer(buyer.id) -- one of them may have been this buyer's own
  end
  if #shortages > 0 and more then
    return { "look_on", "" }
  end
  return #shortages > 0 and { "sold_out", unpack(shortages) } or nil
end

-- A new hold of units that were taken from wherever they were, until `expires_at_ms`; its entry, which tells all of the
-- record, has the number `n`, which was given out before they were.
local function hold_units(journal, n, hold_id, buyer, fingerprint, units, price_list, amount, expires_at_ms)
  local hold = {
    state = "HELD", buyer_id = buyer.id, fence = text(sale.fence), queue_no = buyer.queue_no, fingerprint = fingerprint,
    created_at_ms = held_at, expires_at_ms = expires_at_ms, amount = text(amount), seats = units,
    prices = table.concat(price_list, ","),
  }
  keep_hold(hold_id, hold)
  write_last("ZADD", deadlines, hold_id, free_at_ms(hold_id, hold))
  buyer.row.open = with(buyer.row.open, hold_id)
  keep_buyer(buyer.id, buyer.row)
  append(
    journal, n, "held", "hold_id", hold_id, "buyer_id", buyer.id, "fence", hold.fence, "queue_no", hold.queue_no,
    "fingerprint", fingerprint, "seats", hold.seats, "prices", hold.prices, "amount", hold.amount,
    "created_at_ms", held_at, "expires_at_ms", expires_at_ms
  )
  return hold
end
