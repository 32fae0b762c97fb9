-- Who wants to hold units, whether this buyer may, and the moment of it. It stands on sale, room and holds.

-- As text once a call: all its operations are of one moment and one sale.
local held_at, held_until = text(now_ms), text(now_ms + term("hold_ms"))

-- What may begin at all: nil and what is known of the buyer, or why not.
local function judge_buyer(tokens, active, buyer_id, queue_no)
  if now_ms < term("opens_at_ms") then
    return { "sale_not_open", sale.opens_at_ms }
  end
  if term("closes_at_ms") > 0 and now_ms >= term("closes_at_ms") then
    return { "sale_closed" }
  end
  if backlogged() then
    return { "busy", 1000 }
  end
  local buyer = { id = buyer_id, queue_no = "0" }
  if room_is_on() then
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
