#!lua flags=allow-oom
-- Give a sale the terms of its row, unless it has those of a newer version already.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
-- ARGV
--   epoch
--   version
--   terms...
-- RETURNS
--   configured              version
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Terms are name, value, name, value … Safe to repeat, and edits may arrive in any order: the newest version stands.
local epoch = ARGV[1]
local version = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
if version <= term("version") then
  return { "configured", term("version") }
end

-- Change.
set_term("version", version)
for at = 3, #ARGV, 2 do
  set_term(ARGV[at], ARGV[at + 1])
end
return { "configured", version }
