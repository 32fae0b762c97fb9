#!lua flags=allow-oom
-- Open a sale that was written anew.
--
-- USES
--   sale
--   rebuild
-- KEYS
--   sale            hash    the sale's terms and counters
-- ARGV
--   epoch
-- RETURNS
--   opened
--   sale_unknown
--   stale_epoch             epoch
--
-- Safe to repeat.
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal and refusal[1] ~= "sale_open" then return refusal end

-- Change.
set_term("state", "open")
return { "opened" }
