-- Put a batch of samples in the inbox, unless it is full.
--
-- KEYS[1]   the inbox, a list; KEYS[2] its state, a hash (in one slot)
-- ARGV[1]   the batch
-- ARGV[2]   how much the inbox may hold, bytes
-- returns   how many entries it holds now, or -1: refused
--
-- The two reads fail for a key of another type before anything is written, and a full server refuses the first write.
local waiting = redis.call('LLEN', KEYS[1])
local held = tonumber(redis.call('HGET', KEYS[2], 'bytes') or 0) or 0
if waiting == 0 then
  held = 0 -- also if the entries were lost to whoever emptied the list
elseif held > waiting * 2097152 then
  held = waiting * 2048 -- no entry is so long: somebody else wrote that
end
if held + #ARGV[1] > tonumber(ARGV[2]) then
  return -1
end
if waiting == 0 then
  local now = redis.call('TIME')
  local now_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
  redis.call('HSET', KEYS[2], 'since_ms', now_ms)
end
redis.call('HSET', KEYS[2], 'bytes', string.format('%.0f', held + #ARGV[1]))
return redis.call('RPUSH', KEYS[1], ARGV[1])
