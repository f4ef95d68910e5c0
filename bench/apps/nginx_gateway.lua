-- The access phase of the nginx peer: verify the token, count the request in Redis, hand over the identity.
local cjson = require("cjson.safe")
local pkey = require("openssl.pkey")
local digest = require("openssl.digest")

local CLOCK_SKEW_S = 30

local function read_file(path)
  local file = assert(io.open(path, "rb"))
  local content = file:read("*a")
  file:close()
  return content
end

local function from_base64url(text)
  text = text:gsub("-", "+"):gsub("_", "/")
  return ngx.decode_base64(text .. string.rep("=", -#text % 4))
end

local function refuse(status, code)
  ngx.status = status
  ngx.header["Content-Type"] = "application/json"
  local body = '{"error": "' .. code .. '"}'
  ngx.header["Content-Length"] = #body
  ngx.print(body)
  return ngx.exit(status)
end

local function verified_claims(options, key)
  local authorization = ngx.var.http_authorization
  local signed, signature = (authorization or ""):match("^Bearer ([%w_-]+%.[%w_-]+)%.([%w_-]+)$")
  if not signed then return nil end
  local head, payload = signed:match("^([^.]+)%.(.+)$")
  local header = cjson.decode(from_base64url(head) or "")
  if type(header) ~= "table" or header.alg ~= "RS256" then return nil end
  local ok, valid = pcall(key.verify, key, from_base64url(signature), digest.new("sha256"):update(signed))
  if not ok or not valid then return nil end
  local claims = cjson.decode(from_base64url(payload) or "")
  if type(claims) ~= "table" or claims.iss ~= options.issuer or claims.aud ~= options.audience then return nil end
  if type(claims.exp) ~= "number" or claims.exp + CLOCK_SKEW_S < ngx.time() then return nil end
  return claims
end

local function command(...)
  local parts = { "*" .. select("#", ...) .. "\r\n" }
  for _, word in ipairs({ ... }) do
    word = tostring(word)
    parts[#parts + 1] = "$" .. #word .. "\r\n" .. word .. "\r\n"
  end
  return table.concat(parts)
end

-- The sliding-window count with this request in it, or nil when Redis does not answer (the request is let through).
local function count_in_redis(options, name)
  local now = ngx.now()
  local window = math.floor(now / options.window_s) * options.window_s
  local current, previous = name .. ":" .. window, name .. ":" .. (window - options.window_s)
  local socket = ngx.socket.tcp()
  socket:settimeout(50)
  if not socket:connect("127.0.0.1", options.redis_port) then return nil end
  local sent = socket:send(
    command("GET", previous) .. command("INCR", current) .. command("EXPIRE", current, 2 * options.window_s))
  local before = sent and socket:receive("*l")
  if before and before ~= "$-1" then before = socket:receive("*l") else before = before and "0" end
  local counted = before and socket:receive("*l")
  if not counted or not socket:receive("*l") then return nil end
  socket:setkeepalive(60000, 64)
  return tonumber(before) * (1 - (now - window) / options.window_s) + tonumber(counted:sub(2))
end

local function new(options)
  local key = pkey.new(read_file(options.public_key_file), "PEM", "public")
  local gateway = {}

  function gateway.admit(route, limit)
    local claims = verified_claims(options, key)
    if not claims then return refuse(401, "invalid_token") end
    local counted = count_in_redis(options, "nginx:{" .. route .. ":" .. claims.sub .. "}")
    if counted and counted > limit then return refuse(429, "rate_limit_exceeded") end
    ngx.var.user_id = claims.sub
    ngx.var.user_scopes = claims.scope
  end

  function gateway.count()
    ngx.shared.metrics:incr("requests:" .. ngx.status, 1, 0)
    ngx.shared.metrics:incr("seconds:" .. ngx.status, tonumber(ngx.var.request_time), 0)
  end

  return gateway
end

return { new = new }
