-- Numbered and chained entries. An operation takes its number before its first write and appends its entry after its
-- last: a fault between the two leaves a gap that the stream's owner sees.
--
-- An entry is: epoch, n, before (the stream id of the previous entry, 0-0 for the first), kind, then pairs of its own.
-- Those of the journal say after kind which entry was the last before them that is about a hold, so that whoever finds
-- entries missing knows whether holds are among them. `name` is outbox or journal, `stream` its key.
--
-- Who reads a stream rests once Postgres has all of it. The first entry after that is told on a channel, by the key of
-- the stream; what is not heard is seen by its owner within a second.
local previous = {}
local ABOUT_HOLDS = { held = true, extended = true, released = true, expired = true }

-- The next number of a stream, and of up to two counters of the sale (fence, map_version).
local function next_number(name, counter, other)
  if now_ms > term("now_ms") then
    set_term("now_ms", now_ms)
  end
  if counter then
    count_up(counter)
  end
  if other then
    count_up(other)
  end
  return count_up(name .. "_n")
end

-- The stream's last entry: its id, and the id of the last one up to it that is about a hold.
local function last_entry(stream)
  local last = redis.call("XREVRANGE", stream, "+", "-", "COUNT", 1)[1]
  if not last then
    return { id = "0-0", holds = "0-0" }
  end
  local fields = {}
  for at = 1, #last[2], 2 do
    fields[last[2][at]] = last[2][at + 1]
  end
  return { id = last[1], holds = ABOUT_HOLDS[fields.kind] and last[1] or fields.holds or "0-0" }
end

local function append(stream, n, kind, ...)
  local last = previous[stream]
  if not last then
    last = last_entry(stream)
    if n - 1 == term(string.match(stream, "%a+$") .. "_persisted_n") then
      redis.call("PUBLISH", "lastseat:written", stream)
    end
  end
  local id = redis.call(
    "XADD", stream, "*", "epoch", sale.epoch, "n", n, "before", last.id, "kind", kind, "holds", last.holds, ...
  )
  previous[stream] = { id = id, holds = ABOUT_HOLDS[kind] and id or last.holds }
end
