-- Add samples that an ending process gives up to those that the roll-up counts as lost.
--
-- KEYS[1]   state of the inbox, a hash
-- ARGV[1]   how many
-- returns   how many wait to be counted now
--
-- The first write changes nothing: it is one that a full server takes, and after it the other one too.
redis.call('HDEL', KEYS[1], '')
local lost = (tonumber(redis.call('HGET', KEYS[1], 'lost') or 0) or 0) + ARGV[1]
redis.call('HSET', KEYS[1], 'lost', string.format('%.0f', lost))
return lost
