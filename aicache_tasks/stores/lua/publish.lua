-- Store a frame, unless a frame with another fence than its look-up saw lies in its place.
--
-- KEYS[1]   the entry's key; KEYS[2..] the keys of its tags' tokens (all in one slot)
-- ARGV[1]   the frame
-- ARGV[2]   its time to live, ms
-- ARGV[3]   the fence that the look-up saw (8 bytes; zeros if it saw no frame)
-- returns   1 stored, 0 refused
--
-- The first 12 bytes of every frame: magic A1 CA, version, kind, fence (8). The fence of a tombstone is its token, that
-- of an entry the token of the tombstone that it replaced: an answer from before an invalidation is refused for as long
-- as the tombstone, or any entry stored after it, lies there.
-- GETRANGE fails on a value of another type: it is no frame, and SET replaces it.
local head = redis.pcall('GETRANGE', KEYS[1], 0, 11)
if type(head) == 'string' and #head == 12 and string.sub(head, 1, 2) == '\161\202'
    and string.sub(head, 5, 12) ~= ARGV[3] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local ttl = tonumber(ARGV[2])
for i = 2, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left >= 0 and left < ttl then
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  end
end
return 1
