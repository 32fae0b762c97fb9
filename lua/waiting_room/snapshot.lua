#!lua flags=no-writes
-- What a process needs to answer every poll of a room from its own memory for the next moment.
--
-- USES
--   sale
-- KEYS
--   sale             hash    the sale's terms and counters
--   waiting          zset    owner -> queue number
--   active           zset    owner of each ACTIVE token
--   returned         zset    owner -> queue number of skipped people who came back
--   admissions       hash    second -> people admitted in it
--   gone             zset    queue numbers above serving that left the line, scored by the order in which they did
--   ended_tokens_at  zset    queue_no, scored by the millisecond it ended
-- ARGV
--   epoch
--   gone_seq         departures up to here are known to the asker
--   ended_since_ms   tokens that ended before are known to the asker
--   most             departures named, and ended tokens named, at most
-- RETURNS
--   snapshot         epoch now_ms room serving queue_no draining_no waiting behind returned active active_max admitted_per_minute_max admitted admitted_in_s gone_seq more gone_count queue_nos...
--   sale_unknown
--   stale_epoch      epoch
--   sale_rebuilding
--
-- Safe to repeat: it changes nothing. Of queue_nos the first gone_count are departures, in order; the rest have ended.
local waiting = KEYS[2]
local active = KEYS[3]
local returned = KEYS[4]
local admissions = KEYS[5]
local gone = KEYS[6]
local ended_tokens_at = KEYS[7]
local epoch = ARGV[1]
local gone_seq = tonumber(ARGV[2])
local ended_since_ms = ARGV[3]
local most = tonumber(ARGV[4])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- The rate of the last minute, over as much of it as there is.
local second = math.floor(now_ms / 1000)
local admitted, first = 0, second
local counts = redis.call("HGETALL", admissions)
for at = 1, #counts, 2 do
  local then_s = tonumber(counts[at])
  if then_s > second - 60 then
    admitted = admitted + counts[at + 1]
    first = math.min(first, then_s)
  end
end

local queue_nos = {}
local departures = redis.call("ZRANGEBYSCORE", gone, "(" .. gone_seq, "+inf", "WITHSCORES", "LIMIT", 0, most)
local known_seq = term("gone_seq")
for at = 1, #departures, 2 do
  queue_nos[#queue_nos + 1] = departures[at]
end
local more = #queue_nos == most and 1 or 0
if more == 1 then
  known_seq = departures[#departures]
end
local gone_count = #queue_nos
for _, queue_no in ipairs(redis.call("ZRANGEBYSCORE", ended_tokens_at, ended_since_ms, "+inf", "LIMIT", 0, most)) do
  queue_nos[#queue_nos + 1] = queue_no
end

return {
  "snapshot", sale.epoch, now_ms, sale.room or "off", term("serving"), term("queue_no"), term("draining_no"),
  redis.call("ZCARD", waiting), redis.call("ZCOUNT", waiting, "(" .. term("serving"), "+inf"),
  redis.call("ZCARD", returned), redis.call("ZCARD", active), term("active_max"), term("admitted_per_minute_max"),
  admitted, second - first + 1, known_seq, more, gone_count, unpack(queue_nos),
}
