-- Where a stream ends: the number and the id of its last entry, 0 and 0-0 of one that has none. It stands on sale.
local function head_of(stream)
  local last = redis.call("XREVRANGE", stream, "+", "-", "COUNT", 1)[1]
  if not last then
    return "0", "0-0"
  end
  for at = 1, #last[2], 2 do
    if last[2][at] == "n" then
      return last[2][at + 1], last[1]
    end
  end
  return "-1", last[1] -- an entry that no script of ours wrote
end
